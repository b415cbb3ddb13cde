"""Vectors of the clips of two sets, kept whole: what a metric that compares sets needs of a pass over clips.

They are ordered by place before anything is computed, so that a value does not depend on how the clips were divided
into batches, nor on the order and the number of shards.  A vector takes 4 bytes a dimension: 50,000 clips with one
vector of 1,280 take 256 MB.

Shape suffixes: N clips, M vectors, D their width, G groups of dependent clips, R resamples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from poet.evaluation import intervals
from poet.evaluation.features import Features
from poet.evaluation.metric import GROUPS, PLACES, Batch, Metric, Summary

# The field of a batch that says whose clips they are, and its values: what is scored, and what it is compared with.
SIDE, SUBMISSION, REFERENCE = "side", "submission", "reference"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Set:
    """The vectors of a set.

    Attributes:
      rows_MxD: float32.
      clips_M: int64: the clip of each, 0 .. N - 1, ascending.
      groups_M: int64: the group of each, 0 .. G - 1.
    """

    rows_MxD: np.ndarray
    clips_M: np.ndarray
    groups_M: np.ndarray

    @property
    def clips(self) -> int:
        return int(self.clips_M[-1]) + 1 if len(self.clips_M) else 0

    @property
    def groups(self) -> int:
        return int(self.groups_M.max()) + 1 if len(self.groups_M) else 0

    def means(self) -> np.ndarray:
        """float64 [N, D]: the mean vector of each clip."""
        totals = np.zeros((self.clips, self.rows_MxD.shape[1]))
        np.add.at(totals, self.clips_M, self.rows_MxD)
        return totals / np.bincount(self.clips_M)[:, None]

    def groups_of_clips(self) -> np.ndarray:
        """int64 [N]: the group of each clip."""
        return self.groups_M[np.searchsorted(self.clips_M, np.arange(self.clips))]

    def taken(self, kept_N: np.ndarray) -> Set:
        """Of the clips where bool `kept_N`."""
        kept_M = kept_N[self.clips_M]
        numbers = [np.unique(x[kept_M], return_inverse=True)[1] for x in (self.clips_M, self.groups_M)]
        return Set(rows_MxD=self.rows_MxD[kept_M], clips_M=numbers[0], groups_M=numbers[1])

    def times(self, resamples: int, seed: int) -> np.ndarray:
        """int64 [R, M]: how often each vector is in each bootstrap resample of the groups."""
        return intervals.times(self.groups, resamples, seed)[:, self.groups_M]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """The vectors of clips of both sets: (side, place) -> (group, float32 [K, D])."""

    found: dict[tuple[str, int], tuple[Any, np.ndarray]]

    @classmethod
    def of(cls, batch: Batch, rows_N: Sequence[np.ndarray]) -> Samples:
        """The vectors [K, D] of each clip of a batch, K at least 1."""
        side = batch.get(SIDE, SUBMISSION)
        places = np.asarray(batch.get(PLACES, np.arange(len(rows_N)))).tolist()
        groups = np.asarray(batch.get(GROUPS, places)).tolist()
        return cls(found={(side, place): (group, x) for place, group, x in zip(places, groups, rows_N, strict=True)})

    def merge(self, other: Samples) -> Samples:
        """Both; a clip that both have is the one of `self`."""
        return Samples(found=other.found | self.found)

    def set_of(self, side: str) -> Set:
        """The vectors of a side, by place."""
        kept = [self.found[key] for key in sorted(key for key in self.found if key[0] == side)]
        sizes = [len(rows) for _, rows in kept]
        names = np.array([group for group, _ in kept])
        groups_N = np.unique(names, return_inverse=True)[1] if kept else np.zeros(0, np.int64)
        return Set(
            rows_MxD=np.concatenate([rows for _, rows in kept]) if kept else np.zeros((0, 1), np.float32),
            clips_M=np.repeat(np.arange(len(kept)), sizes),
            groups_M=np.repeat(groups_N, sizes),
        )

    def summary(self, finish: Callable[[Set, Set], Summary]) -> Summary:
        """What `finish` makes of the submission and the reference."""
        return finish(self.set_of(SUBMISSION), self.set_of(REFERENCE))


def around(value: float, resampled_R: np.ndarray, n: int) -> Summary:
    """The normal interval of `intervals.LEVEL` about a value, from the deviation of resamples.

    For distances that resampling raises: repeated clips make a set narrower, so that the percentiles of the resamples
    lie above the value.  They give its deviation, not its place.
    """
    error = float(np.std(resampled_R, ddof=1))
    reach = intervals.NORMAL * error
    return Summary(value=value, error=error, low=value - reach, high=value + reach, n=n)


def percentiles(value: float, resampled_R: np.ndarray, n: int) -> Summary:
    """The percentile interval of `intervals.LEVEL`."""
    low, high = intervals.bounds(resampled_R)
    return Summary(value=value, error=float(np.std(resampled_R, ddof=1)), low=low, high=high, n=n)


def refused(why: str, n: int = 0) -> Summary:
    """No value, and the reason."""
    return Summary(value=None, n=n, why=why)


# ---------------------------------------------------------------- metrics of every feature network


def field_of(prefix: str) -> str:
    """The field of a batch that holds the vectors of a network: N arrays float32 [K, D]."""
    return f"{prefix}_vectors"


@functools.cache
def measure_of(field: str) -> Callable[[Batch], Samples]:
    """The measure of a field; one function for each, so that metrics share its result."""
    return lambda batch: Samples.of(batch, batch[field])


# Of a network -> its metric, or None where it has none.
Maker = Callable[[Features], Metric | None]
MAKERS: list[Maker] = []


def of_features(make: Maker) -> Maker:
    """Registers a metric that every feature network has; decorates a function."""
    MAKERS.append(make)
    return make


def declare(features: Features, suffix: str, finish: Callable[[Set, Set], Summary], **more: Any) -> Metric:
    """A metric `<prefix>_<suffix>` of the vectors of a network."""
    field, protocol = field_of(features.prefix), {"network": features.manifest, **more.pop("protocol", {})}
    return Metric(
        name=f"{features.prefix}_{suffix}",
        needs=(field,),
        measure=measure_of(field),
        finish=finish,
        networks={features.name: features.fingerprint},
        protocol=protocol,
        **more,
    )
