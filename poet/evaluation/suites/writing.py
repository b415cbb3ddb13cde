"""The files of a scored submission: JSON, CSV, text, a page of Markdown for a repository, and an HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from poet import media
from poet.evaluation import record
from poet.evaluation.comparison import SAME
from poet.evaluation.metric import METRICS
from poet.evaluation.report import charts, page, tables
from poet.evaluation.report.charts import Bar
from poet.evaluation.suites import submissions
from poet.evaluation.suites.cases import Real, Suite
from poet.evaluation.suites.scoring import SUBMISSION
from poet.evaluation.suites.tasks import TASKS, VIDEO, SuiteTask

RESULT, CSV, TEXT, MARKDOWN, PAGE = "benchmark.json", "benchmark.csv", "benchmark.txt", "benchmark.md", "report.html"
COLUMNS = (
    "task",
    "candidate",
    "kind",
    "metric",
    "value",
    "low",
    "high",
    "clips",
    "better",
    "difference",
    "difference_low",
    "difference_high",
    "deviations",
    "pairs",
    "verdict",
)
# Clips of each task that the page has.
SHOWN = 3
Json = Mapping[str, Any]


def write(folder: Path, result: Json, suite: Suite, reals: Sequence[Real], samples: Path) -> None:
    """Writes all files below a folder."""
    record.write(folder / RESULT, result)
    media.write_text(folder / CSV, csv(result))
    media.write_text(folder / TEXT, text(result) + "\n")
    media.write_text(folder / MARKDOWN, markdown(result))
    shown = {name: list(_clips(folder, TASKS[name], suite, reals, samples)) for name in result["tasks"]}
    media.write_text(folder / PAGE, document(result, shown))


def csv(result: Json) -> str:
    """A row for each number, with what it depends on."""
    depends = {name: result[name] for name in ("benchmark", "version", "list")}
    depends |= {name: json.dumps(result[name], sort_keys=True) for name in ("submission", "probes", "versions")}
    rows = [{"task": name, **row, **depends} for name, found in result["tasks"].items() for row in found["rows"]]
    return record.csv_text([*COLUMNS, *depends], rows)


# ------------------------------------------------------------------------------------------------ text


def wide(found: Json) -> list[dict[str, str]]:
    """The rows of a task with a column for each metric: 'value [low, high]'."""
    made: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        made.setdefault(row["candidate"], {"": row["candidate"]})[_titled(row)] = _bounded(row)
    columns = dict.fromkeys(key for row in made.values() for key in row)
    return [{column: row.get(column, "") for column in columns} for row in made.values()]


def _titled(row: Json) -> str:
    arrow = {"more": " ↑", "less": " ↓"}.get(row["better"], "")
    return row["metric"] + arrow


def _bounded(row: Json) -> str:
    if row["low"] is None:
        return f"{row['value']:.3g}"
    return f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def lead(result: Json) -> str:
    """What was scored."""
    who = result["submission"]
    step = f", step {who['step']:,}" if "step" in who else ""
    list_of = f"{result['benchmark']} v{result['version']} (list {result['list']})"
    count = f"{result['clips']} of {result['of']} clips"
    return f"{list_of}, {count}; {who['path']}{step}. Intervals hold 95 % of resamples of the episodes."


def said(found: Json) -> str:
    """Which trivial submissions a task beats by its first metric."""
    parts = [f"{verdict} than {', '.join(names)}" for verdict, names in found["beaten"].items() if verdict != SAME]
    parts += [f"not told apart from {', '.join(found['beaten'][SAME])}"] if SAME in found["beaten"] else []
    best = found.get("best_trivial", {})
    ahead = f" The best of them is {best['candidate']}: {_ahead(best)}." if best.get("difference") is not None else ""
    return f"By {ranked_by(found)} the submission is {'; '.join(parts)}.{ahead}" if parts else ""


def ranked_by(found: Json) -> str:
    """The metric of the ranking; results of version 1 say it by the first of their rows."""
    return found.get("ranked_by") or found["rows"][0]["metric"]


def _ahead(row: Json) -> str:
    """'+1.2 [0.8, 1.7], 5.1 deviations'."""
    bounds = "" if row["difference_low"] is None else f" [{row['difference_low']:.3g}, {row['difference_high']:.3g}]"
    away = "" if row["deviations"] is None else f", {row['deviations']:.1f} deviations"
    return f"{row['difference']:+.3g}{bounds}{away}"


def leaked(result: Json) -> str:
    """Whether samples are copies."""
    lines = []
    for name, found in result["leaks"].items():
        flagged = (
            "" if found["flagged"] is None else f", {found['flagged']} flagged ({found['expected']:.1f} by chance)"
        )
        lines.append(
            f"{name}: similarity to the nearest training clip {found['median']['submission']:.3f}, of held-out clips "
            f"{found['median']['heldout']:.3f}{_apart(found)}; nearer: p = {found['p']:.2g}{flagged}"
        )
    return "\n".join(lines)


def _apart(found: Json) -> str:
    """The difference with its interval; '' of results from before it was measured."""
    away = found.get("difference")
    return f" ({away['value']:+.3f} [{away['low']:+.3f}, {away['high']:+.3f}])" if away else ""


def text(result: Json) -> str:
    """The result as aligned tables."""
    blocks = [lead(result)]
    for name, found in result["tasks"].items():
        blocks.append(tables.format_table(wide(found), f"{name.upper()} from {found['condition']}"))
        blocks += [line for line in (said(found), _lacking(found)) if line]
    return "\n\n".join([*blocks, leaked(result)])


def _lacking(found: Json) -> str:
    if not found["unreadable"]:
        return ""
    named = ", ".join(f"{name}: {why}" for name, why in list(found["unreadable"].items())[:3])
    return f"{len(found['unreadable'])} clips are not there or cannot be read, such as {named}"


def markdown(result: Json) -> str:
    """The result as a page of a repository."""
    blocks = [
        f"# {result['benchmark'].capitalize()} v{result['version']}: {result['submission']['path']}",
        lead(result),
    ]
    for name, found in result["tasks"].items():
        blocks.append(f"## {name.replace('_', ' ').capitalize()}\n\nFrom {found['condition']}.")
        blocks.append(_table(wide(found)))
        blocks += [line for line in (said(found), _lacking(found)) if line]
    blocks.append("## Are samples copies?\n\n" + "\n".join(f"- {line}" for line in leaked(result).splitlines()))
    blocks.append("## What the numbers depend on\n\n```json\n" + json.dumps(_depends(result), indent=1) + "\n```")
    return "\n\n".join(blocks) + "\n"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    titles = list(rows[0])
    lines = [titles, ["---"] * len(titles), *([row[title] for title in titles] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _depends(result: Json) -> dict[str, Any]:
    return {name: result[name] for name in ("submission", "probes", "versions")}


def described(suite: Suite) -> str:
    """The protocol in words."""
    lines = [
        f"{suite.title}: {len(suite.cases)} clips of the {suite.split} split (list {suite.fingerprint}), "
        f"{suite.clip.frames} frames of {suite.clip.height}x{suite.clip.width} at {suite.clip.rate_hz:g} Hz",
        f"data: {suite.data}",
        "submission: FOLDER/TASK/NAME.mp4 (any video, animation or, for sounds, wav), for texts TASK/captions.jsonl of "
        'lines {"file": "NAME", "caption": "..."}; NAME as in TASK/cases.jsonl of --conditions',
    ]
    lines += [f"{task.name}: from {task.condition}; {', '.join(task.metrics)}" for task in suite.tasks.values()]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------- the page


def _clips(
    folder: Path, task: SuiteTask, suite: Suite, reals: Sequence[Real], samples: Path
) -> Iterator[tuple[str, dict[str, Path]]]:
    """Some clips of a task: (caption, label -> file)."""
    if task.makes != VIDEO:
        return
    made = submissions.read(samples, task, reals[:SHOWN], suite.clip)
    for real, video in zip(reals[:SHOWN], made.videos):
        if video is None:
            continue
        shown = {SUBMISSION: submissions.complete(task, real, video), "true": real.video}
        files = {label: folder / "media" / f"{task.name}_{real.case.name}_{label}.gif" for label in shown}
        for label, file in files.items():
            media.write_gif(file, shown[label], suite.clip.rate_hz)
        yield real.case.text, files


def document(result: Json, shown: Mapping[str, Sequence[tuple[str, dict[str, Path]]]]) -> str:
    """The HTML page."""
    sections = [(name.replace("_", " ").capitalize(), _section(name, result, shown[name])) for name in result["tasks"]]
    sections.append(("Copies", page.bullets(leaked(result).splitlines())))
    sections.append(("Record", page.details("Everything that these numbers depend on", json.dumps(result, indent=2))))
    return page.document(f"{result['benchmark']} v{result['version']}", page.soft(lead(result)), sections)


def _section(name: str, result: Json, shown: Sequence[tuple[str, dict[str, Path]]]) -> str:
    found = result["tasks"][name]
    first = ranked_by(found)
    bars = [
        Bar(name=row["candidate"], value=row["value"], low=row["low"], high=row["high"], group=row["kind"])
        for row in found["rows"]
        if row["metric"] == first
    ]
    chart = page.charts([charts.bar_chart(bars, title=METRICS[first].note or first, x_label=first)]) if bars else ""
    rows = [
        page.row(caption, page.group(page.card(file, label, f"{label}: {caption}") for label, file in files.items()))
        for caption, files in shown
    ]
    return page.soft(f"From {found['condition']}. {said(found)}") + page.table(wide(found)) + chart + "".join(rows)
