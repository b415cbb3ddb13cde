"""`poet eval`: evaluates a checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import logging
from pathlib import Path

from poet.cli import command
from poet.runs import outputs
from poet.spec import choose

_LOG = logging.getLogger(__name__)


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.checkpoint_arguments(parser)
    command.out_argument(parser)
    parser.add_argument(
        "--scores",
        default="",
        metavar="FILE",
        help="also write the numbers that a card quotes (likelihood, condition gain) to this JSON file",
    )
    command.process_arguments(parser)
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        dest="metrics",
        metavar="NAME",
        help="measure only this one (repeatable; default: all that the run and its files allow)",
    )


def _run(args: argparse.Namespace) -> None:
    """Writes OUT/eval.json and prints the tables."""
    command.start_processes(args)
    from poet.cli import built_in, stores
    from poet.distributed import processes
    from poet.evaluation import runner

    for name in args.metrics:
        choose(name, runner.TABLES, "--metric")
    run, resolved = command.open_checkpoint(args, args.bindings)
    inputs = [run.folder, resolved.spec.data.store, resolved.spec.eval.source]
    processes.from_first(lambda: outputs.claim_of(args, outputs.EVALUATION, inputs) and None)
    scores = args.scores and processes.from_first(
        lambda: str(outputs.claim_file(args.scores, overwrite=args.overwrite, flag="--scores"))
    )
    resolved = built_in.supply(run, resolved, lambda r: stores.write(r, stores.load_encoders(r), None, _LOG.info))
    with (
        outputs.claim_of(args, outputs.EVALUATION, inputs) if processes.first() else contextlib.nullcontext() as output
    ):
        out = output.folder if output else args.out
        runner.evaluate(run, resolved, out, args.metrics or None, Path(scores) if scores else None)


COMMAND = command.Command(
    summary="Evaluate a checkpoint.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=runs/mine --out=scores",
    place=80,
    log_level=logging.INFO,
)
