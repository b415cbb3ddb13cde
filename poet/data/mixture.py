"""Mixing the tasks of a group: exact fractions in every block, and no state but the position.

Examples come in blocks of `BLOCK`.  Every block holds the same number of examples of each task, in
an order by (seed, block).  The number of examples of each task before position n is
therefore computed, not stored; only if the rates of a run change, a task keeps the
difference between its examples so far and those of the blocks (`MixtureIterator`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from poet.data import iterator
from poet.data.backend import seqio, tensorflow
from poet.data.records import only, stream_seed
from poet.data.tasks import training_task
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)

BLOCK = 1024


def block_counts(rates: Sequence[float]) -> list[int]:
    """Examples of each task in a block: largest remainders, and at least one of each.

    >>> block_counts([3.0, 1.0])
    [768, 256]
    """
    exact = np.asarray(rates, np.float64) / np.sum(rates) * BLOCK
    counts = np.maximum(np.floor(exact), 1).astype(int)
    while counts.sum() < BLOCK:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > BLOCK:  # rare tasks were raised to one example, which others give up
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts.tolist()


def _block_order(counts: Sequence[int], seed_2: np.ndarray, block: Any) -> Any:
    """int64 [BLOCK]: which task gives each example of a block."""
    tf = tensorflow()
    members = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    seed = tf.random.experimental.stateless_fold_in(seed_2, block)
    return tf.random.experimental.stateless_shuffle(tf.constant(members), seed)


def taken(counts: Sequence[int], seed_2: np.ndarray, position: int) -> list[int]:
    """Examples that each task has given before `position`."""
    block, rest = divmod(position, BLOCK)
    order = _block_order(counts, seed_2, np.int64(block)).numpy()[:rest]
    return (block * np.asarray(counts) + np.bincount(order, minlength=len(counts))).tolist()


def choices(counts: Sequence[int], seed_2: np.ndarray, position: int) -> Any:
    """Endless dataset of task indices, int64 [], from `position` on."""
    dataset = tensorflow().data.Dataset
    block, rest = divmod(position, BLOCK)
    blocks = dataset.counter(block).map(lambda b: _block_order(counts, seed_2, b))
    return blocks.unbatch().skip(rest)


def group_taken(seed: int, group: str, rates: Mapping[str, float], position: int) -> dict[str, int]:
    """Examples that each task of a group has given before the group's example `position`; `seed` is DATA.seed."""
    names = sorted(rates)
    counts = block_counts([rates[name] for name in names])
    return dict(zip(names, taken(counts, _mixture_seed(seed, group), position)))


def _mixture_seed(seed: int, group: str) -> np.ndarray:
    return stream_seed(seed, f"{group}/mixture")


def group_mixture(
    resolved: Resolved,
    group: str,
    rates: Mapping[str, float],
    position: int,
    starts: Mapping[str, int],
    own: Callable[[Any], Any] | None = None,
) -> Any:
    """`seqio.Mixture` of a group's tasks, from the group's example `position` on.

    Args:
      starts: examples of each task so far.
      own: whether this process loads an example of the group, by position; None: all of them.
    """
    names = sorted(rates)  # the order in which a seqio.Mixture keeps its tasks
    counts = block_counts([rates[name] for name in names])
    seed_2 = _mixture_seed(resolved.spec.data.seed, group)

    def sample(datasets: Sequence[Any], rates: Sequence[float], seed: int | None) -> Any:
        del rates, seed  # held by the blocks
        dataset = tensorflow().data.Dataset
        chosen = choices(counts, seed_2, position)
        if own:
            chosen = only(chosen, dataset.counter(position).map(own))
        return dataset.choose_from_datasets(datasets, chosen, stop_on_empty_dataset=True)

    def kept(task: int) -> Any:
        """Whether this process loads each example of a task, from its start on."""
        if own is None:
            return None
        placed = choices(counts, seed_2, position).enumerate(position)
        return placed.filter(lambda _, chosen: chosen == task).map(lambda place, _: own(place))

    tasks = [
        (training_task(resolved, get_task(name), starts[name], kept(i)), rates[name]) for i, name in enumerate(names)
    ]
    return seqio().Mixture(group.replace("-", "_").replace("+", "_"), tasks, sample_fn=sample)


class MixtureIterator(iterator.PositionIterator):
    """Batches of a group: its state is its position, and that of each of its tasks.

    A run that resumes with other rates therefore continues each task where it was; a new task
    begins its first epoch, a removed one keeps its place for its return.

    Args:
      build: (position of the group, of each task) -> endless batches of this process.
      taken: position of the group -> those of its tasks, had the run had its rates from the start.
      batch: examples per step, of all processes.
    """

    def __init__(
        self,
        build: Callable[[int, Mapping[str, int]], iterator.Batches],
        taken: Callable[[int], dict[str, int]],
        batch: int,
    ):
        super().__init__(build, batch)
        self._taken = taken
        self._moved: dict[str, int] = {}  # Task -> what it gave beyond what `taken` says.
        self._absent: dict[str, int] = {}  # Position of tasks that the run has no longer.

    def _begin(self) -> iterator.Batches:
        return self._build(self.examples, self._tasks())

    def _tasks(self) -> dict[str, int]:
        found = self._taken(self.examples)
        return {name: count + self._moved.get(name, 0) for name, count in found.items()}

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "tasks": {**self._absent, **self._tasks()}}

    def _move(self, state: Mapping[str, Any]) -> None:
        super()._move(state)
        found, kept = self._taken(self.examples), state.get("tasks")
        if kept is None:
            _LOG.warning(
                "the data position was saved by an earlier version, whose epochs had another order: "
                "in this epoch some clips are used twice and some not at all"
            )
            kept = found
        positions = {name: iterator.position(count) for name, count in kept.items()}
        self._moved = {name: positions.get(name, 0) - count for name, count in found.items()}
        self._absent = {name: n for name, n in positions.items() if name not in found}
