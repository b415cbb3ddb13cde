"""How well codes use a codebook: fields `ids`, integers of any shape, and `codes`, how many there are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from poet.evaluation import metric
from poet.evaluation.metric import Batch, Metric, Sums, register
from poet.evaluation.metrics import select

USAGE_NOTE = (
    "Usage is distinct codes over all codes; usage of reachable is distinct codes over those that "
    "as many uniformly sampled tokens would have in expectation. The entropy is that of the code "
    "counts, which is too low if tokens are few relative to codes."
)
TABLES = ("codes", "codes_by_level")

# How often each code occurs, int64 (codes,) -> the metric.
Statistic = Callable[[np.ndarray], Any]


def statistics(ids: np.ndarray, codes: int, table: str = "codes") -> dict[str, Any]:
    """The columns of a table of codes, of all codes there are."""
    return metric.columns(metric.measure({"ids": ids, "codes": codes}, select(table)[0]))


def _counts(batch: Batch) -> Sums:
    """Counts of codes; the number of distinct codes is not a mean over parts: one fold."""
    counts = np.bincount(np.asarray(batch["ids"]).reshape(-1), minlength=batch["codes"])
    return Sums(parts={"counts": counts[None]}, n_F=np.array([len(batch["ids"])]))


def reachable_codes(tokens: int, codes: int) -> float:
    """Expected number of distinct codes among `tokens` uniform samples: K (1 - (1 - 1/K)^tokens)."""
    return -codes * math.expm1(tokens * math.log1p(-1 / codes))


def _usage_of_reachable(counts: np.ndarray) -> float:
    return int(np.count_nonzero(counts)) / reachable_codes(int(counts.sum()), len(counts))


def _entropy_bits(counts: np.ndarray) -> float:
    fractions = counts[counts > 0] / counts.sum()
    # Not -0.0 where one code is all there is.
    return abs(float((fractions * np.log2(fractions)).sum()))


@functools.lru_cache(maxsize=1)
def _bits_on(bits: int) -> np.ndarray:
    return np.arange(2**bits)[:, None] >> np.arange(bits) & 1


def bit_balances(counts: np.ndarray) -> np.ndarray:
    """For each bit of codes 0..2^bits - 1: 1 where it is on half the time, 0 where it is constant."""
    bits = len(counts).bit_length() - 1
    return 1 - np.abs(2 * (counts @ _bits_on(bits) / counts.sum()) - 1)


def _declare(
    name: str, statistic: Statistic, note: str = "", tables: tuple[str, ...] = TABLES, better: str = "more"
) -> None:
    def finish(totals: Mapping[str, np.ndarray]) -> Any:
        return statistic(totals["counts"])

    register(
        Metric(
            name=name,
            better=better,
            tables=tables,
            needs=("ids", "codes"),
            measure=_counts,
            finish=finish,
            beside=(),
            note=note,
        )
    )


_declare("tokens", lambda counts: int(counts.sum()), better="neither")
_declare("codes", len, better="neither")
_declare("codes_used", lambda counts: int(np.count_nonzero(counts)))
_declare("usage", lambda counts: int(np.count_nonzero(counts)) / len(counts), USAGE_NOTE)
_declare("usage_of_reachable", _usage_of_reachable, USAGE_NOTE)
_declare("entropy_bits", _entropy_bits, USAGE_NOTE)
_declare("bit_balance", lambda counts: float(bit_balances(counts).mean()), tables=("codes",))
_declare("worst_bit_balance", lambda counts: float(bit_balances(counts).min()), tables=("codes",))
