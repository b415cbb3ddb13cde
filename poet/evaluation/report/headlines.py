"""The numbers at the head of a report, each with a sentence that explains it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from poet.evaluation.report import sections
from poet.evaluation.report.artifacts import Evaluation, Json

Figure = tuple[str, str]


def figures(stages: Sequence[Json], tokenizer_metrics: Path, evaluation: Evaluation) -> list[Figure]:
    """(number, what it means), as far as they exist."""
    found = [_time(stages)] if stages else []
    return [*found, *_tokenizer_gain(tokenizer_metrics), *_learnt(evaluation), *_predicted(evaluation)]


def _time(stages: Sequence[Json]) -> Figure:
    seconds = sum(stage["seconds"] for stage in stages)
    return sections.duration(
        seconds
    ), f"from the first rendered frame to this page, {len(stages)} stages on this machine"


def _tokenizer_gain(metrics: Path) -> list[Figure]:
    points = sections.psnr_points(metrics)
    if len(points) < 2:
        return []
    (_, before), (step, after) = points[0], points[-1]
    return [
        (
            f"{after - before:+.2f} dB",
            f"of PSNR: how much nearer the video tokenizer comes to clips that it never saw after {step:,} steps of "
            f"fine-tuning ({before:.1f} dB before, {after:.1f} dB after; more is nearer)",
        )
    ]


def _learnt(evaluation: Evaluation) -> Iterator[Figure]:
    """The video stream of the task that is predicted best."""
    rows = [r for r in evaluation.rows("likelihood") if r["stream"] == "video" and r.get("unigram_nats") is not None]
    if not rows:
        return
    best = min(rows, key=lambda row: row["loss_nats"])
    yield (
        f"{best['loss_nats']:.2f} nats",
        "is the loss per code of validation clips, of the model trained here for "
        f"{evaluation.content['step']:,} steps "
        f"({best['task'].replace('_', ' ')}); that of the unigram is "
        f"{best['unigram_nats']:.2f}. "
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
        f"of PSNR: generated frames are {verdict} the true ones than the last conditioning "
        "frame, repeated: the baseline that any model of motion must beat; a single plausible sample "
        "loses to it easily",
    )
