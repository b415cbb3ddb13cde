"""`poet eval`: evaluates checkpoints."""

from __future__ import annotations

import argparse
import contextlib
import logging
from pathlib import Path

from poet.cli import command
from poet.runs import outputs
from poet.spec import UserError, choose

_LOG = logging.getLogger(__name__)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="a work dir, a checkpoint, or a folder of released weights; several are put side by side, and compared "
        "with the first",
    )
    command.checkpoint_arguments(parser, required=False)
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
    parser.add_argument(
        "--parts",
        default="",
        metavar="FOLDER",
        help="where finished tables are kept: what was measured there before is read; default: OUT/parts",
    )


def _run(args: argparse.Namespace) -> None:
    """Writes OUT/eval.json, eval.csv and report.html, and prints the tables."""
    command.start_processes(args)
    from poet.cli import built_in, stores
    from poet.distributed import processes
    from poet.evaluation import runner

    for name in args.metrics:
        choose(name, runner.TABLES, "--metric")
    opened = [command.open_run(path, args.bindings) for path in _paths(args)]
    chosen = runner.subjects(opened)
    processes.from_first(lambda: _claimed(args, chosen) and None)
    scores = args.scores and processes.from_first(
        lambda: str(outputs.claim_file(args.scores, overwrite=args.overwrite, flag="--scores"))
    )
    write = lambda resolved: stores.write(resolved, stores.load_encoders(resolved), None, _LOG.info)
    chosen = runner.subjects([(run, built_in.supply(run, resolved, write)) for run, resolved in opened])
    with _claimed(args, chosen) if processes.first() else contextlib.nullcontext() as output:
        out = output.folder if output else args.out
        kept = Path(args.parts or f"{args.out}/{runner.PARTS}").expanduser().absolute()
        runner.evaluate_all(chosen, out, kept, args.metrics or None, Path(scores) if scores else None)


def _paths(args: argparse.Namespace) -> list[str]:
    paths = [*([args.checkpoint] if args.checkpoint else []), *args.checkpoints]
    if not paths:
        raise UserError("no checkpoint was named: give a work dir, a checkpoint, or a folder of released weights")
    if args.scores and len(paths) > 1:
        raise UserError(f"--scores is of one checkpoint, {len(paths)} were named")
    return paths


def _claimed(args: argparse.Namespace, chosen: list) -> outputs.Output:
    """The output folder; UserError also where it holds finished tables of another checkpoint alone."""
    from poet.evaluation import runner

    used = [[s.run.folder, s.resolved.spec.data.store, s.resolved.spec.eval.source] for s in chosen]
    inputs = [path for paths in used for path in paths]
    claimed = outputs.claim(args.out, outputs.EVALUATION, overwrite=args.overwrite, inputs=inputs, resumed=runner.PARTS)
    if not args.parts and not args.overwrite:
        runner.check_parts(claimed.final / runner.PARTS, chosen)
    return claimed


COMMAND = command.Command(
    summary="Evaluate checkpoints, side by side.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="runs/mine --out=scores",
    place=80,
)
