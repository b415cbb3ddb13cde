"""The parts of `report.html`: each reads files that a command wrote and returns HTML.

An absent file gives a line that says what is missing and which command writes it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from poet import streams
from poet.evaluation.report import charts, gain_view, page
from poet.evaluation.report.artifacts import Evaluation, Json, read_json, read_metrics
from poet.evaluation.report.charts import Level, Series

LOSS = re.compile(r"(?:(?P<owner>.+)/)?loss/(?P<stream>[^/]+)")
CAPTIONS_SHOWN = 8
SKIPPED_SHOWN = 5
# Lines with fewer points show them.
MARKED_POINTS = 30
# Metrics that are clips or a chart of their own rather than a table.
SHOWN_APART = ("examples", "condition_gain")


# ---------------------------------------------------------------------------- what was done


def stages(stages: Sequence[Json]) -> str:
    if not stages:
        return page.missing("No record of stages: launch/quickstart.sh writes it.")
    return page.table(
        [
            {
                "stage": s["name"],
                "status": s.get("status", "done"),
                "time": duration(s["seconds"]),
                "CPU time": duration(s["cpu_seconds"]) if "cpu_seconds" in s else "",
                "what": s.get("note", ""),
            }
            for s in stages
        ]
    )


def data(manifest: Json | None, evaluation: Evaluation | None) -> str:
    if manifest is None:
        return page.missing("No token store: `poet tokenize` writes it.")
    clip = manifest["plan"]["clip"]
    lead = page.paragraph(
        f"Clips of {clip['frames']} frames at {clip['rate_hz']:g} Hz, {clip['height']} x "
        f"{clip['width']} pixels, read from {manifest['source']}."
    )
    return (
        lead + page.table(list(_data_rows(manifest))) + _skipped(manifest) + _captions(evaluation)
    )


def _data_rows(manifest: Json) -> Iterator[Json]:
    for name, split in manifest["splits"].items():
        for stream, found in split["statistics"].items():
            yield {
                "split": name,
                "clips": split["clips"],
                "skipped": len(split["skipped"]),
                "stream": stream,
                "codes": found["codes"],
                "distinct codes": found["used"],
                "unigram_entropy_nats": found["entropy_nats"],
                **({"without sound": split.get("silent", 0)} if streams.in_store(stream).flag else {}),
            }


def _skipped(manifest: Json) -> str:
    lines = [
        f"{name}: {clip['key']}: {clip['reason']}"
        for name, split in manifest["splits"].items()
        for clip in split["skipped"]
    ]
    if not lines:
        return ""
    rest = [f"and {len(lines) - SKIPPED_SHOWN} more"] if len(lines) > SKIPPED_SHOWN else []
    return "<h3>Skipped clips</h3>" + page.bullets(lines[:SKIPPED_SHOWN] + rest)


def _captions(evaluation: Evaluation | None) -> str:
    media = evaluation.content["media"] if evaluation else ()
    captions = list(dict.fromkeys(m["caption"] for m in media if m["caption"]))[:CAPTIONS_SHOWN]
    return "<h3>Some captions</h3>" + page.bullets(captions) if captions else ""


# ------------------------------------------------------------------------------------ curves


def training(metrics: Path | None, evaluation: Evaluation | None, manifest: Json | None) -> str:
    shown = _loss_charts(read_metrics(metrics), _entropies(evaluation, manifest))
    if not shown:
        return page.missing("No training curves: `poet train` writes metrics.jsonl.")
    return page.paragraph(
        "Cross-entropy per token in nats. The dashed line is that of the unigram of the training split: "
        "what a model reaches that knows how often each code occurs, and no context.",
        "soft",
    ) + page.charts(shown)


def _entropies(evaluation: Evaluation | None, manifest: Json | None) -> dict[str, float]:
    """Stream -> unigram cross-entropy in nats, from the evaluation, else of the training split."""
    rows = evaluation.rows("likelihood") if evaluation else []
    found = {
        r["stream"]: r["unigram_nats"] for r in rows if r.get("unigram_nats") is not None
    }
    train = (manifest or {}).get("splits", {}).get("train", {})
    for stream, statistics in train.get("statistics", {}).items():
        found.setdefault(stream, statistics["entropy_nats"])
    return found


def _loss_charts(entries: Sequence[Json], entropies: Mapping[str, float]) -> list[str]:
    """One chart per stream: its training loss in each group, its validation loss in each task."""
    streams: dict[str, dict[str, Series]] = {}
    for stream, name, kind, point in _losses(entries):
        lines = streams.setdefault(stream, {})
        line = lines.setdefault(name, Series(name=name, points=[], marks=kind != "train"))
        line.points.append(point)
    return [
        charts.line_chart(
            list(lines.values()),
            title=f"Loss of the {stream} stream",
            x_label="step",
            y_label="nats per token",
            levels=[Level(name="unigram", y=entropies[stream])]
            if stream in entropies
            else (),
        )
        for stream, lines in sorted(streams.items())
    ]


def _losses(entries: Sequence[Json]) -> Iterator[tuple[str, str, str, charts.Point]]:
    """(stream, name of the line, kind of the entry, (step, loss)) of every loss that was logged."""
    for entry in entries:
        kind = entry.get("kind", "train")
        for key, value in entry.items():
            match = LOSS.fullmatch(key)
            if match and isinstance(value, (int, float)):
                owner = (match["owner"] or "").removeprefix(kind).removeprefix("/")
                name = f"{kind}: {owner}" if owner else kind
                yield match["stream"], name, kind, (entry["step"], value)


def tokenizer_training(metrics: Path | None) -> str:
    points = [
        (e["step"], e["loss"])
        for e in read_metrics(metrics)
        if e.get("kind") == "train" and isinstance(e.get("loss"), (int, float))
    ]
    if not points:
        return page.missing("No tokenizer was trained here: `poet tokenizer-train` does it.")
    chart = charts.line_chart(
        [Series(name="loss", points=points, marks=len(points) < MARKED_POINTS)],
        title="Tokenizer training loss",
        x_label="step",
        y_label="loss",
    )
    return page.paragraph(
        f"{points[-1][0]:,} steps. The codes above come from the frozen weights that the spec names.",
        "soft",
    ) + page.charts([chart])


# -------------------------------------------------------------------------------- evaluation


def evaluations(named: Mapping[str, Evaluation | None]) -> str:
    """A table per metric; with several evaluations each row says whose it is."""
    found = {name: e for name, e in named.items() if e}
    if not found:
        return page.missing("No evaluation: `poet eval` writes eval.json.")
    metrics = dict.fromkeys(m for e in found.values() for m in e.content["metrics"] if m not in SHOWN_APART)
    return "".join(_metric(metric, found) for metric in metrics) + "".join(
        page.missing(f"{metric.replace('_', ' ')} was not measured ({name}): {why}")
        for name, e in found.items()
        for metric, why in e.content["skipped"].items()
    )


def _metric(metric: str, found: Mapping[str, Evaluation]) -> str:
    rows = [
        {"checkpoint": name, **row} if len(found) > 1 else row
        for name, e in found.items()
        for row in e.rows(metric)
    ]
    notes = dict.fromkeys(note for e in found.values() for note in e.notes(metric))
    table = page.table(gain_view.view(metric, rows), metric.replace("_", " ").capitalize())
    return table + "".join(page.paragraph(note, "soft") for note in notes)


def conditions(evaluation: Evaluation | None) -> str:
    """One bar for each condition of each task."""
    bars = gain_view.bars(evaluation.rows("condition_gain")) if evaluation else []
    if not bars:
        return page.missing("No condition gain: `poet eval` measures it where EVAL.gain_clips is above 0.")
    lead = page.paragraph(
        "Does the model listen to what it is given? A bar says how many nats a true clip costs more when that "
        "one condition is another clip's, mean over clips: at 0 the model ignores it, and a caption can be "
        "worth some 10. The whisker holds 95 % of bootstrap resamples of the clips.",
        "soft",
    )
    chart = charts.bar_chart(bars, title="What each condition is worth", x_label="nats per clip")
    return lead + page.charts([chart]) + _metric("condition_gain", {"this run": evaluation})


def reconstructions(evaluation: Evaluation | None) -> str:
    found = evaluation.media("reconstruction") if evaluation else []
    if not found:
        return page.missing("No reconstructions: `poet eval` with EVAL.source writes them.")
    lead = page.paragraph(
        "Frames of real clips, and the same clips after the tokenizer turned them into codes and back. "
        "No generated clip can be sharper than this.",
        "soft",
    )
    return lead + "".join(
        page.row(
            _heading(entry),
            "".join(
                page.strip(evaluation.folder / file, label, f"{label} frames of {entry['key']}")
                for label, file in entry["files"].items()
            ),
        )
        for entry in found
    )


def predictions(evaluation: Evaluation | None) -> str:
    found = evaluation.media("frame_prediction") if evaluation else []
    if not found:
        return page.missing("No frame prediction: `poet eval` with EVAL.source writes it.")
    lead = page.paragraph(
        "The first frames of a real clip are given, the model draws the rest. Repeating the last given "
        "frame is the baseline; the true clip as the tokenizer renders it is the ceiling.",
        "soft",
    )
    return lead + _frame_curves(evaluation) + _side_by_side(evaluation, "frame_prediction")


def examples_of(evaluation: Evaluation) -> str:
    """A row per task: what was given, what was drawn, the true clip."""
    return _side_by_side(evaluation, "example")


def _frame_curves(evaluation: Evaluation) -> str:
    curves = evaluation.content["metrics"]["frame_prediction"]["curves"]
    lines = [
        Series(
            name=name,
            points=[(frame, y) for frame, y in enumerate(values, start=1) if y is not None],
            marks=True,
        )
        for name, values in curves.items()
    ]
    chart = charts.line_chart(
        lines, title="PSNR of each drawn frame, mean over clips", x_label="frame", y_label="dB"
    )
    return page.charts([chart])


def _side_by_side(evaluation: Evaluation, kind: str) -> str:
    rows = []
    for entry in evaluation.media(kind):
        clips = [
            page.card(evaluation.folder / file, label, f"{label}: {entry['key']}")
            for label, file in entry["files"].items()
        ]
        rows.append(page.row(_heading(entry), page.group(clips)))
    return "".join(rows)


def _heading(entry: Json) -> str:
    return f"{entry['caption'] or entry['key']} ({entry['note']})"


# ----------------------------------------------------------------------------- what came out


def export(check: Path | None) -> str:
    found = read_json(check)
    if found is None:
        return page.missing("No export check: `poet export --check FILE` writes it.")
    clip = check.with_suffix(".gif")
    shown = page.card(clip, "drawn by the exported programs alone", "clip of the export") if clip.is_file() else ""
    return shown + page.table(
        [{"check": key.replace("_", " "), "result": _plain(v)} for key, v in found.items()]
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def spec(path: Path | None) -> str:
    found = read_json(path)
    if found is None:
        return page.missing("No spec.json: `poet train` writes it.")
    return page.details("Every resolved setting of the run", json.dumps(found, indent=2))


def duration(seconds: float) -> str:
    """'4.2 s', '48 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
