"""The parts of `report.html`: each reads files that a command wrote and returns HTML, '' where there are none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from poet import streams
from poet.evaluation.report import charts, gain_view, page
from poet.evaluation.report.artifacts import Evaluation, Json, read_json, read_metrics
from poet.evaluation.report.charts import Bar, Level, Series
from poet.runs.run import Run

PSNR = "reconstruction/psnr_db"
PICTURE = re.compile(r"(\d+)_reconstruction_clips\.png")
LOSS = re.compile(r"(?:(?P<owner>.+)/)?loss/(?P<stream>[^/]+)")
CAPTIONS_SHOWN = 8
SKIPPED_SHOWN = 5
# Lines with fewer points show them.
MARKED_POINTS = 30
# Metrics that are clips or a chart of their own rather than a table.
SHOWN_APART = ("examples", "condition_gain")


# ---------------------------------------------------------------------------- what was done


def stages(stages: Sequence[Json]) -> str:
    rows = [
        {
            "stage": s["name"],
            "status": s.get("status", "done"),
            "time": duration(s["seconds"]),
            "CPU time": duration(s["cpu_seconds"]) if "cpu_seconds" in s else "",
            "what": s.get("note", ""),
        }
        for s in stages
    ]
    return page.table(rows) if rows else ""


def data(manifest: Json | None, evaluation: Evaluation) -> str:
    if manifest is None:
        return ""
    clip = manifest["plan"]["clip"]
    lead = page.paragraph(
        f"Clips of {clip['frames']} frames at {clip['rate_hz']:g} Hz, {clip['height']} x "
        f"{clip['width']} pixels, read from {manifest['source']}."
    )
    skipped = [
        f"{name}: {clip['key']}: {clip['reason']}"
        for name, split in manifest["splits"].items()
        for clip in split["skipped"]
    ]
    rest = [f"and {len(skipped) - SKIPPED_SHOWN} more"] if len(skipped) > SKIPPED_SHOWN else []
    captions = list(dict.fromkeys(m["caption"] for m in evaluation.media() if m["caption"]))[:CAPTIONS_SHOWN]
    lists = {"Skipped clips": skipped[:SKIPPED_SHOWN] + rest, "Some captions": captions}
    listed = (f"<h3>{heading}</h3>{page.bullets(lines)}" for heading, lines in lists.items() if lines)
    return lead + page.table(list(_data_rows(manifest))) + "".join(listed)


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


# ------------------------------------------------------------------------------------ curves


def training(metrics: Path, evaluation: Evaluation, manifest: Json | None) -> str:
    """One chart per stream: its training loss in each group, its validation loss in each task."""
    entropies, streams = _entropies(evaluation, manifest), {}
    for stream, name, kind, point in _losses(read_metrics(metrics)):
        lines = streams.setdefault(stream, {})
        lines.setdefault(name, Series(name=name, points=[], marks=kind != "train")).points.append(point)
    shown = [
        charts.line_chart(
            list(lines.values()),
            title=f"Loss of the {stream} stream",
            x_label="step",
            y_label="nats per token",
            levels=[Level(name="unigram", y=entropies[stream])] if stream in entropies else (),
        )
        for stream, lines in sorted(streams.items())
    ]
    lead = page.soft(
        "Cross-entropy per token in nats. The dashed line is that of the unigram of the training split: "
        "what a model reaches that knows how often each code occurs, and no context."
    )
    return lead + page.charts(shown) if shown else ""


def _entropies(evaluation: Evaluation, manifest: Json | None) -> dict[str, float]:
    """Stream -> unigram cross-entropy in nats, from the evaluation, else of the training split."""
    counted = (manifest or {}).get("splits", {}).get("train", {}).get("statistics", {})
    rows = [r for r in evaluation.rows("likelihood") if r.get("unigram_nats") is not None]
    stored = {stream: found["entropy_nats"] for stream, found in counted.items()}
    return stored | {r["stream"]: r["unigram_nats"] for r in rows}


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


def psnr_points(metrics: Path) -> list[charts.Point]:
    """(step, PSNR of validation clips) on the way of a tokenizer's training."""
    return [(e["step"], e[PSNR]) for e in read_metrics(metrics) if isinstance(e.get(PSNR), (int, float))]


def tokenizer_training(metrics: Path) -> str:
    """PSNR on the way, and the same clips before and after; the loss alone where no PSNR was logged."""
    points = psnr_points(metrics)
    if not points:
        return _tokenizer_loss(metrics)
    line = Series(name="validation clips", points=points, marks=True)
    chart = charts.line_chart([line], title="PSNR of clips that it does not learn from", x_label="step", y_label="dB")
    ends = [path for path in sorted(Run(metrics.parent).samples.glob("*.png")) if PICTURE.fullmatch(path.name)]
    shown = [
        page.picture(
            path,
            f"after {int(PICTURE.fullmatch(path.name)[1]):,} steps: originals over reconstructions",
            f"originals over reconstructions, {path.stem}",
        )
        for path in dict.fromkeys(ends[:1] + ends[-1:])
    ]
    return page.charts([chart, *shown])


