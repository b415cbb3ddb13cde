"""Mixing the tasks of a group: exact shares in every block, and no state but the position.

Examples come in blocks of `BLOCK`.  Every block holds the same number of examples of each task, in
an order drawn from (seed, block).  How many examples each task has given before position n is
therefore computed, not remembered.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

import numpy as np

from poet.data.backend import seqio, tensorflow
from poet.data.records import only, stream_seed
from poet.data.tasks import training_task
from poet.specs import Experiment
from poet.tasks.registry import get_task

BLOCK = 1024


def block_counts(rates: Sequence[float]) -> list[int]:
    """Examples of each task in a block: largest remainders, and at least one of each.

    >>> block_counts([3.0, 1.0])
    [768, 256]
    """
    shares = np.asarray(rates, np.float64) / np.sum(rates) * BLOCK
    counts = np.maximum(np.floor(shares), 1).astype(int)
    while counts.sum() < BLOCK:
        counts[np.argmax(shares - counts)] += 1
    while counts.sum() > BLOCK:  # rare tasks were raised to one example, which others give up
        counts[np.argmax(np.where(counts > 1, counts - shares, -np.inf))] -= 1
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


def group_mixture(
    experiment: Experiment,
    group: str,
    rates: Mapping[str, float],
    position: int,
    own: Callable[[Any], Any] | None = None,
) -> Any:
    """`seqio.Mixture` of a group's tasks, from the group's example `position` on.

    `own` tells which examples of the group, by position, this process gives; None: all of them.
    """
    names = sorted(rates)  # the order in which a seqio.Mixture keeps its tasks
    counts = block_counts([rates[name] for name in names])
    seed_2 = stream_seed(experiment.data.seed, f"{group}/mixture")
    starts = taken(counts, seed_2, position)

    def sample(datasets: Sequence[Any], rates: Sequence[float], seed: int | None) -> Any:
        del rates, seed  # held by the blocks
        dataset = tensorflow().data.Dataset
        chosen = choices(counts, seed_2, position)
        if own:
            chosen = only(chosen, dataset.counter(position).map(own))
        return dataset.choose_from_datasets(datasets, chosen, stop_on_empty_dataset=True)

    def kept(task: int) -> Any:
        """Of every example of a task from its start on, whether it is an own one."""
        if own is None:
            return None
        placed = choices(counts, seed_2, position).enumerate(position)
        return placed.filter(lambda _, chosen: chosen == task).map(lambda place, _: own(place))

    tasks = [
        (training_task(experiment, get_task(name), start, kept(i)), rates[name])
        for i, (name, start) in enumerate(zip(names, starts))
    ]
    return seqio().Mixture(group.replace("-", "_").replace("+", "_"), tasks, sample_fn=sample)
