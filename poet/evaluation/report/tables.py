"""Rows of measurements as text: one aligned table per metric, and the same cells for HTML.

A row is a flat dict.  Keys end in their unit (`psnr_db`, `loss_nats`); `<key>_error` is the standard
error of `<key>` and `<key>_n` the number of values in it, which are shown beside it; `<key>_low` and
`<key>_high` bound it and are not shown; None is a value that does not exist.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

ERROR, COUNT, BOUNDS = "_error", "_n", ("_low", "_high")
MISSING = "–"
UNITS = {"db": "dB", "nats": "nats", "s": "s", "hz": "Hz", "bytes": "bytes"}
ACRONYMS = ("PSNR", "SSIM")


@dataclasses.dataclass(frozen=True)
class Cells:
    """A table as text: column titles, cells, and which columns are numbers."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]


def cells(rows: Sequence[Row]) -> Cells:
    """Cells of rows; the columns are the keys in the order of their first appearance."""
    every = dict.fromkeys(key for row in rows for key in row)
    beside = {key + ending for key in every for ending in (ERROR, COUNT, *BOUNDS)}
    keys = [key for key in every if key not in beside]
    return Cells(
        tuple(map(title, keys)),
        tuple(tuple(_cell(row, key) for key in keys) for row in rows),
        tuple(_is_numeric([row.get(key) for row in rows]) for key in keys),
    )


def title(key: str) -> str:
    """'psnr_db' -> 'PSNR (dB)', 'unigram_entropy_nats' -> 'unigram entropy (nats)'."""
    *words, last = key.split("_")
    if not words or last not in UNITS:
        words, last = [*words, last], ""
    words = [w.upper() if w.upper() in ACRONYMS else w for w in words]
    return " ".join(words) + (f" ({UNITS[last]})" if last else "")


def number(value: Any) -> str:
    """Integers whole, floats to three decimals, very small or large ones to four digits."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        if math.isfinite(value) and value != 0 and not 1e-3 <= abs(value) < 1e6:
            return f"{value:.4g}"
        return f"{value:.3f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def format_table(rows: Sequence[Row], heading: str = "") -> str:
    """Aligned text: words to the left, numbers to the right, two spaces between columns."""
    table = cells(rows)
    lines = [table.titles, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    body = [_line(line, widths, table.numeric) for line in lines]
    body.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join([heading, *body] if heading else body)


def _line(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    placed = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric))
    return "  ".join(placed).rstrip()


def _cell(row: Row, key: str) -> str:
    error, count = row.get(key + ERROR), row.get(key + COUNT)
    spread = f" ± {number(error)}" if error is not None else ""
    return number(row.get(key)) + spread + (f" (n {number(count)})" if count is not None else "")


def _is_numeric(values: Sequence[Any]) -> bool:
    present = [v for v in values if v is not None]
    return bool(present) and all(isinstance(v, (int, float)) for v in present)
