"""Resuming by position: an iterator whose whole state is how many examples were taken."""

from __future__ import annotations

import json
from typing import Any, Callable, Iterator, Mapping

import numpy as np

from poet.data.backend import tensorflow
from poet.processes import Share
from poet.specs import UserError

Batches = Iterator[Mapping[str, np.ndarray]]


class PositionIterator:
    """Batches that can be produced from any position (a `BatchIterator` of the training loop).

    Args:
      build: examples taken so far, by all processes -> endless batches of this process.
      batch: examples per step, of all processes.
    """

    def __init__(self, build: Callable[[int], Batches], batch: int):
        self._build, self._batch = build, batch
        self._examples = 0
        self._batches: Batches | None = None

    def __iter__(self) -> PositionIterator:
        return self

    def __next__(self) -> Mapping[str, np.ndarray]:
        if self._batches is None:
            self._batches = self._build(self._examples)
        batch = next(self._batches)
        self._examples += self._batch
        return batch

    def get_state(self) -> bytes:
        """The position, in a few bytes; batches prefetched but not yet taken are not part of it."""
        return json.dumps({"examples": self._examples}).encode()

    def set_state(self, state: bytes) -> None:
        """Moves to a position that `get_state` returned; UserError if it is none."""
        try:
            examples = int(json.loads(state)["examples"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"not the state of a batch iterator: {state[:80]!r}") from None
        if examples < 0:
            raise UserError(f"a batch iterator cannot stand at example {examples}")
        self._examples, self._batches = examples, None


def owns(share: Share, batch: int) -> Callable[[Any], Any] | None:
    """Place of an example, int64 [], -> whether it stands in an own row of its batch.

    None where all of them do.
    """
    if share.whole:
        return None
    own = np.zeros(batch, bool)
    own[share.rows(batch)] = True
    return lambda place: tensorflow().gather(own, place % batch)
