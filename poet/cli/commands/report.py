"""`poet report`: the page of a quickstart run."""

from __future__ import annotations

import argparse
from pathlib import Path

from poet.cli import command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="folder of a quickstart run")


def _run(args: argparse.Namespace) -> None:
    """Writes WORKDIR/report.html; prints its path and the numbers of its head."""
    from poet.evaluation.report import run as reports

    folder = Path(args.workdir)
    reports.check_workdir(folder)
    print(reports.write_report(folder))
    for number, meaning in reports.figures(folder):
        print(f"  {number:>12s}  {meaning}.")


COMMAND = command.Command(
    summary="Write the report page of a quickstart run.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="--workdir=runs/quickstart",
    place=110,
    quiet=True,
)
