"""Resuming by position: an iterator whose whole state is how many examples were taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from poet.data.backend import tensorflow
from poet.distributed.processes import Share
from poet.spec import UserError

Batches = Iterator[Mapping[str, np.ndarray]]


class PositionIterator:
    """Batches that can be produced from any position (a `BatchIterator` of the training loop).

    Args:
      build: examples taken so far, by all processes -> endless batches of this process.
      batch: examples per step, of all processes.

    Attributes:
      examples: the position.
    """

    def __init__(self, build: Callable[..., Batches], batch: int):
        self._build, self._batch = build, batch
        self.examples = 0
        self._batches: Batches | None = None

    def __iter__(self) -> PositionIterator:
        return self

    def __next__(self) -> Mapping[str, np.ndarray]:
        if self._batches is None:
            self._batches = self._begin()
        batch = next(self._batches)
        self.examples += self._batch
        return batch

    def get_state(self) -> bytes:
        """The position, in a few bytes; batches prefetched but not yet taken are not part of it."""
        return json.dumps(self._state()).encode()

    def set_state(self, state: bytes) -> None:
        """Moves to a position that `get_state` returned; UserError if it is none."""
        before = self._state()
        try:
            self._move(json.loads(state))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._move(before)
            raise UserError(f"not the state of a batch iterator: {state[:80]!r}") from None
        self._batches = None

    def _begin(self) -> Batches:
        return self._build(self.examples)

    def _state(self) -> dict[str, Any]:
        return {"examples": self.examples}

    def _move(self, state: Mapping[str, Any]) -> None:
        self.examples = position(state["examples"])


def position(value: Any) -> int:
    """A number of examples; ValueError unless it is one."""
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def owns(share: Share, batch: int) -> Callable[[Any], Any] | None:
    """Place of an example, int64 [], -> whether it stands in an own row of its batch.

    None where all of them do.
    """
    if share.whole:
        return None
    own = np.zeros(batch, bool)
    own[share.rows(batch)] = True
    return lambda place: tensorflow().gather(own, place % batch)
