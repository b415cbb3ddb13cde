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
    return [*found, *_tokenizer_gain(tokenizer_metrics), *of_evaluation(evaluation)]


def of_evaluation(evaluation: Evaluation) -> list[Figure]:
    """What matters of `poet eval`, at most five: (number, what it means)."""
    parts = (_learnt, _conditions, _ceiling, _predicted, _sampled)
    return [figure for part in parts for figure in part(evaluation)]


def text(evaluation: Evaluation, heading: str = "") -> str:
    """`of_evaluation` in lines."""
    lines = [f"  {number:>12s}  {meaning}." for number, meaning in of_evaluation(evaluation)]
    return "\n".join([heading, *lines] if heading else lines)


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
    """The video stream of the task with the largest loss: others may copy codes from their conditions."""
    rows = [r for r in evaluation.rows("likelihood") if r["stream"] == "video" and r.get("unigram_nats") is not None]
    if not rows:
        return
    hardest = max(rows, key=lambda row: row["loss_nats"])
    yield (
        f"{hardest['loss_nats']:.2f} nats",
        f"is the loss per code of {evaluation.content.get('split', 'validation')} clips after "
        f"{evaluation.content['step']:,} steps of this run ({hardest['task'].replace('_', ' ')}); that of the unigram "
        f"is {hardest['unigram_nats']:.2f}. Less is better",
    )


def _conditions(evaluation: Evaluation) -> Iterator[Figure]:
    """How many conditions the model uses, and the ones that it uses most and least."""
    rows = [r for r in evaluation.rows("condition_gain") if r.get("nats_per_clip_low") is not None]
    if not rows:
        return
    used = [r for r in rows if r["nats_per_clip_low"] > 0]
    most, least = (pick(rows, key=lambda r: r["nats_per_clip"]) for pick in (max, min))
    yield (
        f"{len(used)} of {len(rows)}",
        "conditions lower the loss of their own clip for sure (95 % interval above 0): most "
        f"{_gain(most)}, least {_gain(least)}",
    )


def _gain(row: Json) -> str:
    return f"{row['condition']} in {row['task'].replace('_', ' ')} ({row['nats_per_clip']:.1f} nats a clip)"


def _ceiling(evaluation: Evaluation) -> Iterator[Figure]:
    for row in evaluation.rows("reconstruction")[:1]:
        yield (
            f"{row['psnr_db']:.1f} dB",
            f"of PSNR: {row['clips']} real clips after the tokenizer's encoding and decoding; no sampled clip can be "
            "sharper",
        )


def _sampled(evaluation: Evaluation) -> Iterator[Figure]:
    if tasks := evaluation.rows("examples"):
        names = ", ".join(row["task"].replace("_", " ") for row in tasks)
        yield f"{len(tasks)} tasks", f"were sampled once each, to look at and to listen to: {names}"


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
