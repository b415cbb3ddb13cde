"""How much the clips of one set differ: the mean distance of their vectors, and the classes that a network sees.

Shape suffixes: N clips, M vectors, D their width, C classes, R resamples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from poet.evaluation import intervals, samples
from poet.evaluation.features import Features
from poet.evaluation.metric import Metric, Summary
from poet.evaluation.metrics.kernels import squared_distances, weights_of, within
from poet.evaluation.samples import Set

LEAST_CLIPS = 2


def diversity(one: Set, _: Set) -> Summary:
    """Mean Euclidean distance between the mean vectors of two clips."""
    if one.clips < LEAST_CLIPS:
        return samples.refused(f"{one.clips} clips: at least {LEAST_CLIPS} are needed", one.clips)
    means = Set(rows_MxD=one.means(), clips_M=np.arange(one.clips), groups_M=one.groups_of_clips())
    value, *resampled = within(_distances, means, weights_of(means, intervals.SEED))
    return samples.around(float(value), np.array(resampled), one.clips)


def _distances(a_BxD: np.ndarray, b_MxD: np.ndarray) -> np.ndarray:
    return np.sqrt(squared_distances(a_BxD, b_MxD))


def class_score(classify: Callable[[np.ndarray], np.ndarray], one: Set, _: Set) -> Summary:
    """exp of the mean divergence of a vector's classes from those of the set, 1 .. C (Salimans et al. 2016)."""
    if one.clips < LEAST_CLIPS:
        return samples.refused(f"{one.clips} clips: at least {LEAST_CLIPS} are needed", one.clips)
    logits = classify(one.rows_MxD).astype(np.float64)
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    weights = weights_of(one, intervals.SEED)
    weights /= weights.sum(axis=1, keepdims=True)
    marginal_RxC = weights @ np.exp(logs)
    own_R = weights @ (np.exp(logs) * logs).sum(axis=1)
    value, *resampled = np.exp(own_R - (marginal_RxC * np.log(np.maximum(marginal_RxC, 1e-300))).sum(axis=1))
    return samples.around(float(value), np.array(resampled), one.clips)


@samples.of_features
def diversity_of(features: Features) -> Metric:
    return samples.declare(
        features,
        "diversity",
        diversity,
        better="neither",
        tables=("clips",),
        note="Mean distance between the mean vectors of two clips; far below the reference's: clips are alike.",
    )


@samples.of_features
def class_score_of(features: Features) -> Metric | None:
    if features.classify is None:
        return None
    return samples.declare(
        features,
        "class_score",
        functools.partial(class_score, features.classify),
        better="neither",
        tables=("clips",),
        note="The arithmetic of the inception score on this network's classes: how many kinds of frames it sees.",
    )
