"""`report.html` of `poet eval`: one checkpoint, or several side by side, in one file that asks for nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from poet.evaluation import comparison
from poet.evaluation.report import charts, headlines, page, sections
from poet.evaluation.report.artifacts import Evaluation, Json
from poet.evaluation.report.charts import Bar

TITLE = "poet eval"
# Label of a checkpoint -> its evaluation.
Evaluations = Mapping[str, Evaluation]
BOUNDS = ("value", "low", "high")
SAMPLED, TRUE = ("sampled", "generated"), "true"


def document(evaluations: Evaluations, numbers: Sequence[Json]) -> str:
    """The page.

    Args:
      numbers: `comparison.rows`.
    """
    [first, *others] = evaluations.values()
    parts = several(evaluations, numbers) if others else single(first)
    records = {label: found.content for label, found in evaluations.items()}
    record = page.details("Everything that these numbers depend on", json.dumps(records, indent=2))
    shown = [(heading, content) for heading, content in parts if content]
    return page.document(TITLE, _lead(evaluations), [*shown, ("Record", record)])


def _lead(evaluations: Evaluations) -> str:
    parts = []
    for label, found in evaluations.items():
        content = found.content
        parts.append(f"<h3>{page.text(label)}</h3>" if len(evaluations) > 1 else "")
        where = f"{content['checkpoint']}, step {content['step']:,}, weights {content['fingerprint']}"
        parts.append(page.soft(f"{where}; split {content['split']}."))
        parts.append(page.tiles(headlines.of_evaluation(found)))
    return "".join(parts)


def single(found: Evaluation) -> list[tuple[str, str]]:
    """(Heading, HTML) of one checkpoint."""
    return [
        ("Conditions", sections.conditions(found)),
        ("Evaluation", sections.evaluations(found)),
        ("Frame prediction", sections.predictions(found)),
        ("Samples", sections.media_rows(found, "example")),
        ("Reconstructions", sections.reconstructions(found)),
    ]


def several(evaluations: Evaluations, numbers: Sequence[Json]) -> list[tuple[str, str]]:
    """(Heading, HTML) of several checkpoints."""
    named = {label: sections.evaluations(found) + sections.conditions(found) for label, found in evaluations.items()}
    return [
        ("Comparison", _compared(numbers)),
        ("Samples", _side_by_side(evaluations, "example")),
        ("Predicted frames", _side_by_side(evaluations, "frame_prediction")),
        *((f"Tables of {label}", content) for label, content in named.items()),
    ]


def _compared(numbers: Sequence[Json]) -> str:
    """Leading numbers: their differences as a table, then a chart for each table of the evaluation."""
    by_table: dict[str, list[Json]] = {}
    for row in comparison.leading(numbers):
        by_table.setdefault(row["table"], []).append(row)
    shown = [_chart(table, rows) for table, rows in by_table.items()]
    table = page.table(comparison.text_rows(numbers))
    return page.soft(comparison.note(numbers)) + table + page.charts(filter(None, shown))


def _chart(table: str, rows: Sequence[Json]) -> str:
    """A bar for each checkpoint of each row, those of a row together."""
    order = list(dict.fromkeys(row["row"] for row in rows))
    known = [row for row in rows if row["value"] is not None]
    bars = [
        Bar(name=f"{row['row']}, {row['checkpoint']}", group=row["checkpoint"], **{k: row[k] for k in BOUNDS})
        for row in sorted(known, key=lambda row: order.index(row["row"]))
    ]
    title = f"{table.replace('_', ' ').capitalize()}: {rows[0]['metric']}, with 95 % of resamples"
    return charts.bar_chart(bars, title=title, x_label=rows[0]["metric"]) if bars else ""


def _side_by_side(evaluations: Evaluations, kind: str) -> str:
    """A row for each clip: its condition, the sample of each checkpoint, the true clip."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for label, found in evaluations.items():
        for entry in found.media(kind):
            cards = rows.setdefault((entry["caption"], entry["key"]), {})
            for name, file in entry["files"].items():
                place = (label if name in SAMPLED else "") + name
                title = f"{label}: {name}" if name in SAMPLED else name
                cards.setdefault(place, page.card(found.folder / file, title, f"{title}, {entry['key']}"))
    return "".join(
        page.row(f"{caption} ({key})", page.group(_ordered(cards))) for (caption, key), cards in rows.items()
    )


def _ordered(cards: Mapping[str, str]) -> list[str]:
    """The true clip last."""
    return [card for name, card in cards.items() if name != TRUE] + [
        card for name, card in cards.items() if name == TRUE
    ]
