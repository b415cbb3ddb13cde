"""`poet score`: two sets of clips beside each other, whoever made them."""

from __future__ import annotations

import argparse
from pathlib import Path

from poet.cli import command
from poet.runs import outputs
from poet.spec import ClipSpec, UserError, choose

# Below --out unless --features names another folder.
FEATURES = "features"


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("submission", metavar="SUBMISSION", help="a folder of clips, or of tar shards, or a TFDS folder")
    add("--against", required=True, metavar="REFERENCE", help="such a folder that it is compared with")
    add("--split", default="", help="of the submission; default: its only one")
    add("--against_split", default="", help="of the reference; default: its only one")
    command.out_argument(parser)
    add(
        "--fit",
        action="store_true",
        help="crop, scale and cut clips that differ, and say so; without it they are refused",
    )
    add("--frames", type=command.frames, default=0, help="of each clip; 0: as the clips have")
    add("--rate_hz", type=command.number(float, at_least=0, at_most=1000), default=0.0, help="frames a second")
    add("--height", type=command.side, default=0, help="in pixels; 0: as the clips have")
    add("--width", type=command.side, default=0, help="in pixels; 0: as the clips have")
    add(
        "--network",
        action="append",
        default=[],
        dest="networks",
        metavar="NAME",
        help="feature network: one that is installed (default: all), or the JSON file of one's own "
        "(poet/evaluation/features/own.py); 'none' for none (repeatable)",
    )
    add("--metric", action="append", default=[], dest="metrics", metavar="NAME", help="only this one (repeatable)")
    add(
        "--pairs",
        action="store_true",
        help="clips of one name show the same: PSNR, SSIM and the like, and shared captions",
    )
    add("--perceptual", default="vgg_hed", help="network of the distance of pairs, '' for none")
    add("--tokenizer", default="", help="folder of a video tokenizer, for codebook use and collapsed clips")
    add(
        "--features",
        default="",
        metavar="FOLDER",
        help="where vectors are kept: a stopped run goes on, a reference is read once; default: OUT/features",
    )


def _run(args: argparse.Namespace) -> None:
    """Writes OUT/scores.json, .csv, .txt and report.html, and prints the tables."""
    from poet.evaluation.samples import REFERENCE, SUBMISSION
    from poet.evaluation.score import run, sides, writing
    from poet.evaluation.score.vectors import Cache

    inputs = [args.submission, args.against, args.tokenizer]
    output = outputs.claim(args.out, outputs.SCORE, overwrite=args.overwrite, inputs=inputs, resumed=FEATURES)
    named = [("SUBMISSION", args.submission, args.split), ("--against", args.against, args.against_split)]
    wanted = sides.Format(frames=args.frames, height=args.height, width=args.width, rate_hz=args.rate_hz)
    opened, clip, done = sides.open_all(named, wanted, args.fit)
    setup, clips = _setup(args, clip), dict(zip((SUBMISSION, REFERENCE), opened))
    cache = Cache(folder=Path(args.features).expanduser() if args.features else output.final / FEATURES)
    with output:
        result = run.evaluate(*clips.values(), setup, cache, done)
        writing.write(output.folder, result, clips)
    print(run.summary(result))


def _setup(args: argparse.Namespace, clip: ClipSpec):
    from poet.evaluation.score.run import Setup

    networks, lacking = _networks(args.networks, clip.rate_hz)
    extra, missing = _perceptual(args.perceptual)
    setup = Setup(
        networks=networks,
        lacking=lacking | missing,
        extra=extra,
        tokenizer=_tokenizer(args.tokenizer, clip) if args.tokenizer else None,
        chosen=args.metrics,
        pairs=args.pairs,
    )
    known = {m.name: m for found in Setup(networks=networks, extra=extra).tables().values() for m in found}
    for name in args.metrics:
        choose(name, known, "--metric")
    return setup


def _networks(names: list[str], rate_hz: float) -> tuple[list, dict[str, str]]:
    """The feature networks, and of those that are left out because they are not installed, how to install them."""
    from poet.evaluation import features
    from poet.evaluation.features import own

    if not names:
        there = [network for network in features.NETWORKS.values() if network.is_installed]
        lacking = {n.name: f"not installed: {n.install}" for n in features.NETWORKS.values() if not n.is_installed}
        return [features.load(network.name) for network in there], lacking
    asked = [name for name in names if name != "none"]
    return [own.load(n, rate_hz) if n.endswith(".json") else features.load(n) for n in asked], {}


def _tokenizer(path: str, clip: ClipSpec):
    from poet.tokenizers.video.base import VideoTokenizer

    tokenizer = VideoTokenizer.load(path)
    try:
        tokenizer.spec.grid(clip.frames, clip.height, clip.width)
    except UserError as error:
        raise UserError(f"--tokenizer={path}: {error}; give --frames, --height, --width and --fit") from None
    return tokenizer


def _perceptual(name: str) -> tuple[list, dict[str, str]]:
    from poet.evaluation.metrics.perceptual import distance
    from poet.tokenizers.video import perceptual

    if not name:
        return [], {}
    choose(name, perceptual.NETWORKS, "--perceptual")
    try:
        return [distance(perceptual.load(name))], {}
    except UserError as error:
        return [], {"perceptual distance": str(error)}


COMMAND = command.Command(
    summary="Compare two sets of clips, whoever made them.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="generated_clips --against=real_clips --out=scores",
    place=85,
)
