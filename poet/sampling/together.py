"""Samples of several requests in one batch of a fixed size, which requests may enter and leave after any latent frame.

A sample is that of its request alone, to the byte: programs of a fixed size round alike whatever else is in the batch,
and a row's noise follows from the seed and the row of its own request.

Rows that enter later are decoded by themselves, one loop at a time, until they have reached the others; from there all
share each loop.  Those that come in the meantime wait so long: there are never more than two states of the batch.
B places of the batch, G given positions.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from poet.sampling.engine import Engine, Row, beta_rows
from poet.sampling.progress import Progress, Sampling
from poet.sampling.samplers import SamplingParams
from poet.spec import SampleSpec, UserError


class Step(NamedTuple):
    """What one step gave a request.  progress: of the request alone.  done: whether all its samples are whole."""

    name: Hashable
    progress: Progress
    done: bool


@dataclasses.dataclass
class _Request:
    """A request in the batch: `waiting` rows have no place yet, `active` ones have."""

    rows: Sequence[Row]
    seed: int
    sampling: Sampling
    parts: deque[tuple[np.ndarray, int, np.ndarray]]
    waiting: list[int]
    active: int = 0


class _Place(NamedTuple):
    name: Hashable
    number: int


@dataclasses.dataclass
class _Cohort:
    """Rows at one position: `places` of the batch, the next loop and position, and the state of the programs."""

    places: dict[int, _Place]
    state: Any
    position: int
    loop: int = 0


class Together:
    """A batch of requests of one plan and of equal sampling settings, seeds apart.

    Args:
      engine: whose programs take a fixed number of samples.
      sample: the settings; their seed is not read.

    Raises UserError for programs that take any number: their rounding would depend on it.
    """

    def __init__(self, engine: Engine, sample: SampleSpec):
        if not engine.programs.batch:
            raise UserError("requests share a batch of a fixed size only: set SAMPLE.block")
        self._engine, self._settings, self._sample = engine, SamplingParams.of(sample), sample
        self._requests: dict[Hashable, _Request] = {}
        self._cohorts: list[_Cohort] = []

    @property
    def size(self) -> int:
        """Samples that the batch holds."""
        return self._engine.programs.batch

    @property
    def filled(self) -> int:
        """Places that are taken."""
        return sum(len(cohort.places) for cohort in self._cohorts)

    @property
    def names(self) -> list[Hashable]:
        """The requests in the batch."""
        return list(self._requests)

    def add(self, name: Hashable, rows: Sequence[Row], seed: int) -> Sampling:
        """Takes a request in; what it has sampled at any time is that of the result.

        Args:
          rows: of `Engine.rows`.
        """
        if name in self._requests:
            raise ValueError(f"{name!r} is in the batch already")
        parts: deque[tuple[np.ndarray, int, np.ndarray]] = deque()
        sampling = Sampling(self._engine.plan.layout, len(rows), _taken(parts), self._engine.codecs.detokenize)
        self._requests[name] = _Request(rows, seed, sampling, parts, list(range(len(rows))))
        return sampling

    def drop(self, name: Hashable) -> None:
        """Takes a request out; its places are free at once."""
        self._requests.pop(name, None)
        for cohort in self._cohorts:
            cohort.places = {place: row for place, row in cohort.places.items() if row.name != name}
        self._cohorts = [cohort for cohort in self._cohorts if cohort.places]

    def step(self) -> list[Step]:
        """Decodes the next latent frame of the rows that are least far; [] where nothing is left.

        A request that is done has left the batch.
        """
        self._begin()
        if not self._cohorts:
            return []
        cohort = min(self._cohorts, key=lambda cohort: cohort.loop)
        tokens_BxQ = self._decode(cohort)
        steps = self._deliver(cohort, tokens_BxQ)
        if cohort.loop == self._engine.programs.loops:
            self._cohorts.remove(cohort)
        else:
            self._meet(cohort)
        return steps

    def _begin(self) -> None:
        """Gives free places to rows that wait: a cohort of its own.  The rows of a request stay together."""
        if len(self._cohorts) > 1:
            return
        taken = {place for cohort in self._cohorts for place in cohort.places}
        free = deque(place for place in range(self.size) if place not in taken)
        places: dict[int, _Place] = {}
        for name, request in self._requests.items():
            if request.active:
                continue
            while free and request.waiting:
                places[free.popleft()] = _Place(name, request.waiting.pop(0))
                request.active += 1
        if places:
            self._cohorts.append(self._prefill(places))

    def _prefill(self, places: dict[int, _Place]) -> _Cohort:
        start, rows = self._engine.plan.prefilled, self._rows(places)
        text = [np.concatenate(arrays) for arrays in zip(*(row.text for row in rows))]
        text += beta_rows(self._engine.plan, self.size, self._sample)
        tokens_BxP = np.stack([row.given_G[:start] for row in rows])
        for place, row in places.items():
            self._requests[row.name].parts.append((np.array([row.number]), 0, tokens_BxP[place : place + 1]))
        return _Cohort(places, self._engine.programs.prefill(tokens_BxP, *text), start)

    def _rows(self, places: dict[int, _Place]) -> list[Row]:
        """The row in each place; an empty one repeats the one before it, which costs no prefill."""
        return [self._requests[row.name].rows[row.number] for row in self._filled(places)]

    def _filled(self, places: dict[int, _Place]) -> list[_Place]:
        found, last = [], places[min(places)]
        for place in range(self.size):
            last = places.get(place, last)
            found.append(last)
        return found

    def _decode(self, cohort: _Cohort) -> np.ndarray:
        filled = self._filled(cohort.places)
        seeds = np.array([self._requests[row.name].seed for row in filled], np.uint32)
        params = dataclasses.replace(self._settings, seed=jnp.asarray(seeds))
        rows_B = np.array([row.number for row in filled], np.int32)
        forced_BxK = np.stack([row.given_G[self._engine.plan.prefilled :] for row in self._rows(cohort.places)])
        tokens, cohort.state = self._engine.programs.decode(cohort.loop, cohort.state, rows_B, params, forced_BxK)
        cohort.loop += 1
        return np.asarray(tokens)

    def _deliver(self, cohort: _Cohort, tokens_BxQ: np.ndarray) -> list[Step]:
        """Hands each request what its rows have got."""
        steps, start, ended = [], cohort.position, cohort.loop == self._engine.programs.loops
        cohort.position += tokens_BxQ.shape[1]
        for name in dict.fromkeys(row.name for row in cohort.places.values()):
            request = self._requests[name]
            own = {place: row.number for place, row in cohort.places.items() if row.name == name}
            request.parts.append((np.array(list(own.values())), start, tokens_BxQ[list(own)]))
            progress = next(request.sampling)
            request.active -= len(own) * ended
            done = ended and not request.waiting
            if done:
                del self._requests[name]
            steps.append(Step(name, progress, done))
        return steps

    def _meet(self, cohort: _Cohort) -> None:
        """Joins a cohort with one that stands where it has come to."""
        for other in self._cohorts:
            if other is not cohort and other.loop == cohort.loop:
                taken_B = np.isin(np.arange(self.size), list(cohort.places))
                other.state = self._engine.programs.merge(other.state, cohort.state, taken_B)
                other.places = {**other.places, **cohort.places}
                self._cohorts.remove(cohort)
                return


def _taken(parts: deque[Any]) -> Generator[Any]:
    """What was put in, in order; each is there when it is asked for."""
    while True:
        yield parts.popleft()
