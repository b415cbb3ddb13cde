"""`poet status`: how a run stands, and on what its time went; from its files, whoever trains it."""

from __future__ import annotations

import argparse
import json
import sys
import time

from poet.cli import command
from poet.cli.tables import columns, duration
from poet.runs import status
from poet.runs.buckets.files import is_url
from poet.runs.run import Run
from poet.runs.status import Status

_CLEAR = "\033[2J\033[H"


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("workdir", metavar="WORKDIR", help="of `poet train` or `poet tokenizer-train`; a folder, or gs://BUCKET/FOLDER")
    add("--json", action="store_true", help="print one JSON object")
    add(
        "--watch",
        type=command.number(float, at_least=0.1, at_most=86_400),
        metavar="S",
        help="print it again every S seconds, until no process trains the run any more",
    )


def _run(args: argparse.Namespace) -> None:
    while True:
        found = status.in_bucket(args.workdir) if is_url(args.workdir) else status.of(Run(args.workdir))
        text = json.dumps(found.as_json(), allow_nan=False) if args.json else report(found)
        print((_CLEAR if args.watch and sys.stdout.isatty() else "") + text, flush=True)
        if not args.watch or found.running is False:
            return
        time.sleep(args.watch)


def report(found: Status) -> str:
    """The text of the command."""
    rows = [
        ("run", _state(found)),
        ("step", _step(found)),
        ("loss", "  ".join(f"{name} {value:.4g}" for name, value in _first_loss(found))),
        ("speed", _speed(found)),
        ("saved", _saved(found)),
        ("time", _time(found)),
        *(("alert", f"step {step}: {text}") for step, text in found.alerts),
    ]
    return columns([{"name": name, "text": text} for name, text in rows if text], head=False)


def _state(found: Status) -> str:
    silent = "" if found.silent_s is None else f", last sign {duration(found.silent_s)} ago"
    if found.running:
        return f"{found.workdir}: running ({found.holder}){silent}"
    last = found.account.last if found.account else {}
    ended = f", ended: {last.get('outcome', 'killed, or its machine was lost')}" if last else ""
    state = "not running" if found.running is False else "not known whether it runs"
    return f"{found.workdir}: {state}{ended}{silent}"


def _step(found: Status) -> str:
    if found.step is None:
        return f"none yet of {found.steps}" if found.steps else "none yet"
    share = f" of {found.steps} ({100 * found.step / found.steps:.1f} %)" if found.steps else ""
    left = "" if found.left_s is None else f", {duration(found.left_s)} left"
    return f"{found.step}{share}{left}"


def _first_loss(found: Status) -> list[tuple[str, float]]:
    """The loss of all groups, or of the only one, first."""
    ordered = sorted(found.losses.items(), key=lambda item: (item[0] != "loss", item[0]))
    return ordered[:1]


def _speed(found: Status) -> str:
    speed = found.speed
    parts = [f"{speed[name]:.4g} {name.removesuffix('_per_s')}/s" for name in speed if name.endswith("_per_s")]
    parts += [f"MFU {100 * speed['mfu']:.1f} %"] if "mfu" in speed else []
    parts += [f"waits for data {100 * speed['data_wait']:.0f} % of the time"] if "data_wait" in speed else []
    return ", ".join(parts)


def _saved(found: Status) -> str:
    if found.saved is None:
        return "no checkpoint"
    failed = f", {found.checkpoint_failures} saves failed" if found.checkpoint_failures else ""
    written = duration(time.time() - found.saved.written)
    return f"step {found.saved.step}, {written} ago; {found.checkpoints} checkpoints{failed}"


def _time(found: Status) -> str:
    account = found.account
    if account is None or account.goodput is None:
        return ""
    parts = [
        f"{cause} {100 * seconds / account.total_s:.1f} %"
        for cause, seconds in account.seconds.items()
        if cause != "steps" and seconds >= 0.0005 * account.total_s
    ]
    starts = f"{account.starts} start{'s' * (account.starts != 1)}"
    rest = f"; {', '.join(parts)}" if parts else ""
    return f"{duration(account.total_s)} in {starts}: goodput {100 * account.goodput:.1f} %{rest}"


COMMAND = command.Command(
    summary="Say how a run stands: step, loss, speed, goodput by cause, last checkpoint, time left, anomalies.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="runs/mine",
    place=72,
    quiet=True,
)
