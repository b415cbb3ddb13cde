"""`poet tokenizer-eval`: scores a video or audio tokenizer beside codecs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from poet.cli import command
from poet.runs import outputs
from poet.spec import UserError, choose

if TYPE_CHECKING:
    from poet.tasks.resolved import Resolved

_SETS = ("source", "atari", "natural", "game", "speech", "music", "effects")
_CODECS = ("x264", "x265", "opus", "none")


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.config_arguments(parser)
    command.out_argument(parser)
    add = parser.add_argument
    add(
        "--tokenizer",
        default="",
        help="folder of a trained tokenizer (VIDEO_TOKENIZER.path or AUDIO_TOKENIZER.path, as "
        "TOKENIZER_TRAIN.modality says)",
    )
    add(
        "--set",
        action="append",
        default=[],
        choices=_SETS,
        dest="sets",
        help="clips or sounds to score on (repeatable; default: all that are present). Video: 'source' is "
        "EVAL.source, EVAL.split. Audio: 'game' is EVAL.source, the others are in EVAL.sounds",
    )
    add(
        "--codec",
        action="append",
        default=[],
        choices=_CODECS,
        dest="codecs",
        help="codec to compare with (repeatable; default: all): x264 and x265 at the same rate, "
        "opus at 6 and 12 kbit/s",
    )
    add("--preset", default="slow", help="effort of the video codecs")
    add("--perceptual", default="vgg_hed", help="network of the perceptual distance, '' for none")


def _run(args: argparse.Namespace) -> None:
    """Writes OUT/tokenizer_scores.json and pictures, and prints the tables."""
    resolved = command.resolve(args)
    {"video": _video, "audio": _audio}[resolved.spec.tokenizer_train.modality](resolved, args)


def _refuse_others(flag: str, given: Sequence[str], allowed: Sequence[str], modality: str) -> None:
    for name in given:
        if name not in allowed:
            raise UserError(
                f"--{flag}={name} is not for TOKENIZER_TRAIN.modality = {modality!r}; give one of "
                f"{', '.join(allowed)}, or the configuration of another modality"
            )


def _audio(resolved: Resolved, args: argparse.Namespace) -> None:
    from poet.evaluation import sound_tokenizers, tokenizers
    from poet.evaluation.sets import sounds as sound_sets
    from poet.tokenizers.audio.base import AudioTokenizer

    _refuse_others("set", args.sets, list(sound_sets.SETS), "audio")
    _refuse_others("codec", args.codecs, ["opus", "none"], "audio")
    experiment = resolved.spec
    path = args.tokenizer or experiment.audio_tokenizer.path
    if not path:
        raise UserError("AUDIO_TOKENIZER.path is empty: give --tokenizer=FOLDER")
    output = outputs.claim_of(args, outputs.TOKENIZER_EVALUATION, [path, experiment.eval.source])
    tokenizer = AudioTokenizer.load(path)
    clip = experiment.clip.replace(sample_rate_hz=tokenizer.spec.sample_rate_hz)
    sets, skipped = sound_sets.open_sets(args.sets, tokenizer.spec, experiment.eval, clip.samples)
    with output:
        result = sound_tokenizers.evaluate(
            tokenizer,
            sets,
            output.folder,
            bit_rates=() if "none" in args.codecs else sound_tokenizers.OPUS_BIT_RATES,
            skipped=skipped,
        )
    print(tokenizers.summary(result))


def _video(resolved: Resolved, args: argparse.Namespace) -> None:
    from poet.evaluation import tokenizers, video_tokenizers
    from poet.evaluation.sets import clips as clip_sets
    from poet.tokenizers.video import perceptual
    from poet.tokenizers.video.base import VideoTokenizer

    _refuse_others("set", args.sets, list(clip_sets.SETS), "video")
    _refuse_others("codec", args.codecs, ["x264", "x265", "none"], "video")
    if args.perceptual:
        choose(args.perceptual, perceptual.NETWORKS, "--perceptual")
    experiment, spec = resolved.spec, resolved.spec.eval
    path = args.tokenizer or experiment.video_tokenizer.path
    output = outputs.claim_of(args, outputs.TOKENIZER_EVALUATION, [path, spec.source])
    names = args.sets or [name for name in clip_sets.SETS if name != "source" or spec.source]
    sets, skipped = clip_sets.open_sets(names, experiment.clip, spec.clips, spec.source, spec.split)
    depths = {
        name: clip_sets.source_depths(experiment.clip, spec.clips, spec.source, spec.split)
        for name in sets
        if name == "source"
    }
    with output:
        result = video_tokenizers.evaluate(
            VideoTokenizer.load(path),
            sets,
            output.folder,
            perceptual=perceptual.load(args.perceptual) if args.perceptual else None,
            comparators=[name for name in args.codecs or ("x264", "x265") if name != "none"],
            rate_hz=experiment.clip.rate_hz,
            preset=args.preset,
            skipped=skipped,
            conditions=experiment.conditioning,
            depths=depths,
        )
    print(tokenizers.summary(result))


COMMAND = command.Command(
    summary="Compare a video or audio tokenizer with codecs.",
    run=_run,
    arguments=_arguments,
    settings=command.FILES,
    example="--gin_file=gin/experiments/tokenizer_arenas.gin"
    " --tokenizer=data/pretrained/magvit_v2_64x8 --gin.EVAL.source=CLIPS --out=scores",
    place=30,
)
