"""`poet upscale-eval`: scores a super-resolution network beside resizing."""

from __future__ import annotations

import argparse

from poet.cli import command
from poet.runs import outputs
from poet.spec import choose
from poet.spec.base import MOST_STEPS
from poet.tasks.registry import SUPER_RESOLUTION

_SETS = ("source", "atari", "natural")


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.checkpoint_arguments(parser)
    command.out_argument(parser)
    add = parser.add_argument
    add(
        "--set",
        action="append",
        default=[],
        choices=_SETS,
        dest="sets",
        help="clips to score on (repeatable; default: all that are present); 'source' is EVAL.source, EVAL.split",
    )
    add(
        "--steps",
        action="append",
        default=[],
        type=command.number(int, at_least=1, at_most=MOST_STEPS),
        help="sampling steps, one row for each (repeatable; default: SUPER_RESOLUTION.steps)",
    )
    add("--perceptual", default="vgg_hed", help="network of the perceptual distance, '' for none")
    add("--seed", type=int, default=0, help="seed of the noise")


def _run(args: argparse.Namespace) -> None:
    """Writes OUT/upscale_scores.json and pictures, and prints the table."""
    from poet.evaluation import tokenizers, upscalers
    from poet.evaluation.sets import clips as clip_sets
    from poet.sampling.larger import from_checkpoint
    from poet.tokenizers.video import perceptual

    if args.perceptual:
        choose(args.perceptual, perceptual.NETWORKS, "--perceptual")
    run, resolved = command.open_checkpoint(args, args.bindings, SUPER_RESOLUTION)
    spec, clip = resolved.spec.eval, resolved.spec.clip
    output = outputs.claim_of(args, outputs.EVALUATION, [run.folder, spec.source])
    names = args.sets or [name for name in _SETS if name != "source" or spec.source]
    sets, skipped = clip_sets.open_sets(names, clip, spec.clips, spec.source, spec.split)
    upscaler = from_checkpoint(run, resolved)
    with output:
        result = upscalers.evaluate(
            upscaler,
            sets,
            output.folder,
            steps=args.steps,
            seed=args.seed,
            skipped=skipped,
            perceptual=perceptual.load(args.perceptual) if args.perceptual else None,
        )
    print(tokenizers.summary(result))


COMMAND = command.Command(
    summary="Compare a super-resolution network with resizing.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=runs/superres --gin.EVAL.source=CLIPS --out=scores",
    place=97,
)
