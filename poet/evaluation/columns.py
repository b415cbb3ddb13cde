"""Sums of single examples in several columns, of which a number is a function, such as a balanced accuracy.

Unlike `metric.Sums` it keeps every example, so that intervals resample groups of examples, and differences are paired.

Shape suffixes: N examples, G groups, C columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from poet.evaluation import intervals
from poet.evaluation.metric import GROUPS, PLACES, Batch, Summary

# Totals of the columns, by name -> the number; None where it does not exist.
Finish = Callable[[Mapping[str, np.ndarray]], float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """A state of a metric (`poet.evaluation.metric.State`).

    Attributes:
      names: of the columns.
      places_N: int64, ascending: which example of the evaluation; none twice.
      groups_N: what each depends on.
      rows_NxC: float64, not below 0; an example whose row is 0 does not count.
    """

    names: tuple[str, ...]
    places_N: np.ndarray
    groups_N: np.ndarray
    rows_NxC: np.ndarray

    @classmethod
    def of(cls, batch: Batch, **columns_N: Any) -> Columns:
        """Those of a batch: name -> a number of each example."""
        rows_NxC = np.stack([np.asarray(x, np.float64) for x in columns_N.values()], axis=1)
        places_N = np.asarray(batch.get(PLACES, np.arange(len(rows_NxC))), np.int64)
        order_N = np.argsort(places_N)
        groups_N = np.asarray(batch.get(GROUPS, places_N))
        return cls(
            names=tuple(columns_N), places_N=places_N[order_N], groups_N=groups_N[order_N], rows_NxC=rows_NxC[order_N]
        )

    def merge(self, other: Columns) -> Columns:
        """Both, by place; an example that both have is the one of `self`."""
        places_N, first_N = np.unique(np.concatenate([self.places_N, other.places_N]), return_index=True)
        groups_N = np.concatenate([self.groups_N, other.groups_N])[first_N]
        rows_NxC = np.concatenate([self.rows_NxC, other.rows_NxC])[first_N]
        return Columns(names=self.names, places_N=places_N, groups_N=groups_N, rows_NxC=rows_NxC)

    @property
    def counted(self) -> Columns:
        """The examples that count."""
        return self._some(np.flatnonzero(self.rows_NxC.any(axis=1)))

    def at(self, places: np.ndarray) -> Columns:
        """The examples of some places, which it has."""
        return self._some(np.searchsorted(self.places_N, places))

    def _some(self, chosen: np.ndarray) -> Columns:
        return dataclasses.replace(
            self, places_N=self.places_N[chosen], groups_N=self.groups_N[chosen], rows_NxC=self.rows_NxC[chosen]
        )

    def summary(self, finish: Finish) -> Summary:
        """The summary of `finish(totals)`; the interval resamples groups."""
        counted = self.counted
        if not len(counted.places_N) or (value := counted.value(finish)) is None:
            return Summary(value=None)
        rows_GxC = counted.by_group()
        low, high = _interval(len(rows_GxC), lambda times_G: self.number(finish, times_G @ rows_GxC))
        return Summary(value=value, low=low, high=high, n=len(counted.places_N))

    def by_group(self) -> np.ndarray:
        """float64 [G, C]: sums of each group, in the order of their names."""
        names, index_N = np.unique(self.groups_N, return_inverse=True)
        rows_GxC = np.zeros((len(names), self.rows_NxC.shape[1]))
        np.add.at(rows_GxC, index_N, self.rows_NxC)
        return rows_GxC

    def value(self, finish: Finish) -> float | None:
        """The number of all examples."""
        return self.number(finish, self.rows_NxC.sum(axis=0))

    def number(self, finish: Finish, totals_C: np.ndarray) -> float | None:
        """The number of totals."""
        return finish(dict(zip(self.names, totals_C)))


def difference(one: Columns, other: Columns, finish: Finish) -> tuple[float | None, float | None, float | None, int]:
    """(Other's number less one's, the bounds of its interval, the number of examples), over what both have.

    Every resample takes the same groups of both; resamples in which a number does not exist are left out.
    """
    both_N = np.intersect1d(one.counted.places_N, other.counted.places_N)
    first, second = one.at(both_N), other.at(both_N)
    ends = (first.value(finish), second.value(finish)) if len(both_N) else (None, None)
    if None in ends:
        return None, None, None, len(both_N)
    # Groups are those of `one`, for both.
    rows = first.by_group(), dataclasses.replace(second, groups_N=first.groups_N).by_group()

    def resample(times_G: np.ndarray) -> float | None:
        found = [first.number(finish, times_G @ rows_GxC) for rows_GxC in rows]
        return None if None in found else found[1] - found[0]

    return ends[1] - ends[0], *_interval(len(rows[0]), resample), len(both_N)


def _interval(groups: int, number: Callable[[np.ndarray], float | None]) -> tuple[float | None, float | None]:
    found = intervals.resampled(number, np.ones(groups, bool), resamples=intervals.RESAMPLES)
    return found or (None, None)
