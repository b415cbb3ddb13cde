"""`poet export`: all tasks of a checkpoint as programs in one folder, or its bare weights."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from poet.cli import command
from poet.runs import outputs
from poet.runs.run import Run
from poet.spec import Failure, UserError

_LOG = logging.getLogger(__name__)


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.checkpoint_arguments(parser)
    command.out_argument(parser, required=False)
    add = parser.add_argument
    add(
        "--tasks",
        default="",
        metavar="all|NAME,...",
        help="the tasks that the folder holds: all that the checkpoint was trained on (the default), or some by name",
    )
    add(
        "--upscale",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="super-resolution network that makes clips larger, in the same folder (repeatable, one after the other); "
        "--checkpoint may be one too, for a folder without tasks",
    )
    add("--license", default="", metavar="FILE", help="the licence of the folder (default: the checkpoint's)")
    add(
        "--weights_only",
        action="store_true",
        help="write only safetensors and spec: a checkpoint of any network to release, without optimizer state",
    )
    add(
        "--refresh",
        default="",
        metavar="FOLDER",
        help="write the programs of this export anew, for the JAX that is installed; its weights stay",
    )
    add(
        "--check",
        default="",
        metavar="FILE",
        help="run the export in a new process, compare every task with the checkpoint, and write the table to FILE",
    )


def _run(args: argparse.Namespace) -> None:
    from poet.serving import export as exporting

    _check_flags(args)
    tasks = [f"EXPORT.tasks={tuple(args.tasks.split(','))!r}"] if args.tasks else []
    run, resolved = command.open_checkpoint(args, [*args.bindings, *tasks], network="")
    upscale = [Run.open(path) for path in args.upscale]
    if args.check:
        for written in (Path(args.check), Path(args.check).with_suffix(".gif")):
            outputs.claim_file(written, overwrite=args.overwrite, flag="--check")
    begin = time.perf_counter()
    if args.refresh:
        folder = exporting.refresh(run, args.refresh, upscale)
    else:
        folder = exporting.run(
            run,
            resolved,
            args.out,
            upscale=upscale,
            weights_only=args.weights_only,
            license_file=args.license,
            overwrite=args.overwrite,
        )
    print(folder)
    if not args.weights_only:
        _LOG.info("%s in %.0f s", _sizes(folder), time.perf_counter() - begin)
    if args.check:
        _compare(run, upscale, folder, Path(args.check))


def _check_flags(args: argparse.Namespace) -> None:
    if args.weights_only and (args.check or args.tasks or args.upscale):
        raise UserError("--check, --tasks and --upscale are of exported programs, which --weights_only does not write")
    if args.refresh and (args.out or args.tasks or args.weights_only or args.license or args.bindings):
        raise UserError(
            "--refresh changes nothing but the programs of its folder: give only --checkpoint, --upscale and --check"
        )
    if not args.refresh and not args.out:
        raise UserError("give the folder to write to as --out=FOLDER, or an export to write anew as --refresh=FOLDER")


def _sizes(folder: Path) -> str:
    def mib(pattern: str) -> float:
        return sum(file.stat().st_size for file in folder.glob(pattern)) / 2**20

    count = len(list(folder.glob("programs/*")))
    return f"weights of {mib('*.safetensors'):.1f} MiB and {count} programs of {mib('programs/*'):.1f} MiB"


def _compare(run: Run, upscale: Sequence[Run], folder: Path, out: Path) -> None:
    from poet.serving import check
    from poet.serving import export as exporting
    from poet.serving.runtime import Runtime

    runtime = Runtime.load(folder)
    larger = [one.resolved for one in runtime.upscalers][not runtime.tasks :]
    models = exporting.Models.load(run, runtime.resolved, upscale, larger)
    rows = check.compare(models.generator, folder, runtime.tasks, out, models.upscalers)
    print(check.table(rows))
    if not all(check.equal(row) for row in rows):
        raise Failure(f"the export {folder} samples other tokens than the checkpoint")


COMMAND = command.Command(
    summary="Export all tasks of a checkpoint as StableHLO programs and weights, which run without the model's code.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=data/pretrained/lm_arenas --out=exported",
    place=100,
)
