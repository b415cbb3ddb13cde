"""The interface of metrics, their mergeable sums, and the one pass that feeds them with examples.

A metric is a `Metric` that a file of `poet.evaluation.metrics` hands to `register`.  It measures a batch: the sums
and counts of its examples (`Values`), sums that are all that it needs of them (`Sums`), or vectors that it compares
(`poet.evaluation.samples.Samples`).  Each merges with that of other batches, in any order and by any shards, into the
same bits.

Shape suffixes: N examples, G groups of dependent examples, F folds.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from poet.evaluation import intervals
from poet.spec import UserError

# Fields of examples: arrays [N, ...] or lists of N, and what is common to them.
Batch = Mapping[str, Any]
# Fields that any batch may have: places of its examples in the evaluation, int [N], and what each one depends on,
# such as its film.  By default the places count from 0 and every example is a group of its own.
PLACES, GROUPS = "places", "groups"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """A number and how far to trust it; None is what does not exist.

    Attributes:
      error: standard error over groups.
      low, high: bounds of `intervals.LEVEL` of the bootstrap resamples of the groups.
      n: examples that count.
      why: the reason that there is no value, where a metric refuses to give one.
    """

    value: float | None
    error: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    why: str = ""


class State(Protocol):
    """What a metric keeps of the examples that it measured."""

    def merge(self, other: Any) -> Any:
        """Both, whatever the order."""

    def summary(self, finish: Any) -> Summary:
        """The number, by the metric's `finish`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    """Sums and counts of single examples; the metric is sum over count.

    Attributes:
      places_N: int64, ascending: which example of the evaluation; none twice.
      groups_N: what each depends on: numbers, or strings.
      sums_N, counts_N: float64; an example of count 0 does not count.
      failed_N: bool: the metric failed on what was made of the example, which counts as the worst.
    """

    places_N: np.ndarray
    groups_N: np.ndarray
    sums_N: np.ndarray
    counts_N: np.ndarray
    failed_N: np.ndarray

    @classmethod
    def of(cls, batch: Batch, sums_N: Any, counts_N: Any = None, failed_N: Any = None) -> Values:
        """The values of a batch; counts of 1 by default."""
        n = len(sums_N)
        places_N = np.asarray(batch.get(PLACES, np.arange(n)), np.int64)
        order_N = np.argsort(places_N)
        rest = {
            "groups_N": np.asarray(batch.get(GROUPS, places_N)),
            "sums_N": np.asarray(sums_N, np.float64),
            "counts_N": np.ones(n) if counts_N is None else np.asarray(counts_N, np.float64),
            "failed_N": np.zeros(n, bool) if failed_N is None else np.asarray(failed_N, bool),
        }
        return cls(places_N=places_N[order_N], **{name: x[order_N] for name, x in rest.items()})

    def merge(self, other: Values) -> Values:
        """Both, by place; an example that both have is the one of `self`."""
        places_N, first_N = np.unique(np.concatenate([self.places_N, other.places_N]), return_index=True)
        names = [field.name for field in dataclasses.fields(self) if field.name != "places_N"]
        rest = {name: np.concatenate([getattr(self, name), getattr(other, name)])[first_N] for name in names}
        return Values(places_N=places_N, **rest)

    @property
    def ratios_N(self) -> np.ndarray:
        """float64: the metric of each example; NaN of those that do not count."""
        known = self.counts_N > 0
        return np.divide(self.sums_N, self.counts_N, out=np.full(len(known), np.nan), where=known)

    def summary(self, finish: Callable[[float], float] | None = None) -> Summary:
        """The summary of sum over count, or of its `finish`, which has no standard error."""
        n = int((self.counts_N > 0).sum())
        if not n:
            return Summary(value=None)
        sums_G, counts_G = self._by_group()
        value, error = intervals.ratio_and_error(sums_G, counts_G)
        bounds = intervals.ratio_interval(sums_G, counts_G) or (None, None)
        if finish is not None:
            value, error = finish(value), None
            bounds = bounds if bounds[0] is None else sorted(map(finish, bounds))
        return Summary(value=value, error=error, low=bounds[0], high=bounds[1], n=n)

    def _by_group(self) -> tuple[np.ndarray, np.ndarray]:
        names, index_N = np.unique(self.groups_N, return_inverse=True)
        return tuple(np.bincount(index_N, x, minlength=len(names)) for x in (self.sums_N, self.counts_N))


# Units in which the three parts of a float are whole numbers: sums of 2^20 of them, each below 2^32, are exact.
_UNITS = (2.0**0, 2.0**-32, 2.0**-64)
_LARGEST, _MOST = 2.0**32, 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sums:
    """Exact sums over examples, in folds: what a metric of a whole set needs, such as means and covariances.

    Attributes:
      parts: name -> int64 [F, ...], or float64 [F, 3, ...]: sums of each fold; of floats in three parts.
      n_F: int64: examples of each fold.
    """

    parts: Mapping[str, np.ndarray]
    n_F: np.ndarray

    @classmethod
    def of(cls, batch: Batch, folds: int = 1, **values: np.ndarray) -> Sums:
        """The sums of a batch: values [N, ...] are summed over examples; example i is of fold `place mod folds`.

        Raises:
          UserError: a value that is not finite or not below 2^32, or more than 2^20 examples.
        """
        n = len(next(iter(values.values())))
        fold_N = np.asarray(batch.get(PLACES, np.arange(n)), np.int64) % folds
        parts = {}
        for name, x in values.items():
            split = np.asarray(x, np.int64) if np.asarray(x).dtype.kind in "biu" else _split(name, x)
            parts[name] = np.zeros((folds, *split.shape[1:]), split.dtype)
            np.add.at(parts[name], fold_N, split)
        return cls(parts=parts, n_F=_counted(np.bincount(fold_N, minlength=folds)))

    def merge(self, other: Sums) -> Sums:
        parts = {name: x + other.parts[name] for name, x in self.parts.items()}
        return Sums(parts=parts, n_F=_counted(self.n_F + other.n_F))

    def totals(self, times_F: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Name -> the sum, every fold taken so many times; once by default."""
        found = {}
        for name, parts in self.parts.items():
            times = np.ones(len(parts), np.int64) if times_F is None else times_F
            whole = np.tensordot(times.astype(parts.dtype), parts, axes=1)
            found[name] = whole if whole.dtype.kind == "i" else whole[::-1].sum(axis=0)
        return found

    def summary(self, finish: Callable[[Mapping[str, np.ndarray]], float | None]) -> Summary:
        """The summary of `finish(totals)`; the interval is over folds, and needs two with examples."""
        value = finish(self.totals())
        bounds = intervals.resampled(lambda times_F: finish(self.totals(times_F)), self.n_F > 0)
        low, high = bounds if bounds and value is not None else (None, None)
        return Summary(value=value, low=low, high=high, n=int(self.n_F.sum()))


