"""The Fréchet distance of two sets of vectors: that of the normal distributions with their means and covariances
(Heusel et al., 1706.08500), and its limit for infinitely many clips (Chong and Forsyth, 1911.07023).

The names are this project's own (`frame_frechet`): numbers called FID, FVD or FAD come of other networks.

Shape suffixes: M vectors, D their width, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from poet.evaluation import intervals, samples
from poet.evaluation.features import Features
from poet.evaluation.metric import Metric, Summary
from poet.evaluation.samples import Set

# Sizes of the sets that the limit is taken from, as fractions of the clips: evenly spaced in one over the size.
PARTS = (1.0, 3 / 4, 3 / 5, 1 / 2)
# Random orders whose limits are averaged.
ORDERS = 4


class Moments(NamedTuple):
    """float64 [D] and, of M - 1, [D, D]."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(rows_MxD: np.ndarray, times_M: np.ndarray | None = None) -> Moments:
    """The moments of vectors, each of which is there so many times (once by default)."""
    rows = rows_MxD.astype(np.float64)
    weights = np.ones(len(rows)) if times_M is None else times_M.astype(np.float64)
    mean = weights @ rows / weights.sum()
    rows -= mean
    rows *= np.sqrt(weights)[:, None]
    return Moments(mean, rows.T @ rows / (weights.sum() - 1))


def distance(a: Moments, b: Moments) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), not below 0.

    The eigenvalues of C C' are those of the symmetric R^T C' R, where C = R R^T.
    """
    root = _root(a.covariance)
    values = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    shift = a.mean - b.mean
    return max(float(shift @ shift + traces - 2 * np.sqrt(np.maximum(values, 0)).sum()), 0.0)


def _root(covariance_DxD: np.ndarray) -> np.ndarray:
    """R with R R^T the covariance: its Cholesky factor, or where it is singular, by its eigenvectors."""
    try:
        return np.linalg.cholesky(covariance_DxD)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance_DxD)
        return vectors * np.sqrt(np.maximum(values, 0))


def too_few(submission: Set, reference: Set, *, vectors: bool) -> str:
    """The reason that sets are too small to be compared, or ''; with `vectors`, for a covariance of full rank."""
    for name, one in ((samples.SUBMISSION, submission), (samples.REFERENCE, reference)):
        width = one.rows_MxD.shape[1]
        if one.clips < 2:
            return f"the {name} has {one.clips} clips: at least 2 are needed"
        if vectors and len(one.rows_MxD) <= width:
            return (
                f"the {name} has {len(one.rows_MxD):,} vectors of {width:,} dimensions: its covariance needs more "
                "vectors than dimensions; the kernel distances beside it do not"
            )
    return ""


def resamples(width: int) -> int:
    """How many bootstrap resamples a distance of this many dimensions can afford: 20 of 1,280, 128 of 512."""
    return int(np.clip(2**25 // width**2, 20, intervals.FEW_RESAMPLES))


def finite(submission: Set, reference: Set) -> Summary:
    """The distance of the sets as they are."""
    if why := too_few(submission, reference, vectors=True):
        return samples.refused(why, submission.clips)
    a, b = submission.rows_MxD, reference.rows_MxD
    count = resamples(a.shape[1])
    times = zip(submission.times(count, intervals.SEED), reference.times(count, intervals.SEED + 1))
    resampled = np.array([distance(moments(a, x), moments(b, y)) for x, y in times])
    return samples.around(distance(moments(a), moments(b)), resampled, submission.clips)


def limit(submission: Set, reference: Set) -> Summary:
    """The intercept of distances of parts of both sets over one over their number of clips."""
    why = too_few(submission, reference, vectors=True)
    smallest = [one.taken(np.arange(one.clips) < one.clips // 2) for one in (submission, reference)] if not why else ()
    why = why or too_few(*smallest, vectors=True)
    if why:
        return samples.refused(
            why.replace("has", "has in a half of its clips", 1) if smallest else why, submission.clips
        )
    rng = np.random.default_rng(intervals.SEED)
    value = np.mean([_intercept(submission, reference, rng) for _ in range(ORDERS)])
    count = resamples(submission.rows_MxD.shape[1])
    times = zip(submission.times(count, intervals.SEED), reference.times(count, intervals.SEED + 1))
    resampled = np.array([_intercept(submission, reference, rng, *pair) for pair in times])
    return samples.around(float(value), resampled, submission.clips)


def _intercept(
    a: Set, b: Set, rng: np.random.Generator, times_a: np.ndarray | None = None, times_b: np.ndarray | None = None
) -> float:
    """At 1/n = 0, of a line through the distances of the first n clips of both sets in a random order.

    Args:
      times_a, times_b: int64 [M], how often each vector's clip is there; once by default.
    """
    orders = [rng.permutation(_clips(one, times)) for one, times in ((a, times_a), (b, times_b))]
    n = min(map(len, orders))
    sizes = [round(n * part) for part in PARTS]
    found = [distance(*(_first(one, order[:size]) for one, order in zip((a, b), orders))) for size in sizes]
    return float(np.polyfit(1 / np.array(sizes), found, 1)[1])


def _clips(one: Set, times_M: np.ndarray | None) -> np.ndarray:
    """Each clip as often as it is there."""
    first_N = np.searchsorted(one.clips_M, np.arange(one.clips))
    return np.repeat(np.arange(one.clips), 1 if times_M is None else times_M[first_N])


def _first(one: Set, clips: np.ndarray) -> Moments:
    times_N = np.bincount(clips, minlength=one.clips)
    return moments(one.rows_MxD, times_N[one.clips_M])


@samples.of_features
def frechet(features: Features) -> Metric:
    return samples.declare(
        features,
        "frechet",
        finite,
        better="less",
        tables=("sets",),
        note="Fréchet distance of the vectors; it grows as clips get fewer, so that only sets of equal size compare.",
        protocol={"interval": "value ± 1.96 bootstrap deviations over groups of clips", "seed": intervals.SEED},
    )


@samples.of_features
def frechet_limit(features: Features) -> Metric:
    return samples.declare(
        features,
        "frechet_limit",
        limit,
        better="less",
        tables=("sets",),
        note="Fréchet distance for infinitely many clips: the intercept of a line over one over the number of clips.",
        protocol={"parts": list(PARTS), "orders": ORDERS, "seed": intervals.SEED},
    )
