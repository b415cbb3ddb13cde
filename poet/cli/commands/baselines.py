"""`poet baselines`: trivial submissions, which a model must beat."""

from __future__ import annotations

import argparse

from poet.cli import command
from poet.runs import outputs
from poet.spec import UserError
from poet.spec.base import MOST_FRAMES, MOST_SEED


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("clips", metavar="CLIPS", help="the set that models are scored on: a folder of clips or a TFDS folder")
    add("--split", default="", help="of it; default: its only one")
    add("--training", required=True, metavar="FOLDER", help="such a folder, of what models are trained on")
    add("--training_split", default="", help="default: its only one")
    add(
        "--conditioning_frames",
        type=command.number(int, at_least=1, at_most=MOST_FRAMES),
        default=1,
        help="frames of a clip that condition a model",
    )
    add("--rate_hz", type=command.number(float, at_least=0, at_most=1000), default=0.0, help="where no file states it")
    add("--seed", type=command.number(int, at_least=0, at_most=MOST_SEED), default=0, help="of what is random")
    command.out_argument(parser)


def _run(args: argparse.Namespace) -> None:
    from poet.evaluation import baselines
    from poet.evaluation.score import sides

    output = outputs.claim_of(args, outputs.BASELINES, [args.clips, args.training])
    named = [("CLIPS", args.clips, args.split), ("--training", args.training, args.training_split)]
    wanted = sides.Format(frames=0, height=0, width=0, rate_hz=args.rate_hz)
    (real, training), clip, done = sides.open_all(named, wanted, fit=True)
    if args.conditioning_frames > clip.frames:
        raise UserError(f"--conditioning_frames={args.conditioning_frames}: the clips have {clip.frames} frames")
    with output:
        made = baselines.make(real, training, args.conditioning_frames, args.seed, output.folder)
    print("\n".join([*done, *baselines.text(made, args.out, args.clips)]))


COMMAND = command.Command(
    summary="Make trivial submissions that a model must beat.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="test_clips --training=train_clips --out=trivial",
    place=84,
)