def _split(name: str, values: np.ndarray) -> np.ndarray:
    """float64 [N, 3, ...] that sum to `values`, each a multiple of its unit."""
    rest = np.asarray(values, np.float64)
    if not np.all(np.abs(rest) < _LARGEST):
        raise UserError(f"{name}: values must be finite and below 2^32 to be summed exactly")
    parts = []
    for unit in _UNITS:
        parts.append(np.rint(rest / unit) * unit)
        rest = rest - parts[-1]
    return np.stack(parts, axis=1)


def _counted(n_F: np.ndarray) -> np.ndarray:
    if n_F.sum() > _MOST:
        raise UserError(f"{n_F.sum():,} examples: at most {_MOST:,} are summed exactly")
    return n_F


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """The declaration of one number.

    Attributes:
      name: its column; ends in its unit (`psnr_db`).
      better: whether more or less is better, or neither.
      tables: the tables (of `poet eval`, `poet tokenizer-eval`) that it is a column of.
      needs: fields of the batches that it measures; where a batch lacks one, its value is None.
      measure: the values, the sums or the samples (`poet.evaluation.samples`) of a batch.  Metrics with the same
        function share its result.
      finish: value of `Values` -> the metric (identity by default), totals of `Sums` -> the metric, or both sets of
        `Samples` -> the summary.
      beside: parts of the summary in a row beside the value.
      note: what it is, for readers of a table.
      package, install: what must be installed, and how; '' for nothing.
      networks: fingerprint of each network that it measures with.
      protocol: what else the number depends on, for the record.
    """

    name: str
    better: Literal["more", "less", "neither"]
    tables: tuple[str, ...]
    needs: tuple[str, ...]
    measure: Callable[[Batch], State]
    finish: Callable[..., Any] | None = None
    beside: tuple[str, ...] = ("error", "low", "high")
    note: str = ""
    package: str = ""
    install: str = ""
    networks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_installed(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None

    @property
    def manifest(self) -> dict[str, Any]:
        """The metadata of the number in JSON."""
        fields = {"note": self.note, "package": self.package, "networks": dict(self.networks)}
        return {"better": self.better} | {k: v for k, v in fields.items() if v} | dict(self.protocol)

    def row(self, summary: Summary) -> dict[str, Any]:
        """The columns of a row: `<name>`, and `<name>_<part>` of what stands beside it."""
        return {self.name: summary.value} | {f"{self.name}_{k}": getattr(summary, k) for k in self.beside}


METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Adds a metric to the registry; its name must be new."""
    if metric.name in METRICS:
        raise ValueError(f"two metrics are called {metric.name}")
    METRICS[metric.name] = metric
    return metric


# ------------------------------------------------------------------------------------------ walking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A metric and what it found; None where no batch had what it needs."""

    metric: Metric
    state: State | None

    @functools.cached_property
    def summary(self) -> Summary:
        return Summary(value=None) if self.state is None else self.state.summary(self.metric.finish)


# Name of a metric -> what it found, in the order of the columns.
Found = Mapping[str, Measured]


def walk(
    steps: Iterable[Mapping[Any, Batch]], metrics: Sequence[Metric] | Mapping[Any, Sequence[Metric]]
) -> dict[Any, Found]:
    """The results of each metric for each row of a table, from one pass over the examples.

    Args:
      steps: row -> its batch; a row that a step leaves out has no example there.
      metrics: of every row, or row -> its own.
    """
    states: dict[Any, dict[Any, State]] = {}
    for step in steps:
        for row, batch in step.items():
            kept, chosen = states.setdefault(row, {}), _of_row(metrics, row)
            measures = dict.fromkeys(m.measure for m in chosen if all(need in batch for need in m.needs))
            for measure in measures:
                found = measure(batch)
                kept[measure] = kept[measure].merge(found) if measure in kept else found
    return {
        row: {m.name: Measured(metric=m, state=kept.get(m.measure)) for m in _of_row(metrics, row)}
        for row, kept in states.items()
    }


def _of_row(metrics: Sequence[Metric] | Mapping[Any, Sequence[Metric]], row: Any) -> Sequence[Metric]:
    return metrics[row] if isinstance(metrics, Mapping) else metrics


def measure(batch: Batch, metrics: Sequence[Metric]) -> Found:
    """The results of each metric on one batch."""
    return walk([{None: batch}], metrics)[None]


def columns(found: Found) -> dict[str, Any]:
    """The columns of a row."""
    return {key: x for each in found.values() for key, x in each.metric.row(each.summary).items()}


def manifests(metrics: Iterable[Metric]) -> dict[str, dict[str, Any]]:
    """Name -> what each number depends on."""
    return {metric.name: metric.manifest for metric in metrics}
