"""`poet watermark`: is a film or a picture one that poet made?"""

from __future__ import annotations

import argparse
import json

from poet.cli import command


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=("check",), help="check: count the bits of the mark that files carry")
    add("files", nargs="+", metavar="FILE", help="films and pictures (not strips of frames or contact sheets)")
    add("--json", action="store_true", help="print it as JSON, an object a file")


def _run(args: argparse.Namespace) -> int:
    """0 where all files carry the mark, else 1."""
    from poet.media import watermark

    found = {file: watermark.check(file) for file in args.files}
    if args.json:
        told = [
            {"file": file, **it._asdict(), "found": it.is_marked, "chance": it.chance} for file, it in found.items()
        ]
        print(json.dumps({"bits": watermark.BITS, "enough": watermark.ENOUGH, "files": told}, indent=2))
    else:
        print("\n".join(f"{file}: {it}" for file, it in found.items()))
    return int(not all(it.is_marked for it in found.values()))


COMMAND = command.Command(
    summary="Find the invisible watermark of what poet made.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="check clips/000.mp4",
    place=91,
    quiet=True,
)
