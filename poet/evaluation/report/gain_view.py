"""Condition gains (`poet.evaluation.condition_gain.row`) as a terminal and as a page show them."""

from __future__ import annotations

from collections.abc import Sequence

from poet.evaluation.report.charts import Bar
from poet.evaluation.report.tables import Row, number


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Nats per clip with their intervals, one bar a row, coloured by the predicted stream."""
    return [
        Bar(
            name=f"{r['task']}: {r['condition']} → {r['stream']}",
            value=r["nats_per_clip"],
            low=r["nats_per_clip_low"],
            high=r["nats_per_clip_high"],
            group=r["stream"],
        )
        for r in rows
        if r["nats_per_clip"] is not None
    ]


def terminal_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows for a terminal: gains with their intervals, one line each."""
    return [
        {
            "task": r["task"],
            "condition → stream": f"{r['condition']} → {r['stream']}",
            "nats/token": r["nats_per_token"],
            "nats/clip [95 %]": _bounded(r, "nats_per_clip"),
            "copy": "" if r["copyable"] is None else f"{r['copyable']:.0%}",
            "there": r["copyable_nats"],
            "right": "" if r["copyable_accuracy"] is None else f"{r['copyable_accuracy']:.0%}",
        }
        for r in rows
    ]


def _bounded(r: Row, key: str) -> str:
    if r[key] is None:
        return number(None)
    spread = "" if r[f"{key}_low"] is None else f" [{r[f'{key}_low']:.2f}, {r[f'{key}_high']:.2f}]"
    return f"{r[key]:.2f}{spread}"


def view(table: str, rows: Sequence[Row]) -> Sequence[Row]:
    """Rows of a named table for a terminal."""
    return terminal_rows(rows) if table == "condition_gain" else rows
