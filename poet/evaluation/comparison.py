"""Checkpoints side by side: each number of each, and how far it is from the first one's.

Where the same examples were measured, differences are paired: an interval resamples the same clips, films or batches
of both, so that what is hard for both cancels.

Shape suffixes: N examples that both have, G their groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from poet.evaluation import intervals
from poet.evaluation.metric import Values
from poet.evaluation.parts import Number, Part, finish_of
from poet.evaluation.record import csv_text
from poet.evaluation.report import tables

FORMAT = 1
# What a difference is, for who reads only words.
BETTER, WORSE, SAME, UNPAIRED = "better", "worse", "no difference found", "not the same examples"
COLUMNS = (
    "checkpoint", "table", "row", "metric", "value", "error", "low", "high", "n", "better",
    "baseline", "difference", "difference_low", "difference_high", "pairs", "verdict",
)  # fmt: skip
# What a checkpoint was found to have: table -> its part.
Parts = Mapping[str, Part]


def rows(found: Mapping[str, Parts]) -> list[dict[str, Any]]:
    """A row of `COLUMNS` for each number of each checkpoint; those of the first one have no difference.

    Args:
      found: label of a checkpoint -> its tables, in the order of the command.
    """
    labels = list(found)
    known = {_place(table, n): (n, part) for table, part in found[labels[0]].items() for n in part.numbers}
    made = []
    for label, parts in found.items():
        for table, part in parts.items():
            for number in part.numbers:
                first = known.get(_place(table, number)) if label != labels[0] else None
                made.append(_row(label, table, number) | (_against(labels[0], first, number, part) if first else {}))
    return made


def _place(table: str, number: Number) -> tuple[str, ...]:
    return table, number.metric, *number.row.values()


def _row(label: str, table: str, number: Number) -> dict[str, Any]:
    bounds = {name: getattr(number.summary, name) for name in ("value", "error", "low", "high", "n")}
    names = {"checkpoint": label, "table": table, "row": number.name, "metric": number.metric}
    return {**names, **bounds, "better": number.better}


def _against(label: str, first: tuple[Number, Part], number: Number, part: Part) -> dict[str, Any]:
    one, of = first
    values = one.values, number.values
    if None in (one.summary.value, number.summary.value):
        return {}
    if not (part.examples and part.examples == of.examples and all(values)):
        return {"baseline": label, "verdict": UNPAIRED}
    difference, low, high, pairs = paired(*values, finish_of(number))
    found = {"difference": difference, "difference_low": low, "difference_high": high, "pairs": pairs}
    return {"baseline": label, **found, "verdict": verdict(low, high, number.better)}


def verdict(low: float | None, high: float | None, better: str) -> str:
    """In a word what the interval of a difference says; '' of what is neither better nor worse."""
    if better == "neither":
        return ""
    if low is None or high is None or low <= 0 <= high:
        return SAME
    return BETTER if (low > 0) == (better == "more") else WORSE


def paired(one: Values, other: Values, finish: Any = None) -> tuple[float | None, float | None, float | None, int]:
    """(Other's number less one's, the bounds of its interval, the number of examples), over what both have."""
    _, places_N, theirs_N = np.intersect1d(one.places_N, other.places_N, assume_unique=True, return_indices=True)
    both_N = (one.counts_N[places_N] > 0) & (other.counts_N[theirs_N] > 0)
    places_N, theirs_N = places_N[both_N], theirs_N[both_N]
    if not len(places_N):
        return None, None, None, 0
    groups, index_N = np.unique(one.groups_N[places_N], return_inverse=True)
    sums = [
        tuple(np.bincount(index_N, x[kept_N], minlength=len(groups)) for x in (values.sums_N, values.counts_N))
        for values, kept_N in ((one, places_N), (other, theirs_N))
    ]
    first, second = ((finish or float)(float(s.sum() / c.sum())) for s, c in sums)
    low, high = intervals.difference_interval(*sums, finish) or (None, None)
    return second - first, low, high, len(places_N)


def leading(made: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rows of the first metric of each table that can be better or worse."""
    first: dict[str, str] = {}
    for row in made:
        if row["better"] != "neither":
            first.setdefault(row["table"], row["metric"])
    return (row for row in made if first.get(row["table"]) == row["metric"])


def csv_of(made: Sequence[Mapping[str, Any]], checkpoints: Mapping[str, Mapping[str, Any]]) -> str:
    """CSV: a row for each number, with what it depends on (`depends`, flat) in its row."""
    depends = dict.fromkeys(name for fields in checkpoints.values() for name in fields)
    return csv_text([*COLUMNS, *depends], [{**row, **checkpoints[row["checkpoint"]]} for row in made])


def text_rows(made: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The leading numbers, a line for each number of each further checkpoint, for a terminal and a page."""
    shown = list(leading(made))
    firsts = {(row["table"], row["row"]): row for row in shown if "baseline" not in row}
    return [
        {
            "table": row["table"].replace("_", " "),
            "row": row["row"],
            "metric": row["metric"],
            "first": firsts[row["table"], row["row"]]["value"],
            "checkpoint": row["checkpoint"],
            "value": row["value"],
            "difference [95 %]": _bounded(row),
            "verdict": row["verdict"],
        }
        for row in shown
        if "baseline" in row
    ]


def _bounded(row: Mapping[str, Any]) -> str:
    if row.get("difference") is None:
        return tables.MISSING
    bounds = row["difference_low"], row["difference_high"]
    spread = "" if None in bounds else f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]"
    return f"{row['difference']:+.3f}{spread}"


def note(made: Sequence[Mapping[str, Any]]) -> str:
    """How to read the differences."""
    first = made[0]["checkpoint"] if made else ""
    count = sum(row.get("difference") is not None for row in made)
    return (
        f"A difference is a checkpoint's number less that of the first one ({first}) over the same examples; its "
        f"interval holds 95 % of resamples of these. Of {count} differences about {count / 20:.0f} would "
        "exclude 0 by chance alone."
    )


def text(made: Sequence[Mapping[str, Any]]) -> str:
    """The leading numbers as a table, and how to read it."""
    return "\n".join([tables.format_table(text_rows(made), "COMPARISON"), "", note(made)])
