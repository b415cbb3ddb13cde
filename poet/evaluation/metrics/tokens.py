"""Metrics of the language model's likelihood.

Fields: `loss` (nats), `correct`, `count`, float [N, O] for the O tokens of an output stream, 0 for conditioning tokens
or padding; `unigram_nats` and `unigram_count`, float64 [N], sums under the unigram of the training split.
Of an exchanged condition also `wrong_loss`, the loss with another clip's, and `copyable`, bool [N, O], where a code of
the right condition could be copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from poet.evaluation.metric import Batch, Metric, Values, register

SCORED = ("loss", "correct", "count")
EXCHANGED = (*SCORED, "wrong_loss")


def _sums(values_NxO: np.ndarray) -> np.ndarray:
    """float64 [N]; row by row, as the order in which NumPy sums an axis depends on the number of rows."""
    return np.array([row_O.sum(dtype=np.float64) for row_O in values_NxO])


def _per_token(field: str) -> Callable[[Batch], Values]:
    return lambda batch: Values.of(batch, _sums(batch[field]), _sums(batch["count"]))


LOSS = register(
    Metric(
        name="loss_nats",
        better="less",
        tables=("likelihood",),
        needs=SCORED,
        measure=_per_token("loss"),
        note="Mean cross-entropy of a token.",
    )
)
UNIGRAM = register(
    Metric(
        name="unigram_nats",
        better="neither",
        tables=("likelihood",),
        needs=("unigram_nats", "unigram_count"),
        measure=lambda batch: Values.of(batch, batch["unigram_nats"], batch["unigram_count"]),
        note="Cross-entropy under the frequencies of ids in the training split.",
    )
)
ACCURACY = register(
    Metric(
        name="accuracy",
        better="more",
        tables=("likelihood",),
        needs=SCORED,
        measure=_per_token("correct"),
        beside=("low", "high"),
        note="Fraction of tokens whose logit is the largest.",
    )
)


# ----------------------------------------------------------------------------- exchanged conditions


def _nats(batch: Batch) -> np.ndarray:
    """float64 [N]: what the exchange costs each clip."""
    return _sums(batch["wrong_loss"]) - _sums(batch["loss"])


def _nats_per_token(batch: Batch) -> Values:
    return Values.of(batch, _nats(batch), _sums(batch["count"]))


def _nats_per_clip(batch: Batch) -> Values:
    return Values.of(batch, _nats(batch), _sums(batch["count"]) > 0)


def _fraction(batch: Batch) -> Values:
    return Values.of(batch, _sums(batch["count"] * batch["copyable"]), _sums(batch["count"]))


def _apart(values: Callable[[Batch], np.ndarray], *, copied: bool) -> Callable[[Batch], Values]:
    """Per token, of those that can be copied or of the others."""

    def measure(batch: Batch) -> Values:
        mask = batch["copyable"] if copied else ~batch["copyable"]
        return Values.of(batch, _sums(values(batch) * mask), _sums(batch["count"] * mask))

    return measure


def _more(batch: Batch) -> np.ndarray:
    return batch["wrong_loss"] - batch["loss"]


def _declare(name: str, measure: Callable[[Batch], Values], needs: tuple[str, ...] = EXCHANGED, **more: Any) -> None:
    register(
        Metric(
            name=name,
            better="more",
            tables=("condition_gain",),
            needs=needs,
            measure=measure,
            **({"beside": ("low", "high")} | more),
        )
    )


_declare("nats_per_token", _nats_per_token, note="What a token costs more when the condition is another clip's.")
_declare("nats_per_clip", _nats_per_clip, note="The same of all tokens of a clip.")
_COPIED = (*EXCHANGED, "copyable")
_declare("copyable", _fraction, _COPIED, beside=(), note="Fraction of tokens that could be copied from the condition.")
for _name, _mask in (("copyable", True), ("rest", False)):
    _declare(f"{_name}_nats", _apart(_more, copied=_mask), _COPIED, beside=())
    _declare(f"{_name}_accuracy", _apart(lambda batch: batch["correct"], copied=_mask), _COPIED, beside=())
