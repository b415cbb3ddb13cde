"""Finished tables of `poet eval`, kept on the disk so that an evaluation that was stopped goes on, and so that
checkpoints are compared example by example.

    FOLDER/KEY/part.json    rows, notes, numbers, media
    FOLDER/KEY/values.npz   what each number is a sum of, example by example
    FOLDER/KEY/...          pictures and clips
    FOLDER/KEY/MANIFEST     their hashes: a table that was damaged is measured again

KEY is a hash of all that the table depends on: checkpoint, settings, data, networks, code.  What is found under a
key may be read instead of being measured; nothing else is ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet.evaluation import metric
from poet.evaluation.metric import Found, Summary, Values
from poet.evaluation.record import Table, jsonable, write
from poet.runs import manifest
from poet.runs.arrays import read_npz
from poet.spec import limited

FORMAT = 2
PART, VALUES = "part.json", "values.npz"
_FIELDS = tuple(field.name for field in dataclasses.fields(Values))
_SUMMARY = tuple(field.name for field in dataclasses.fields(Summary))
_PARTIAL = ".partial"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """One number of a row.

    Attributes:
      row: what the row is of: names such as its task and stream.
      values: what it is a sum over count of, where it is one.
    """

    row: Mapping[str, str]
    metric: str
    better: str
    summary: Summary
    values: Values | None = None

    @property
    def name(self) -> str:
        """The row in a few words."""
        return " · ".join(self.row.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A finished table.

    Attributes:
      table, media: as `eval.json` holds them.
      numbers: of all rows, those of a row together.
      examples: as `Table.examples`.
      seconds: that it took.
    """

    table: Mapping[str, Any]
    media: Sequence[Mapping[str, Any]]
    numbers: Sequence[Number]
    examples: str
    seconds: float

    @classmethod
    def of(cls, table: Table, seconds: float) -> Part:
        """Of what was measured."""
        rows = zip(table.rows, table.found)
        return cls(
            table=table.json,
            media=table.pictures,
            numbers=[number for row, found in rows for number in _numbers(row, found)],
            examples=table.examples,
            seconds=seconds,
        )


def _numbers(row: Mapping[str, Any], found: Found) -> Iterator[Number]:
    names = {key: value for key, value in row.items() if isinstance(value, str)}
    for name, each in found.items():
        values = each.state if isinstance(each.state, Values) else None
        yield Number(row=names, metric=name, better=each.metric.better, summary=each.summary, values=values)


def key_of(depends: Mapping[str, Any]) -> str:
    """The key of a table, 16 hex characters."""
    content = json.dumps(jsonable({"format": FORMAT, **depends}), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The finished tables below a folder."""

    folder: Path

    def checkpoints(self) -> dict[str, str]:
        """Fingerprint -> path of the checkpoints that tables here are of."""
        found = (_json(file) for file in self.folder.glob(f"*/{PART}"))
        return {part["checkpoint"]["fingerprint"]: part["checkpoint"]["path"] for part in found if part}

    def keep_only(self, keys: Iterable[str]) -> None:
        """Removes all other tables, and what a killed process left."""
        wanted = set(keys)
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in wanted and path.is_dir() and ((path / PART).is_file() or path.suffix == _PARTIAL):
                shutil.rmtree(path)

    def write(self, key: str, part: Part, checkpoint: Mapping[str, str], media: Path) -> None:
        """Keeps a table whole or not at all; its files are copied from `media`.

        Args:
          checkpoint: its path and fingerprint.
        """
        partial = self.folder / f"{key}{_PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _copy(part.media, media, partial)
        arrays = {f"{i}_{f}": getattr(n.values, f) for i, n in enumerate(part.numbers) if n.values for f in _FIELDS}
        np.savez_compressed(partial / VALUES, **arrays)
        numbers = [
            {"row": n.row, "metric": n.metric, "better": n.better, **dataclasses.asdict(n.summary)}
            for n in part.numbers
        ]
        kept = {name: getattr(part, name) for name in ("table", "media", "examples", "seconds")}
        write(partial / PART, {"format": FORMAT, "checkpoint": checkpoint, **kept, "numbers": numbers})
        manifest.write(partial, {"kind": "table"})
        shutil.rmtree(self.folder / key, ignore_errors=True)
        os.rename(partial, self.folder / key)

    def read(self, key: str, media: Path) -> Part | None:
        """A table, whose files are copied to `media`; None where it is not there, or not whole."""
        folder = self.folder / key
        try:
            manifest.verify(folder)
        except manifest.Corrupt:
            return None
        found, arrays = json.loads((folder / PART).read_text(encoding="utf-8")), read_npz(folder / VALUES)
        _copy(found["media"], folder, media)
        numbers = [_number(fields, i, arrays) for i, fields in enumerate(found["numbers"])]
        return Part(numbers=numbers, **{name: found[name] for name in ("table", "media", "examples", "seconds")})


def _number(fields: Mapping[str, Any], index: int, arrays: Mapping[str, np.ndarray]) -> Number:
    there = f"{index}_{_FIELDS[0]}" in arrays
    return Number(
        **{name: fields[name] for name in ("row", "metric", "better")},
        summary=Summary(**{name: fields[name] for name in _SUMMARY}),
        values=Values(**{name: arrays[f"{index}_{name}"] for name in _FIELDS}) if there else None,
    )


def finish_of(number: Number) -> Any:
    """What makes the number of its sum over count; None where that is the number."""
    declared = metric.METRICS.get(number.metric)
    return declared.finish if declared else None


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(limited(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def _copy(media: Sequence[Mapping[str, Any]], source: Path, target: Path) -> None:
    for name in (name for one in media for name in one["files"].values()):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
