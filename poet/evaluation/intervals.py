"""Bootstrap intervals over clips.

Shape suffixes: N clips, R resamples.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


def ratio_interval(
    sums_N: np.ndarray,
    counts_N: np.ndarray,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float] | None:
    """Percentile interval of sum over count when clips are drawn again with replacement.

    With counts of 1 it is that of a mean.  None where fewer than two clips have a count: there is
    no spread to draw from.
    """
    sums_N, counts_N = np.asarray(sums_N, np.float64), np.asarray(counts_N, np.float64)
    counted = counts_N > 0
    clips = int(counted.sum())
    if clips < 2:
        return None
    sums_N, counts_N = sums_N[counted], counts_N[counted]
    times_RxN = np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), resamples)
    ratios_R = (times_RxN @ sums_N) / (times_RxN @ counts_N)
    low, high = np.quantile(ratios_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
