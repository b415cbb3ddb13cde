"""Collapsed clips, by codes of a video tokenizer (`poet.sampling.collapse`): field `ids`, integers [N, t, h, w]."""

from __future__ import annotations

from poet.evaluation.metric import Batch, Metric, Values, register
from poet.sampling import collapse


def _measure(batch: Batch) -> Values:
    return Values.of(batch, [float(bool(collapse.pictures(codes))) for codes in batch["ids"]])


register(
    Metric(
        name="collapse_rate",
        better="less",
        tables=("clips",),
        needs=("ids",),
        measure=_measure,
        note="Fraction of clips whose codes stand still to the end, or repeat themselves as tiles.",
        protocol={"agree": collapse.AGREE},
    )
)
