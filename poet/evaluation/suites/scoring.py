"""Scores of a submission to a benchmark, beside trivial submissions and ceilings, over the same clips.

Every difference is paired: an interval resamples the episodes of the clips.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels, S samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from poet.evaluation import columns, comparison, intervals, leaks, metric, probes
from poet.evaluation.columns import Columns
from poet.evaluation.leaks import Nearest
from poet.evaluation.metric import GROUPS, METRICS, PLACES, Found, Measured
from poet.evaluation.metrics.sounds import to_float
from poet.evaluation.score.sides import Item
from poet.evaluation.suites import trivial
from poet.evaluation.suites.cases import Real, Suite, items
from poet.evaluation.suites.submissions import Made, complete
from poet.evaluation.suites.tasks import BASELINES, SOUND, TEXT, VIDEO, SuiteTask
from poet.evaluation.suites.trivial import Trivial

SUBMISSION, BASELINE, CEILING = "submission", "baseline", "ceiling"
# The ceilings: true clips against their captions, and as the tokenizers of a model give them back.
TRUE, ROUND_TRIP = "true clips", "tokenizer round trip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is measured beside others: clips, sounds or texts in the order of the list, None where one is missing."""

    name: str
    kind: str
    made: Sequence[np.ndarray | str | None]


# ----------------------------------------------------------------------------------------- candidates


def candidates(
    task: SuiteTask, reals: Sequence[Real], made: Made, simple: Trivial, coded: Sequence[np.ndarray]
) -> list[Candidate]:
    """The submission first, then trivial ones, then ceilings.

    Args:
      coded: true clips, sounds or texts as a model's tokenizer gives them back; () of other models.
    """
    found = [Candidate(name=SUBMISSION, kind=SUBMISSION, made=made.of(task))]
    for name in task.baselines:
        those = trivial.make(name, task, reals, simple, made.of(task))
        found += [Candidate(name=name, kind=BASELINE, made=those)] if len(those) else []
    found += [Candidate(name=ROUND_TRIP, kind=CEILING, made=coded)] if len(coded) else []
    # A text beside itself says nothing.
    return found if task.writes else [*found, Candidate(name=TRUE, kind=CEILING, made=true_of(task, reals))]


def true_of(task: SuiteTask, reals: Sequence[Real]) -> list[Any]:
    """What a task is to make: clips, sounds, or texts."""
    if task.writes:
        return [real.case.text for real in reals]
    return [real.sound if task.sound else real.video for real in reals]


# ------------------------------------------------------------------------------------------ measuring


def measure(
    task: SuiteTask, reals: Sequence[Real], chosen: Sequence[Candidate], rate_hz: float
) -> list[dict[str, Any]]:
    """A row for each candidate and metric, with how far the submission is from it."""
    metrics = [METRICS[name] for name in task.metrics]
    alone = [m for m in metrics if "truth" not in m.needs]
    wanted = {one.name: alone if one.name == TRUE else metrics for one in chosen}
    steps = (_step(task, place, real, chosen, rate_hz) for place, real in enumerate(reals))
    found = metric.walk(steps, wanted)
    own = found.get(SUBMISSION, {})
    return [row for one in chosen if one.name in found for row in _rows(one, found[one.name], own)]


def _step(
    task: SuiteTask, place: int, real: Real, chosen: Sequence[Candidate], rate_hz: float
) -> Mapping[str, Mapping[str, Any]]:
    common = {PLACES: [place], GROUPS: [real.case.episode], "caption": [real.case.text], "rate_hz": rate_hz}
    fields = {VIDEO: _seen, SOUND: _heard, TEXT: _written}[task.makes]
    there = [(one.name, one.made[place]) for one in chosen if one.made[place] is not None]
    return {name: common | fields(task, real, made) for name, made in there}


def _heard(task: SuiteTask, real: Real, made: np.ndarray) -> dict[str, Any]:
    pair = {"truth": [to_float(real.sound)], "other": [to_float(made)], "defined": {}}
    return {"video": real.video[None], "sound": [made], "shots": [real.case.shots], **pair}


def _written(task: SuiteTask, real: Real, made: str) -> dict[str, Any]:
    return {"written": [made]}


