"""Standard errors and bootstrap intervals over independent groups, such as clips or films.

Shape suffixes: N values, G groups, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000
# Of what takes a whole computation for each.
FEW_RESAMPLES = 200
LEVEL = 0.95
# Deviations of a normal distribution to either side that hold LEVEL of it.
NORMAL = 1.959964
SEED = 0


def times(groups: int, resamples: int, seed: int = SEED) -> np.ndarray:
    """int64 [R, G]: how often each group is in each bootstrap resample."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples)


def ratio_interval(
    sums_N: np.ndarray, counts_N: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float] | None:
    """Percentile interval of sum over count when clips are resampled with replacement.

    With counts of 1 it is that of a mean.  None where fewer than two clips have a count: there is
    no spread.
    """
    sums_N, counts_N = np.asarray(sums_N, np.float64), np.asarray(counts_N, np.float64)
    counted = counts_N > 0
    clips = int(counted.sum())
    if clips < 2:
        return None
    sums_N, counts_N = sums_N[counted], counts_N[counted]
    times_RxN = times(clips, resamples, seed)
    return bounds((times_RxN @ sums_N) / (times_RxN @ counts_N))


def difference_interval(
    one: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
    finish: Callable[[float], float] | None = None,
) -> tuple[float, float] | None:
    """Percentile interval of `finish(other) - finish(one)`, each a sum over a count of the same groups.

    Every resample takes the same groups of both, so that what is hard in a group for both cancels.

    Args:
      one, other: (sums_G, counts_G), the counts above 0.

    None of fewer than two groups.
    """
    groups = len(one[0])
    if groups < 2:
        return None
    times_RxG = times(groups, RESAMPLES)
    ratios = [(times_RxG @ sums_G) / (times_RxG @ counts_G) for sums_G, counts_G in (one, other)]
    first_R, second_R = ratios if finish is None else (np.array([finish(x) for x in r]) for r in ratios)
    return bounds(second_R - first_R)


def resampled(
    value: Callable[[np.ndarray], float | None], there_G: np.ndarray, *, resamples: int = FEW_RESAMPLES
) -> tuple[float, float] | None:
    """Percentile interval of `value(times_G)`, which counts each group so many times (int64).

    Args:
      there_G: bool: which groups have anything.  None comes of fewer than two.
    """
    there = int(there_G.sum())
    if there < 2:
        return None
    times_RxG = np.random.default_rng(SEED).multinomial(there, there_G / there, resamples)
    found = [x for times_G in times_RxG if (x := value(times_G)) is not None]
    return bounds(found) if found else None


def bounds(values_R: ArrayLike) -> tuple[float, float]:
    """The percentile interval of resamples that holds `LEVEL` of them."""
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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
