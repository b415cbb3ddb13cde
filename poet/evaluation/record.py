"""The result of an evaluation: tables of rows, as JSON, as CSV, as text, and for `poet.evaluation.report`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poet.evaluation import metric
from poet.evaluation.metric import Found, Metric
from poet.evaluation.report import gain_view, tables
from poet.evaluation.report.tables import Row
from poet.media import replacing

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
    """Pictures of one clip: label -> file below the output folder."""

    kind: str
    key: str
    caption: str
    note: str
    files: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One table of results.

    Attributes:
      rows: measurements; see `poet.evaluation.report.tables` for their keys.
      metrics: those among its columns; what each depends on goes into the record.
      notes: how to read it, a sentence each.
      curves: name -> value per frame of the clip, None where there is none.
      media: pictures.
      found: for each row, what its numbers come from; () where checkpoints are not compared by them.
      examples: fingerprint of what was measured: in two tables of one fingerprint, places are the same examples.
    """

    rows: Sequence[Row]
    metrics: Sequence[Metric] = ()
    notes: Sequence[str] = ()
    curves: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    media: Sequence[Media] = ()
    found: Sequence[Found] = ()
    examples: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """Rows, notes, curves, and the manifest of each metric."""
        kept = {name: getattr(self, name) for name in ("rows", "notes", "curves")}
        return jsonable(kept | {"manifests": metric.manifests(self.metrics)})

    @property
    def pictures(self) -> list[dict[str, Any]]:
        """`media` as JSON has them."""
        return [jsonable(dataclasses.asdict(one)) for one in self.media]


def content(
    subject: Mapping[str, Any], measured: Mapping[str, Table], skipped: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """The record as JSON holds it: `format`, the subject's fields, `metrics` (name of a table -> its rows, notes,
    curves and the manifest of each metric), `media` of all tables, `skipped` (name -> why), and `more`."""
    found = {name: table.json for name, table in measured.items()}
    return joined(subject, found, [one for table in measured.values() for one in table.pictures], skipped, **more)


def joined(
    subject: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Any]],
    media: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
    **more: Any,
) -> dict[str, Any]:
    """`content` of tables that are JSON already."""
    return jsonable({"format": FORMAT, **subject, "metrics": tables, "media": media, "skipped": skipped, **more})


def jsonable(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, Mapping):
        return {key: jsonable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Writes JSON as a whole or not at all."""
    text = json.dumps(jsonable(record), indent=2, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a line of titles; what a row has beside the columns is left out."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def text(record: Mapping[str, Any], heading: str = "", *, notes: bool = False) -> str:
    """The record as aligned text tables, then `notes` if asked for, then what was skipped."""
    blocks = [heading] if heading else []
    for name, found in record["metrics"].items():
        blocks.append(tables.format_table(gain_view.view(name, found["rows"]), name.replace("_", " ").upper()))
    if notes:
        every = dict.fromkeys(note for found in record["metrics"].values() for note in found["notes"])
        blocks.append("\n".join(every))
    blocks += [f"{name} skipped: {why}" for name, why in record["skipped"].items()]
    return "\n\n".join(blocks)