def _seen(task: SuiteTask, real: Real, made: np.ndarray) -> dict[str, Any]:
    video = complete(task, real, made)
    pair = {"truth": real.video[None, task.measured], "other": video[None, task.measured]}
    hole = {"hole": ~task.given(*video.shape[1:3])[None]} if task.hole else {}
    return {"video": video[None], "depth": [real.depth], **pair, **hole}


def _rows(one: Candidate, found: Found, own: Found) -> Iterator[dict[str, Any]]:
    for name, each in found.items():
        summary = each.summary
        if summary.value is None:
            continue
        bounds = {"value": summary.value, "low": summary.low, "high": summary.high, "clips": summary.n}
        row = {"candidate": one.name, "kind": one.kind, "metric": name, **bounds, "better": each.metric.better}
        yield row | (_ahead(own[name], each) if one.kind != SUBMISSION and name in own else {})


def _ahead(own: Measured, other: Measured) -> dict[str, Any]:
    """The submission's number less the candidate's, over the clips that both have; {} of what has no pairs."""
    if None in (own.state, other.state, own.summary.value):
        return {}
    difference, low, high, pairs = _paired(other.state, own.state, own.metric.finish)
    # In standard errors, of a normal distribution that has this interval.
    error = None if low is None else (high - low) / (2 * intervals.NORMAL)
    return {
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "deviations": difference / error if error else None,
        "pairs": pairs,
        "verdict": comparison.verdict(low, high, own.metric.better),
    }


def _paired(one: Any, other: Any, finish: Any) -> tuple[float | None, float | None, float | None, int]:
    pair = columns.difference if isinstance(one, Columns) else comparison.paired
    return pair(one, other, finish)


def best_trivial(rows: Sequence[Mapping[str, Any]], task: SuiteTask) -> dict[str, Any]:
    """The row of the trivial submission that is best by the first metric of the task; {} where there is none."""
    first, better = task.metrics[0], METRICS[task.metrics[0]].better
    found = [row for row in rows if row["kind"] == BASELINE and row["metric"] == first and "verdict" in row]
    return dict((min if better == "less" else max)(found, key=lambda row: row["value"])) if found else {}


def beaten(rows: Sequence[Mapping[str, Any]], task: SuiteTask) -> dict[str, list[str]]:
    """Verdict -> trivial submissions, by the first metric of the task."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["kind"] == BASELINE and row["metric"] == task.metrics[0] and "verdict" in row:
            found.setdefault(row["verdict"], []).append(row["candidate"])
    return found


# --------------------------------------------------------------------------------------------- leaks


@dataclasses.dataclass(kw_only=True)
class Search:
    """The nearest training clips of samples and of true clips, which grow as training clips pass."""

    samples: dict[str, Nearest]
    heldout: Nearest

    @classmethod
    def of(cls, reals: Sequence[Real], made: Mapping[str, Made], heldout: Iterable[Item]) -> Search:
        """Of the samples of each task, and of clips like those of the training set that are not in it."""
        videos = {
            name: [video for video in one.videos if video is not None] for name, one in made.items() if one.videos
        }
        samples = {name: Nearest.of(items(reals[: len(found)], found))[0] for name, found in videos.items()}
        return cls(samples=samples, heldout=Nearest.of(heldout)[0])

    def passing(self, training: Iterable[Item]) -> Iterator[Item]:
        """The training clips, looked at as they pass."""
        for item in training:
            frames = leaks.described(item.video)
            for nearest in (*self.samples.values(), self.heldout):
                nearest.see(item.place, frames)
            yield item

    @property
    def found(self) -> dict[str, dict[str, Any]]:
        """Task -> the summary of `poet leaks`."""
        heldout = self.heldout.similarity_N
        return {
            name: leaks.summary(one.similarity_N, heldout, leaks.chances(one.similarity_N, heldout))
            for name, one in self.samples.items()
        }


def protocol(suite: Suite, count: int) -> dict[str, Any]:
    """What every number of a run depends on."""
    return {
        "benchmark": suite.name,
        "version": suite.version,
        "list": suite.fingerprint,
        "clips": count,
        "of": len(suite.cases),
        "probes": {name: probe.fingerprint for name, probe in probes.load().items()},
        "baselines": BASELINES,
    }
