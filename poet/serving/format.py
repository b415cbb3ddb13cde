"""The folder of an export: its files, and its record of tasks and plans. README.md describes them.

The record describes every layout position by position, so that an export means what it meant when it was made,
whatever later versions lay out.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poet.runs import manifest
from poet.sampling import passes
from poet.sampling.plans import Plan
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec import UserError, read_object
from poet.spec.foreign import check_size
from poet.spec.vocabulary import Range, Vocabulary
from poet.tasks.layout import Layout, Segment

FORMAT = 9
# Formats of all tasks at any batch: 9 may hold super-resolution.
WHOLE = (8, FORMAT)
# Formats of one task at one batch, which `poet.serving.single` reads.
SINGLE = (5, 6, 7)
READ = (*SINGLE, *WHOLE)
SPEC, CARD, LICENSE, PROGRAMS = "spec.json", "README.md", "LICENSE", "programs"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WRITTEN_PIECES = "written_pieces.json"
# Inputs of `decode` after the rows, fields of `SamplingParams`.
SAMPLING_PARAMS = tuple(field.name for field in dataclasses.fields(SamplingParams))
# Inputs of `passes` after the rows.
PASSES_PARAMS = tuple(field.name for field in dataclasses.fields(passes.SamplingParams))


def program_file(name: str, platform: str = "") -> str:
    """Where a program lies in the folder; '' is one for all platforms."""
    return f"{PROGRAMS}/{name}{platform and '.' + platform}.stablehlo"


def describe_layout(layout: Layout) -> list[dict[str, Any]]:
    """The segments of a layout, in order."""
    return [
        {
            "stream": segment.stream,
            "part": segment.part,
            "length": segment.length,
            "role": segment.role,
            "low": segment.ids.low,
            "high": segment.ids.high,
            "grid": list(segment.grid),
            "time": segment.time,
        }
        for segment in layout.segments
    ]


def layout_of(described: Sequence[Mapping[str, Any]], vocabulary: Vocabulary) -> Layout:
    """The layout that `describe_layout` recorded."""
    return Layout(tuple(_segment(segment, vocabulary.tables) for segment in described))


def _segment(found: Mapping[str, Any], tables: Mapping[str, Range]) -> Segment:
    low, high, time = found["low"], found["high"], found.get("time")
    table = next(t for t in tables.values() if t.low <= low < t.high)
    return Segment(
        stream=found["stream"],
        part=found["part"],
        length=found["length"],
        role=found["role"],
        ids=Range(low, high, table.table, table.low),
        grid=tuple(found["grid"]),
        time=None if time is None else tuple(time),
    )


def describe(plan: Plan) -> dict[str, Any]:
    """The record of a plan, but for its layout."""
    return {
        "known": list(plan.known),
        "guided": plan.guided,
        "scaled": plan.scaled,
        "dropped": list(plan.dropped),
        "truncation": dataclasses.asdict(plan.truncation),
        "lags": list(plan.lags),
    }


def plan_of(record: Mapping[str, Any], layout: Layout) -> Plan:
    """The plan that `describe` recorded."""
    return Plan(
        layout=layout,
        known=tuple(record["known"]),
        guided=record["guided"],
        scaled=record.get("scaled", False),
        dropped=tuple(record["dropped"]),
        truncation=Truncation(**record["truncation"]),
        lags=tuple(record["lags"]),
    )


def open_folder(folder: Path) -> dict[str, Any]:
    """The record of an export whose every file is the one that its manifest lists.

    Files and folders whose names begin with a dot, as version control and downloads leave them, are not looked at.

    Raises UserError for another folder, a damaged one, or one of an unknown format.
    """
    if not (folder / manifest.NAME).is_file():
        raise UserError(f"{folder} is not an export: it holds no {manifest.NAME}")
    try:
        found = manifest.check_listed(folder)
    except manifest.Corrupt as error:
        raise UserError(f"{error}; export again, or fetch the folder again") from None
    _check_format(folder, found)
    _refuse_others(folder, found["files"])
    record = read_object(folder / SPEC)
    if "programs" not in record:
        raise UserError(f"{folder} holds weights alone: export without --weights_only")
    return record


def array_bytes(folder: Path) -> dict[str, int]:
    """Bytes of every array of an export's weights, by name; none is read."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            check_size(f"the header of {file}", length)
            header = json.loads(opened.read(length))
        ends = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        found |= {name: stop - start for name, (start, stop) in ends.items()}
    return found


def _check_format(folder: Path, found: Mapping[str, Any]) -> None:
    number = found.get("format")
    if number not in READ:
        later = isinstance(number, int) and number > FORMAT
        remedy = "use a newer version of poet" if later else "export it again from its checkpoint"
        raise UserError(
            f"{folder} has export format {number}, this version reads {', '.join(map(str, READ))}: {remedy}"
        )


def _refuse_others(folder: Path, listed: Mapping[str, str]) -> None:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and name.as_posix() not in (*listed, manifest.NAME):
            raise UserError(f"{folder} is damaged: {name} is not listed in its manifest; remove it")
