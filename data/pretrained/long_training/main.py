"""The command line of data/pretrained/train.sh."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from long_training import runner  # noqa: E402
from long_training.stages import RECIPES, stages  # noqa: E402

CHECKOUT = HERE.parents[3]
NICENESS = 19


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = list(stages(RECIPES["cpu"], pathlib.Path("WORK"), CHECKOUT))
    parser = argparse.ArgumentParser(
        prog="train.sh", description="Train the shipped weights from scratch; run it again to resume."
    )
    add = parser.add_argument
    add(
        "stages",
        nargs="*",
        metavar="STAGE",
        help=f"stages to run, in this order: {', '.join(names)} (default: all but sound, whose weights ship)",
    )
    add("--work", default="runs/pretrained", help="work folder (default: runs/pretrained of the checkout)")
    add("--hours", type=float, default=None, help="stop at a checkpoint after so many hours")
    add("--device", choices=("cpu", "gpu"), default="cpu", help="recipe: two cores, or one accelerator")
    add("--smoke", action="store_true", help="run every stage at toy sizes, as a check")
    add("--status", action="store_true", help="print the progress of the stages")
    add("--plan", action="store_true", help="print the stages with estimated times")
    add("--from", dest="origin", default=".", help=argparse.SUPPRESS)  # Where the user stood.
    options = parser.parse_args(arguments)
    for name in options.stages:
        if name not in names:
            parser.error(f"unknown stage {name!r}: give one of {', '.join(names)}")
    if options.hours is not None and not options.hours > 0:
        parser.error(f"--hours={options.hours:g}: give a positive number")
    given = pathlib.Path(options.work).expanduser()
    default = options.work == parser.get_default("work")
    options.work = (CHECKOUT if default else pathlib.Path(options.origin)).resolve() / given
    options.recipe = "smoke" if options.smoke else options.device
    return options


def pinned(work: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The code that this work dir is trained by, WORK/code, and its commit: that of the first start.

    What becomes of the checkout does then not touch the training.  Without git the checkout itself is taken.
    """
    code, stamp = work / "code", work / "commit"
    if stamp.exists():
        return code, stamp.read_text().strip()
    git = ["git", "-C", str(CHECKOUT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        shutil.rmtree(code, ignore_errors=True)
        code.mkdir(parents=True)
        archive = subprocess.run([*git, "archive", commit], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(code)], input=archive, check=True)
    except (OSError, subprocess.CalledProcessError):
        return CHECKOUT, "unknown"
    stamp.write_text(commit + "\n")
    print(
        f"{code} holds the code of commit {commit[:12]}, which all that follows runs; changes of the checkout that "
        "are not committed, or come later, do not touch it (delete the folder's `commit` to take the newest)"
    )
    return code, commit


def tell(work: pathlib.Path) -> None:
    """Prints WORK/status.json in words."""
    status = runner.read_json(work / "status.json")
    if not status:
        print(f"{work}: nothing was begun")
        return
    state = status.get("state", "?")
    if state == "running" and not runner.running(work):
        state = "killed"
    commit = status.get("commit", "?")[:12]
    print(f"{work}: {state}, {status.get('recipe')} recipe, commit {commit}, last heard of {status.get('when')}")
    for name, own in status.get("stages", {}).items():
        print("  " + _stage_line(name, own, state))


def _stage_line(name: str, own: dict[str, Any], state: str) -> str:
    shown = state if own.get("state") == "running" else own.get("state", "?")
    line = f"{name:10s} {shown:9s} {own['seconds'] / 3600:6.2f} h"
    if own.get("step"):
        line += f"   step {own['step']} of {own.get('of', '?')}, loss {own.get('loss', float('nan')):.4g}"
    return line


def chosen(options: argparse.Namespace, code: pathlib.Path) -> list[runner.Stage]:
    """The stages that were named, or all that are not done on request alone."""
    table = stages(RECIPES[options.recipe], options.work, code)
    if options.stages:
        return [stage for name, stage in table.items() if name in options.stages]
    return [stage for stage in table.values() if not stage.on_request]


def check_recipe(work: pathlib.Path, recipe: str) -> None:
    """Raises Mistake where the work dir was begun with another one."""
    begun = runner.read_json(work / "status.json").get("recipe", recipe)
    if begun != recipe:
        raise runner.Mistake(
            f"{work} was begun with the {begun} recipe, not {recipe}: give its flags again, or another --work"
        )


def train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs the stages by the pinned code; the exit code."""
    deadline = None if options.hours is None else time.monotonic() + options.hours * 3600
    check_recipe(options.work, options.recipe)
    options.work.mkdir(parents=True, exist_ok=True)
    code, commit = (CHECKOUT, "the checkout") if options.smoke else pinned(options.work)
    if code != CHECKOUT:
        main = code / HERE.relative_to(CHECKOUT)
        os.execv(sys.executable, [sys.executable, str(main), *arguments, f"--work={options.work}"])
    with contextlib.suppress(OSError):
        os.nice(NICENESS - os.nice(0))
    with runner.held(options.work) as lock:
        about = {"recipe": options.recipe, "commit": commit, "process": os.getpid()}
        return runner.Runner(options.work, code, lock, about, deadline).run(chosen(options, code))


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    try:
        if options.status:
            tell(options.work)
        elif options.plan:
            from long_training import plan

            for line in plan.lines(chosen(options, CHECKOUT), options.device):
                print(line)
        else:
            return train(options, arguments)
    except runner.Mistake as error:
        print(f"train.sh: error: {error}", file=sys.stderr)
        return runner.USER
    return runner.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
