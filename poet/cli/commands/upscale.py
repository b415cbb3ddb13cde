"""`poet upscale`: clips at twice their height and width, by super-resolution networks."""

from __future__ import annotations

import argparse

from poet.cli import command
from poet.runs import outputs

_FLAGS = {
    "steps": int,
    "temperature": float,
    "guidance": float,
    "text_guidance": float,
    "consistency": float,
    "detail": float,
    "steadiness": float,
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("clips", nargs="+", metavar="CLIP", help="a video or picture")
    add(
        "--checkpoint",
        action="append",
        required=True,
        help="work dir, checkpoint, released weights or export of super-resolution (repeatable, one after the other)",
    )
    command.out_argument(parser)
    add(
        "--to",
        type=command.side,
        default=0,
        metavar="ROWS",
        help="check that the result has this height (default: no check)",
    )
    add("--prompt", action="append", default=[], help="text of all clips, or of each (repeatable)")
    add("--seed", type=int, default=0, help="seed of the noise")
    command.watermark_argument(parser)
    for name, kind in _FLAGS.items():
        add(f"--{name}", type=kind, default=None, help=f"SUPER_RESOLUTION.{name} (default: that of the checkpoint)")


def _run(args: argparse.Namespace) -> None:
    from poet.sampling import larger, upscaling
    from poet.spec import config

    given = {name: getattr(args, name) for name in _FLAGS}
    flags = [f"SUPER_RESOLUTION.{name}={value}" for name, value in given.items() if value is not None]
    runs = [larger.find(path) for path in args.checkpoint]
    output = outputs.claim_of(args, outputs.GENERATION, [*args.clips, *(run.folder for run in runs)])
    upscalers = [
        one for run in runs for one in larger.load(run, lambda spec: config.override(spec, [*args.bindings, *flags]))
    ]
    names = [str(run.checkpoint.path) for run in runs]
    with output:
        files = list(
            upscaling.run(
                args.clips,
                upscalers,
                output.folder,
                to=args.to,
                prompts=args.prompt,
                seed=args.seed,
                names=names,
                unmarked="" if args.watermark is None else "--no_watermark was given",
            )
        )
    for path in files:
        print(output.where(path))


COMMAND = command.Command(
    summary="Double the height and width of clips by a super-resolution network.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="clip.mp4 --checkpoint=runs/superres --to=128 --out=larger",
    place=95,
)
