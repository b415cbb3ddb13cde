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
    parser.add_argument("--scores", default="", metavar="FILE",
        help="write the numbers that a card quotes (likelihood, condition gain) to this JSON file too")
    command.process_arguments(parser)
    parser.add_argument("--metric", action="append", default=[], dest="metrics", metavar="NAME",
        help="measure this one alone (repeatable; default: all that what is given allows)")


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
    scores = processes.from_first(lambda: _claimed_file(args.scores, args, "--scores"))
    resolved = built_in.supply(
        run, resolved, lambda r: stores.write(r, stores.load_encoders(r), None, _LOG.info)
    )
    with outputs.claim_of(args, outputs.EVALUATION, inputs) if processes.first() else contextlib.nullcontext() as output:
        out = output.folder if output else args.out
        kept = Path(scores) if scores else None
        runner.evaluate(run, resolved.spec, out, args.metrics or None, scores_file=kept)


def _claimed_file(path: str, args: argparse.Namespace, flag: str) -> str:
    """The absolute path of a file that may be written; '' for none."""
    return str(outputs.claim_file(path, overwrite=args.overwrite, flag=flag)) if path else ""


COMMAND = command.Command(
    summary="Evaluate a checkpoint.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=runs/mine --out=scores",
    place=80,
    log_level=logging.INFO,
)
