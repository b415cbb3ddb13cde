"""`poet supervise -- COMMAND`: another command of poet, started again where its exit code says that this may help."""

from __future__ import annotations

import argparse
import sys

from poet.cli import command
from poet.runs import supervise
from poet.runs.run import Run
from poet.spec import UserError

# Commands with a work dir, whose saved steps are their progress.
_FLAG = "--workdir"


def _arguments(parser: argparse.ArgumentParser) -> None:
    rule = supervise.Rule()
    add = parser.add_argument
    add(
        "--most",
        type=command.number(int, at_least=0, at_most=10**6),
        default=rule.most,
        help="restarts without progress, after which it stops with exit code 74",
    )
    add(
        "--least_steps",
        type=command.number(int, at_least=1, at_most=10**9),
        default=rule.least_steps,
        help="saved steps that are progress; other commands than trainings make none",
    )
    add(
        "--wait_s",
        type=command.number(float, at_least=0, at_most=1e6),
        default=rule.first_wait_s,
        help="seconds before the first restart without progress; they double at each further one",
    )


def _run(args: argparse.Namespace) -> int:
    if not args.rest:
        raise UserError("no command was given: poet supervise -- train --workdir=FOLDER ...")
    rule = supervise.Rule(most=args.most, least_steps=args.least_steps, first_wait_s=args.wait_s)
    folder = _workdir(args.rest)
    argv = [sys.executable, "-m", "poet.cli", *args.rest]
    return supervise.Supervisor(argv, rule, lambda: _saved(folder), stderr=sys.stderr).run()


def _saved(folder: str) -> int:
    return max(Run.to_train(folder).steps(), default=0) if folder else 0


def _workdir(words: list[str]) -> str:
    """What the flag of the work dir says among the words of a command; '' for a command without one."""
    for place, word in enumerate(words):
        if word.startswith(f"{_FLAG}="):
            return word.removeprefix(f"{_FLAG}=")
        if word == _FLAG and place + 1 < len(words):
            return words[place + 1]
    return ""


COMMAND = command.Command(
    summary="Start another command again after crashes, as long as it makes progress.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="-- train --gin_file=gin/experiments/quickstart.gin --gin.DATA.store=CODES --workdir=runs/mine",
    place=75,
    wraps=True,
)
