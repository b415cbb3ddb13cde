"""Standard errors and bootstrap intervals over independent groups, such as clips or films.

Shape suffixes: N values, G groups, R resamples.
"""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np

RESAMPLES = 1000
# Of what takes a whole computation for each.
FEW_RESAMPLES = 200
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


def resampled(
    value: Callable[[np.ndarray], float | None], there_G: np.ndarray, *, level: float = LEVEL, seed: int = SEED
) -> tuple[float, float] | None:
    """Percentile interval of `value(times_G)`, which counts each group so many times (int64).

    Args:
      there_G: bool: which groups have anything.  None comes of fewer than two.
    """
    there = int(there_G.sum())
    if there < 2:
        return None
    shares_G = there_G / there
    times_RxG = np.random.default_rng(seed).multinomial(there, shares_G, FEW_RESAMPLES)
    found = [x for times_G in times_RxG if (x := value(times_G)) is not None]
    return tuple(map(float, np.quantile(found, [(1 - level) / 2, (1 + level) / 2]))) if found else None


def mean_and_error(
    values: np.ndarray, origins: Sequence[str] | None = None
) -> tuple[float, float | None]:
    """Mean and its standard error; None where there is one value, or one origin, and so no spread.

    Args:
      origins: of each value; those of one, such as clips of one film, are dependent, and the error is
        that over origins.  None: all are independent.
    """
    values = np.asarray(values, np.float64)
    if origins is None:
        origins = np.arange(len(values))
    names, index = np.unique(np.asarray(origins), return_inverse=True)
    sums = np.bincount(index, values, minlength=len(names))
    return ratio_and_error(sums, np.bincount(index, minlength=len(names)))


def ratio_and_error(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float | None]:
    """Sum over count of independent groups, and its standard error by linearisation.

    None where one group with a count gives no spread.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    ratio, groups = float(sums.sum() / counts.sum()), int((counts > 0).sum())
    if groups < 2:
        return ratio, None
    residuals = np.sum((sums - ratio * counts) ** 2) * groups / (groups - 1)
    return ratio, float(np.sqrt(residuals) / counts.sum())
