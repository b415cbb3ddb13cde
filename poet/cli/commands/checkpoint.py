"""`poet checkpoint`: checkpoints listed, verified, compared, and converted to released weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poet.cli import command
from poet.cli.tables import columns, duration
from poet.runs.buckets import mirror
from poet.runs.buckets.files import is_url
from poet.runs.run import CHECKPOINTS, Run, steps_among
from poet.spec import Failure, UserError
from poet.spec.base import DTYPES

if TYPE_CHECKING:
    from poet.checkpoints.comparison import Comparison
    from poet.checkpoints.listing import Entry

# Arrays that the table of `diff` has lines for; --json has all.
_LINES = 20


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "action",
        choices=tuple(_ACTIONS),
        help="list: each checkpoint with its step, size, age, state and what was measured at it; verify: compare "
        "every byte with its hash (exit code 1 if any is damaged); diff: settings and arrays in which two differ; "
        "convert: write the parameters as released weights",
    )
    add("paths", nargs="+", metavar="PATH", help="a work dir, a checkpoint or released weights; diff takes two")
    add("--json", action="store_true", help="print one JSON object")
    add("--quick", action="store_true", help="list: look for files, do not compare them with their hashes")
    add("--dtype", default="", choices=("", *DTYPES), help="convert: of the weights (default: as they are)")
    add("--part", default="params", help="convert: the part of the training state to write, such as ema")
    command.out_argument(parser, required=False)


def _run(args: argparse.Namespace) -> None:
    _check(args)
    _ACTIONS[args.action](args)


def _open(path: str) -> Run:
    """A run also where none of its checkpoints is whole."""
    if is_url(path):
        return Run.open(path)
    run = Run(Path(path).expanduser())
    return run if run.checkpoints.is_dir() else Run.open(path)


def _entries(path: str, *, hashes: bool = True) -> list[Entry]:
    """The checkpoints of a path, by its own name also where copies of them were looked at."""
    from poet.checkpoints import listing

    if not is_url(path):
        return listing.entries(_open(path), hashes=hashes)
    if not hashes:
        return listing.in_bucket(path)
    url, below = path.rstrip("/"), ""

    def choose(names: Collection[str]) -> str:
        nonlocal below
        below = CHECKPOINTS if steps_among(names) else ""
        return below

    copy = mirror.fetch(url, choose)
    found = listing.entries(Run(copy.parent) if below else Run.open(copy), hashes=hashes)
    theirs = f"{url}/{below}".rstrip("/")
    return [
        dataclasses.replace(e, **{name: getattr(e, name).replace(str(copy), theirs) for name in ("path", "problem")})
        for e in found
    ]


def _check(args: argparse.Namespace) -> None:
    wanted = 2 if args.action == "diff" else 1
    if len(args.paths) != wanted:
        raise UserError(f"{args.action} takes {wanted} path{'s' * (wanted > 1)}, got {len(args.paths)}")
    if (args.action == "convert") != bool(args.out):
        raise UserError("convert writes to --out=FOLDER, which the other actions do not take")
    if args.action != "convert" and (args.dtype or args.part != "params" or args.overwrite):
        raise UserError("--dtype, --part and --overwrite belong to convert")
    if args.quick and args.action != "list":
        raise UserError("--quick belongs to list")


# ---------------------------------------------------------------------------------------------- actions


def _list(args: argparse.Namespace) -> None:
    found = _entries(args.paths[0], hashes=not args.quick)
    _print(args, {"checkpoints": [entry.as_json() for entry in found]}, columns([_row(entry) for entry in found]))


def _verify(args: argparse.Namespace) -> None:
    from poet.checkpoints import listing

    found = [entry for entry in _entries(args.paths[0]) if entry.state not in listing.ENDINGS.values()]
    if not found:
        raise UserError(f"{args.paths[0]} holds no checkpoint to verify")
    bad = [entry for entry in found if not entry.whole]
    lines = [entry.problem or f"{entry.path}: {entry.state}" for entry in found]
    _print(args, {"whole": not bad, "checkpoints": [entry.as_json() for entry in found]}, "\n".join(lines))
    if bad:
        raise Failure(f"{len(bad)} of {len(found)} are not whole")


def _diff(args: argparse.Namespace) -> None:
    from poet.checkpoints import comparison

    found = comparison.compare(*(_open(path).checkpoint for path in args.paths))
    _print(args, found.as_json(), _differences(found))


def _convert(args: argparse.Namespace) -> None:
    from poet.checkpoints import conversion

    source, dtype = _open(args.paths[0]).checkpoint, args.dtype or None
    folder = conversion.convert(source, args.out, dtype=dtype, part=args.part, overwrite=args.overwrite)
    _print(args, {"written": str(folder)}, str(folder))


_ACTIONS = {"list": _list, "verify": _verify, "diff": _diff, "convert": _convert}


# ----------------------------------------------------------------------------------------------- output


def _print(args: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    print(json.dumps(value, indent=2, allow_nan=False) if args.json else text)


def _row(entry: Entry) -> dict[str, str]:
    losses = {name: value for name, value in entry.metrics.items() if name.split("/")[-1].startswith("loss")}
    name = next(iter(sorted(losses, key=len)), "")
    return {
        "step": "?" if entry.step is None else str(entry.step),
        "MiB": f"{entry.size_bytes / 2**20:,.1f}",
        "age": duration(time.time() - entry.written),
        "measured": f"{name} {losses[name]:.4g}" if name else "",
        "state": entry.problem or entry.state,
    }


def _differences(found: Comparison) -> str:
    if found.equal:
        return "settings and arrays are equal"
    settings = [
        {
            "setting": d.name,
            "first": repr(d.theirs),
            "second": repr(d.ours),
            "changes": d.changes + (" (a resume refuses it)" if d.name in found.refused else ""),
        }
        for d in found.settings
    ]
    differing = [array for array in found.arrays if not array.equal]
    ordered = sorted(differing, key=lambda a: (a.largest is not None, -(a.relative or 0.0), a.name))
    arrays = [
        {
            "array": a.name,
            "first": a.one,
            "second": "the same" if a.two == a.one else a.two,
            "largest": "" if a.largest is None else f"{a.largest:.3g}",
            "relative": "" if a.relative is None else f"{a.relative:.3g}",
        }
        for a in ordered[:_LINES]
    ]
    counted = f"{len(differing)} of {len(found.arrays)} arrays differ"
    more = f"; the {_LINES} that differ most:" if len(differing) > _LINES else ""
    return "\n\n".join(filter(None, (columns(settings), counted + more, columns(arrays))))


COMMAND = command.Command(
    summary="List, verify, compare or convert checkpoints.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="list runs/mine",
    place=75,
    quiet=True,
)
