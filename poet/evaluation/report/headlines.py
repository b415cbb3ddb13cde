"""What a report opens with: clips beside what they were given, and numbers, each with a sentence that says what it means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, Sequence

from poet.evaluation.report import charts, page, sections
from poet.evaluation.report.artifacts import Evaluation, Json, read_metrics
from poet.evaluation.report.charts import Series
from poet.runs.run import Run

_PSNR = "reconstruction/psnr_db"
_PICTURE = re.compile(r"(\d+)_reconstruction_clips\.png")
Figure = tuple[str, str]


def figures(stages: Sequence[Json], tokenizer_metrics: Path | None, evaluation: Evaluation | None) -> list[Figure]:
    """(number, what it means), as far as they exist."""
    found = [_time(stages)] if stages else []
    found += _tokenizer_gain(tokenizer_metrics)
    if evaluation:
        found += [*_learnt(evaluation), *_predicted(evaluation)]
    return found


def _time(stages: Sequence[Json]) -> Figure:
    seconds = sum(stage["seconds"] for stage in stages)
    return sections.duration(seconds), f"from the first rendered frame to this page, {len(stages)} stages on this machine"


def _tokenizer_gain(metrics: Path | None) -> list[Figure]:
    points = psnr_points(metrics)
    if len(points) < 2:
        return []
    (_, before), (step, after) = points[0], points[-1]
    return [(
        f"{after - before:+.2f} dB",
        f"of PSNR: how much nearer the video tokenizer comes to clips that it never saw after {step:,} steps of "
        f"fine-tuning ({before:.1f} dB before, {after:.1f} dB after; more is nearer)",
    )]


def _learnt(evaluation: Evaluation) -> Iterator[Figure]:
    """The video stream of the task that is predicted best."""
    rows = [r for r in evaluation.rows("likelihood") if r["stream"] == "video" and r.get("unigram_nats") is not None]
    if not rows:
        return
    best = min(rows, key=lambda row: row["loss_nats"])
    yield (
        f"{best['loss_nats']:.2f} nats",
        f"is what one code of an unseen clip costs the model that was trained here for {evaluation.step:,} steps "
        f"({best['task'].replace('_', ' ')}); who knows only how often each code occurs pays {best['unigram_nats']:.2f}. "
        "Less is better",
    )


def _predicted(evaluation: Evaluation) -> Iterator[Figure]:
    row = next((r for r in evaluation.rows("frame_prediction") if r["frames"] == "generated"), None)
    if row is None:
        return
    gain = row["gain_db"]
    verdict = "nearer to" if gain > 0 else "farther from"
    yield (
        f"{gain:+.1f} dB",
        f"of PSNR: frames that the model draws after the given ones are {verdict} the true ones than the last given "
        "frame shown again, the baseline that any model of motion must beat; one draw of many that may be right "
        "loses to it easily",
    )


def psnr_points(metrics: Path | None) -> list[tuple[float, float]]:
    """(step, PSNR of validation clips) on the way of a tokenizer's training."""
    return [(e["step"], e[_PSNR]) for e in read_metrics(metrics) if isinstance(e.get(_PSNR), (int, float))]


# ------------------------------------------------------------------------------------ the clips


def clips(shipped: Evaluation | None, ours: Evaluation | None) -> str:
    """Moving clips of the shipped weights, then of those that were trained here."""
    lead = page.paragraph(
        "Each row is one draw, the first that came: what the model was given, what it drew, and the true clip that the "
        "condition was taken from. Clips with controls have sound.", "soft"
    )
    shown = [
        f"<h3>{heading}</h3>" + sections.examples_of(found)
        for heading, found in (("By the weights that ship", shipped), ("By the model that was trained here", ours))
        if found and found.media("example")
    ]
    if not shown:
        return page.missing("No clips: `poet eval --metric=examples` with EVAL.examples = True draws them.")
    return lead + "".join(shown)


# ---------------------------------------------------------------------------------- conditions


def shipped_conditions(scores: Json | None) -> str:
    """A bar for each condition of the weights that ship, from their `scores.json`; nothing without one."""
    bars = [
        charts.Bar(name=f"{task}: {condition} → {stream}", group=stream, **found["nats_per_clip"])
        for task, conditions in (scores or {}).get("condition_gain", {}).items()
        for condition, streams in conditions.items()
        for stream, found in streams.items()
        if found["nats_per_clip"]["value"] is not None
    ]
    if not bars:
        return ""
    chart = charts.bar_chart(bars, title="The same for the weights that ship, on their validation clips", x_label="nats per clip")
    return page.charts([chart])


# --------------------------------------------------------------------------- tokenizer training


def tokenizer_training(metrics: Path | None) -> str:
    """PSNR on the way, and the same clips before and after."""
    points = psnr_points(metrics)
    if not points:
        return sections.tokenizer_training(metrics)
    chart = charts.line_chart(
        [Series(name="validation clips", points=points, marks=True)],
        title="PSNR of clips that it does not learn from", x_label="step", y_label="dB",
    )
    found = sorted(Run(metrics.parent).samples.glob("*.png"))
    ends = [path for path in found if _PICTURE.fullmatch(path.name)]
    shown = [
        page.picture(path, f"after {int(_PICTURE.fullmatch(path.name)[1]):,} steps: originals over reconstructions",
                     f"originals over reconstructions, {path.stem}")
        for path in dict.fromkeys(ends[:1] + ends[-1:])
    ]
    return page.charts([chart, *shown])
