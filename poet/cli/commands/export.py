"""`poet export`: StableHLO programs, or the bare weights, of a checkpoint."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from poet.cli import command
from poet.runs import outputs
from poet.spec import Failure, UserError
from poet.tasks.registry import LANGUAGE_MODEL


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.checkpoint_arguments(parser)
    command.out_argument(parser)
    parser.add_argument(
        "--weights_only",
        action="store_true",
        help="write only safetensors and spec: a checkpoint of any network to release, without optimizer state",
    )
    parser.add_argument(
        "--check",
        default="",
        metavar="FILE",
        help="run the export in a new process, compare it with the checkpoint, and write the comparison to FILE",
    )


def _run(args: argparse.Namespace) -> None:
    from poet.sampling.generate import Generator
    from poet.serving import check
    from poet.serving import export as exporting

    run, resolved = command.open_checkpoint(args, args.bindings, "" if args.weights_only else LANGUAGE_MODEL)
    if args.weights_only and args.check:
        raise UserError("--check runs the exported programs, which --weights_only does not write")
    if args.check:
        for written in (Path(args.check), Path(args.check).with_suffix(".gif")):
            outputs.claim_file(written, overwrite=args.overwrite, flag="--check")
    folder = exporting.run(run, resolved, args.out, weights_only=args.weights_only, overwrite=args.overwrite)
    print(folder)
    if not args.check:
        return
    generator = Generator.from_checkpoint(run, exporting.in_dtype(resolved), resolved.spec.export.task)
    findings = check.compare(generator, folder, Path(args.check))
    for name, value in findings.items():
        print(f"{name.replace('_', ' ')}: {value}")
    if not all(value for name, value in findings.items() if name.endswith("_equal")):
        raise Failure(f"the export {folder} samples other tokens than the checkpoint")


COMMAND = command.Command(
    summary="Export StableHLO programs and weights, which run without this package.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=data/pretrained/lm_arenas --out=exported",
    place=100,
    log_level=logging.INFO,
)
