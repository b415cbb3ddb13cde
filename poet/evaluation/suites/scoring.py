"""Scores of a submission to a benchmark, beside trivial submissions and ceilings, over the same clips.

Every difference is paired: an interval resamples the episodes of the clips.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels, S samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from poet.conditioning import regions
from poet.evaluation import baselines, comparison, leaks, metric, probes
from poet.evaluation.leaks import Nearest
from poet.evaluation.metric import GROUPS, METRICS, PLACES, Found, Measured, Values
from poet.evaluation.metrics.sounds import to_float
from poet.evaluation.score.sides import Item
from poet.evaluation.suites.cases import Real, Suite, items
from poet.evaluation.suites.submissions import Made, complete
from poet.evaluation.suites.tasks import BASELINES, SuiteTask

SUBMISSION, BASELINE, CEILING = "submission", "baseline", "ceiling"
# The ceilings: true clips against their captions, and as the tokenizers of a model give them back.
TRUE, ROUND_TRIP = "true clips", "tokenizer round trip"
SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is measured beside others: clips or sounds in the order of the list, None where one is missing."""

    name: str
    kind: str
    made: Sequence[np.ndarray | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trivial:
    """Trivial submissions that all tasks share, and the nearest training clips of others.

    Attributes:
      of_training: as `baselines.of_training`.
      partners: for each clip the place of another one.
    """

    of_training: Mapping[str, Sequence[np.ndarray]]
    partners: Sequence[int]


def trivial(reals: Sequence[Real], training: Iterable[Item]) -> Trivial:
    """Of the clips of the list, in one pass over the training clips."""
    rng = np.random.default_rng(SEED)
    found = baselines.of_training(items(reals), training, rng)
    return Trivial(of_training=found, partners=baselines.partners(len(reals), rng))


# ----------------------------------------------------------------------------------------- candidates


def candidates(
    task: SuiteTask, reals: Sequence[Real], made: Made, simple: Trivial, coded: Sequence[np.ndarray]
) -> list[Candidate]:
    """The submission first, then trivial ones, then ceilings.

    Args:
      coded: true clips or sounds as a model's tokenizer gives them back; () of other models.
    """
    found = [Candidate(name=SUBMISSION, kind=SUBMISSION, made=made.sounds if task.sound else made.videos)]
    for name in task.baselines:
        videos = _baseline(name, task, reals, simple)
        found += [Candidate(name=name, kind=BASELINE, made=videos)] if videos else []
    true = [real.sound if task.sound else real.video for real in reals]
    found += [Candidate(name=ROUND_TRIP, kind=CEILING, made=coded)] if len(coded) else []
    return [*found, Candidate(name=TRUE, kind=CEILING, made=true)]


def _baseline(name: str, task: SuiteTask, reals: Sequence[Real], simple: Trivial) -> Sequence[np.ndarray]:
    """The clips or sounds of a trivial submission."""
    videos, turned = [real.video for real in reals], simple.partners
    taken = {"training mean": "training_mean", "random training clip": "random_training"}
    taken["nearest training clip"] = "nearest_training"
    if name in taken:
        return simple.of_training.get(taken[name], ())
    make = {
        "last frame": lambda: [baselines.held(video, task.opening) for video in videos],
        "crossfade": lambda: [crossfade(video) for video in videos],
        "mean colour": lambda: [regions.fill(video, ~task.given(*video.shape[1:3]), "mean") for video in videos],
        "another clip": lambda: [videos[other] for other in turned],
        "silence": lambda: [np.zeros_like(real.sound) for real in reals],
        "another sound": lambda: [reals[other].sound for other in turned],
    }
    return make[name]()


def crossfade(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """From the first frame to the last one by a linear mix of both."""
    share_T = np.linspace(0, 1, len(video_TxHxWx3))[:, None, None, None]
    mixed = (1 - share_T) * video_TxHxWx3[0] + share_T * video_TxHxWx3[-1]
    return np.rint(mixed).astype(np.uint8)


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
    fields = _heard if task.sound else _seen
    there = [(one.name, one.made[place]) for one in chosen if one.made[place] is not None]
    return {name: common | fields(task, real, made) for name, made in there}


def _heard(task: SuiteTask, real: Real, made: np.ndarray) -> dict[str, Any]:
    pair = {"truth": [to_float(real.sound)], "other": [to_float(made)], "defined": {}}
    return {"video": real.video[None], "sound": [made], **pair}


def _seen(task: SuiteTask, real: Real, made: np.ndarray) -> dict[str, Any]:
    video = complete(task, real, made)
    return {"video": video[None], "truth": real.video[None, task.measured], "other": video[None, task.measured]}


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
    if not (isinstance(own.state, Values) and isinstance(other.state, Values)):
        return {}
    difference, low, high, pairs = comparison.paired(other.state, own.state, own.metric.finish)
    verdict = comparison.verdict(low, high, own.metric.better)
    return {
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "pairs": pairs,
        "verdict": verdict,
    }


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