def _tokenizer_loss(metrics: Path) -> str:
    entries = [e for e in read_metrics(metrics) if e.get("kind") == "train"]
    points = [(e["step"], e["loss"]) for e in entries if isinstance(e.get("loss"), (int, float))]
    if not points:
        return ""
    line = Series(name="loss", points=points, marks=len(points) < MARKED_POINTS)
    chart = charts.line_chart([line], title="Tokenizer training loss", x_label="step", y_label="loss")
    lead = f"{points[-1][0]:,} steps. The codes above come from the frozen weights that the spec names."
    return page.soft(lead) + page.charts([chart])


# -------------------------------------------------------------------------------- evaluation


def evaluations(evaluation: Evaluation) -> str:
    """A table per metric, and what was not measured."""
    names = [name for name in evaluation.content.get("metrics", ()) if name not in SHOWN_APART]
    skipped = evaluation.content.get("skipped", {}).items()
    return "".join(_table(evaluation, name) for name in names) + "".join(
        page.missing(f"{name.replace('_', ' ')} was not measured (this run): {why}") for name, why in skipped
    )


def _table(evaluation: Evaluation, name: str) -> str:
    rows = gain_view.view(name, evaluation.rows(name))
    notes = dict.fromkeys(evaluation.table(name).get("notes", ()))
    return page.table(rows, name.replace("_", " ").capitalize()) + "".join(map(page.soft, notes))


def conditions(evaluation: Evaluation) -> str:
    """One bar for each condition of each task."""
    bars = gain_view.bars(evaluation.rows("condition_gain"))
    lead = page.soft(
        "Does the model use its conditions? A bar is the added loss of a true clip, in nats, when this "
        "condition is another clip's, mean over clips: at 0 the model ignores it; a caption can be "
        "worth some 10. The whisker covers 95 % of bootstrap resamples of the clips."
    )
    chart = _gain_chart(bars, "Condition gain")
    return lead + chart + _table(evaluation, "condition_gain") if bars else ""


def shipped_conditions(scores: Json | None) -> str:
    """A bar for each condition of the shipped weights, from their `scores.json`."""
    bars = [
        Bar(name=f"{task}: {condition} → {stream}", group=stream, **found["nats_per_clip"])
        for task, conditions in (scores or {}).get("condition_gain", {}).items()
        for condition, streams in conditions.items()
        for stream, found in streams.items()
        if found["nats_per_clip"]["value"] is not None
    ]
    return _gain_chart(bars, "Condition gain of the shipped weights, on their validation clips")


def _gain_chart(bars: Sequence[Bar], title: str) -> str:
    return page.charts([charts.bar_chart(bars, title=title, x_label="nats per clip")]) if bars else ""


# -------------------------------------------------------------------------------------- media


def clips(shipped: Evaluation, ours: Evaluation) -> str:
    """Moving clips of the shipped weights, then of those that were trained here."""
    lead = page.soft(
        "Each row is one sample, not selected: the condition, the sample, and the true clip of the "
        "condition. Clips with controls have sound."
    )
    headings = {"Shipped weights": shipped, "The model trained here": ours}
    rows = {heading: media_rows(found, "example") for heading, found in headings.items()}
    shown = [f"<h3>{heading}</h3>{found}" for heading, found in rows.items() if found]
    return lead + "".join(shown) if shown else ""


def reconstructions(evaluation: Evaluation) -> str:
    lead = page.soft(
        "Frames of real clips, and the same clips encoded and decoded by the tokenizer. "
        "No generated clip can be sharper than this."
    )
    rows = media_rows(evaluation, "reconstruction")
    return lead + rows if rows else ""


def predictions(evaluation: Evaluation) -> str:
    rows = media_rows(evaluation, "frame_prediction")
    if not rows:
        return ""
    lead = page.soft(
        "The model continues the first frames of a real clip. Repeating the last conditioning "
        "frame is the baseline; the true clip, encoded and decoded, is the ceiling."
    )
    curves = evaluation.table("frame_prediction")["curves"].items()
    points = {name: [(n, y) for n, y in enumerate(values, start=1) if y is not None] for name, values in curves}
    lines = [Series(name=name, points=found, marks=True) for name, found in points.items()]
    title = "PSNR of each generated frame, mean over clips"
    return lead + page.charts([charts.line_chart(lines, title=title, x_label="frame", y_label="dB")]) + rows


def media_rows(evaluation: Evaluation, kind: str) -> str:
    """A row for each clip: strips of frames of a reconstruction one below the other, else clips side by side."""
    rows = []
    for entry in evaluation.media(kind):
        files = {label: evaluation.folder / file for label, file in entry["files"].items()}
        if kind == "reconstruction":
            shown = "".join(page.strip(f, label, f"{label} frames of {entry['key']}") for label, f in files.items())
        else:
            shown = page.group(page.card(f, label, f"{label}: {entry['key']}") for label, f in files.items())
        rows.append(page.row(f"{entry['caption'] or entry['key']} ({entry['note']})", shown))
    return "".join(rows)


# ----------------------------------------------------------------------------- results


def export(check: Path) -> str:
    found = read_json(check)
    if found is None:
        return ""
    clip = check.with_suffix(".gif")
    shown = page.card(clip, "sampled by the exported programs", "clip of the export") if clip.is_file() else ""
    rows = [{key.replace("_", " "): _plain(v) for key, v in row.items()} for row in found["tasks"]]
    return shown + page.table(rows)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def spec(path: Path) -> str:
    found = read_json(path)
    return page.details("Every resolved setting of the run", json.dumps(found, indent=2)) if found is not None else ""


def duration(seconds: float) -> str:
    """'4.2 s', '48 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
