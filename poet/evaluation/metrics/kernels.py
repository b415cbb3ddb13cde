"""Kernel distances of two sets of vectors: unbiased squared maximum mean discrepancies, which few clips do not raise.

The polynomial kernel is that of Binkowski et al. (1801.01401), called KID for its network; the Gaussian one with the
median distance of the reference as its bandwidth is that of Chung et al. (2502.15602), called KAD for its networks.
Pairs of vectors of one clip do not count: they are alike because they are of one clip.

Shape suffixes: M vectors, D their width, B a block of them, R resamples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from poet.evaluation import intervals, samples
from poet.evaluation.features import Features
from poet.evaluation.metric import Metric, Summary
from poet.evaluation.metrics.frechet import too_few
from poet.evaluation.samples import Set

# (a_BxD, b_MxD) -> [B, M], float64.
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
BLOCK = 512
PROTOCOL = {
    "interval": "value ± 1.96 bootstrap deviations over groups of clips",
    "resamples": intervals.FEW_RESAMPLES,
    "seed": intervals.SEED,
}
# Vectors of the reference that the median distance is taken over, evenly spaced.
MEDIAN_OF = 2000


def polynomial(a_BxD: np.ndarray, b_MxD: np.ndarray) -> np.ndarray:
    """(a b / D + 1)^3."""
    return (a_BxD @ b_MxD.T / a_BxD.shape[1] + 1) ** 3


def gaussian(bandwidth: float, a_BxD: np.ndarray, b_MxD: np.ndarray) -> np.ndarray:
    """exp(-|a - b|^2 / (2 bandwidth^2))."""
    return np.exp(-squared_distances(a_BxD, b_MxD) / (2 * bandwidth**2))


def squared_distances(a_BxD: np.ndarray, b_MxD: np.ndarray) -> np.ndarray:
    """float64 [B, M]."""
    squares = (a_BxD**2).sum(axis=1)[:, None] + (b_MxD**2).sum(axis=1)
    return np.maximum(squares - 2 * a_BxD @ b_MxD.T, 0)


def median_distance(one: Set) -> float:
    """Between vectors of different clips."""
    places = np.unique(np.linspace(0, len(one.rows_MxD) - 1, MEDIAN_OF).astype(int))
    rows, clips = one.rows_MxD[places].astype(np.float64), one.clips_M[places]
    apart = clips[:, None] < clips
    return float(np.median(np.sqrt(squared_distances(rows, rows)[apart])))


def weights_of(one: Set, seed: int) -> np.ndarray:
    """float64 [1 + R, M]: once, then as often as in each resample."""
    times = one.times(intervals.FEW_RESAMPLES, seed)
    return np.concatenate([np.ones((1, len(one.rows_MxD))), times])


def within(kernel: Kernel, one: Set, weights_RxM: np.ndarray) -> np.ndarray:
    """float64 [R]: the weighted mean of the kernel over pairs of vectors of different clips."""
    rows, total = one.rows_MxD.astype(np.float64), np.zeros(len(weights_RxM))
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        values_BxM = kernel(rows[block], rows)
        values_BxM[one.clips_M[block, None] == one.clips_M] = 0
        total += np.einsum("rb,br->r", weights_RxM[:, block], values_BxM @ weights_RxM.T)
    of_clips_RxN = np.stack([np.bincount(one.clips_M, w) for w in weights_RxM])
    pairs = of_clips_RxN.sum(axis=1) ** 2 - (of_clips_RxN**2).sum(axis=1)
    return np.divide(total, pairs, out=np.zeros(len(pairs)), where=pairs > 0)


def between(kernel: Kernel, a: Set, b: Set, weights_a: np.ndarray, weights_b: np.ndarray) -> np.ndarray:
    """float64 [R]: the weighted mean of the kernel over pairs of a vector of each set."""
    rows_a, rows_b = a.rows_MxD.astype(np.float64), b.rows_MxD.astype(np.float64)
    total = np.zeros(len(weights_a))
    for start in range(0, len(rows_a), BLOCK):
        block = slice(start, start + BLOCK)
        total += np.einsum("rb,br->r", weights_a[:, block], kernel(rows_a[block], rows_b) @ weights_b.T)
    return total / (weights_a.sum(axis=1) * weights_b.sum(axis=1))


def discrepancies(kernel: Kernel, a: Set, b: Set) -> np.ndarray:
    """float64 [1 + R]: the unbiased squared discrepancy, and that of each resample."""
    weights = weights_of(a, intervals.SEED), weights_of(b, intervals.SEED + 1)
    return within(kernel, a, weights[0]) + within(kernel, b, weights[1]) - 2 * between(kernel, a, b, *weights)


def _summary(submission: Set, reference: Set, kernel_of: Callable[[Set], Kernel | None]) -> Summary:
    why = too_few(submission, reference, vectors=False)
    kernel = None if why else kernel_of(reference)
    if kernel is None:
        return samples.refused(why or "the clips of the reference are all the same", submission.clips)
    value, *resampled = discrepancies(kernel, submission, reference)
    # A film that is there twice brings pairs of its own clips four times: percentiles lie above the value.
    return samples.around(float(value), np.array(resampled), submission.clips)


def kid(submission: Set, reference: Set) -> Summary:
    """With the polynomial kernel."""
    return _summary(submission, reference, lambda _: polynomial)


def kad(submission: Set, reference: Set) -> Summary:
    """With the Gaussian kernel."""

    def kernel(one: Set) -> Kernel | None:
        bandwidth = median_distance(one)
        return functools.partial(gaussian, bandwidth) if bandwidth > 0 else None

    return _summary(submission, reference, kernel)


@samples.of_features
def polynomial_distance(features: Features) -> Metric:
    return samples.declare(
        features,
        "kernel_polynomial",
        kid,
        better="less",
        tables=("sets",),
        note="Squared maximum mean discrepancy, unbiased, kernel (a b / D + 1)^3: near 0, also below, for equal sets.",
        protocol=PROTOCOL,
    )


@samples.of_features
def gaussian_distance(features: Features) -> Metric:
    return samples.declare(
        features,
        "kernel_gaussian",
        kad,
        better="less",
        tables=("sets",),
        note="Squared maximum mean discrepancy, unbiased, Gaussian kernel of the reference's median distance: below 2.",
        protocol=PROTOCOL,
    )
