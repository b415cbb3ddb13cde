"""The items of sources that can only be read in ranges, in an endless random order.

The items of a source are cut into blocks; an epoch permutes the blocks, fills windows of memory
with them, and permutes the items of each window.  A source that fits one window is read once and
permuted as a whole.  Every order is a function of (seed, epoch, window), so the position determines
the item.

Several sources are mixed by a pattern that holds each of them as often as its weight says, and
that is permuted anew at every repetition; it determines the source of an example and its position there.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Generic, TypeVar

import numpy as np

from poet.spec import UserError

Item = TypeVar("Item")
# Source, and ranges of it (start, stop) -> the usable items in there in their order, one at least.
Load = Callable[..., list[Item]]


def check_weights(sources: Mapping[str, int], what: str) -> None:
    """UserError unless `sources` names a folder of `what` at least, each with a weight > 0."""
    if not sources or min(sources.values()) < 1:
        raise UserError(f"sources of {what} are {dict(sources)}: give at least one folder, with weights > 0")


def mixed(seed: int, index: int, weights: tuple[int, ...]) -> tuple[int, int]:
    """Source of an example, and the example's position in the order of that source."""
    repetition, place = divmod(index, sum(weights))
    sources, ranks = _pattern(seed, repetition, weights)
    source = int(sources[place])
    return source, repetition * weights[source] + int(ranks[place])


@functools.lru_cache(maxsize=8)
def _pattern(seed: int, repetition: int, weights: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For every place of a repetition: its source, and how many places of it come before."""
    ordered = np.repeat(np.arange(len(weights)), weights)
    sources = np.random.default_rng((seed, repetition, 4)).permutation(ordered)
    ranks = np.empty_like(sources)
    for source, weight in enumerate(weights):
        ranks[sources == source] = np.arange(weight)
    return sources, ranks


def open_pool(source: Sized, load: Load[Item], block: int, window_bytes: int, item_bytes: int) -> Pool[Item]:
    """A pool that iterators over one small source share; larger ones stand at different windows.

    Args:
      source: hashable.
      block: items that are read, and permuted, together.
      window_bytes: memory of one window; while it is in use the next one is read.
      item_bytes: about what an item takes of it.
    """
    blocks = max(1, window_bytes // (item_bytes * block))
    if blocks * block >= len(source):
        return _whole_pool(source, load, block)
    return Pool(source, load, block, blocks)


@functools.lru_cache(maxsize=8)
def _whole_pool(source: Sized, load: Load[Item], block: int) -> Pool[Item]:
    return Pool(source, load, block, len(source))


class Pool(Generic[Item]):
    """The usable items of a source in windows of at most `blocks` blocks.

    A window has as many places as items.  Items that cannot be used leave their places to the
    others of the same window, so that a position needs no count of what was skipped.
    """

    def __init__(self, source: Sized, load: Load[Item], block: int, blocks: int):
        self._source, self._load, self._block, self._blocks = source, load, block, blocks
        self._windows_per_epoch = -(-len(source) // (blocks * block))
        self._reader = concurrent.futures.ThreadPoolExecutor(1)
        self._loading: dict[tuple[int, ...], concurrent.futures.Future[list[Item]]] = {}

    def item(self, seed: int, position: int) -> Item:
        """The item at a position of the endless order of this seed."""
        epoch, place = divmod(position, len(self._source))
        for number in range(self._windows_per_epoch):
            window = self._window(seed, epoch, number)
            size = sum(self._length(start) for start in window)
            if place < size:
                break
            place -= size
        items = self._items(window, self._following(seed, epoch, number))
        return items[_order(seed, epoch, number, len(items))[place % len(items)]]

    def _length(self, start: int) -> int:
        return min(self._block, len(self._source) - start)

    def _window(self, seed: int, epoch: int, number: int) -> tuple[int, ...]:
        """First items of the blocks of a window, ascending."""
        blocks = _block_order(seed, epoch, -(-len(self._source) // self._block))
        chosen = blocks[number * self._blocks : (number + 1) * self._blocks]
        return tuple(sorted((chosen * self._block).tolist()))

    def _following(self, seed: int, epoch: int, number: int) -> tuple[int, ...]:
        last = number + 1 == self._windows_per_epoch
        return self._window(seed, epoch + 1, 0) if last else self._window(seed, epoch, number + 1)

    def _items(self, window: tuple[int, ...], following: tuple[int, ...]) -> list[Item]:
        """Items of a window in the source's order; reading of the following one begins."""
        wanted = (window, following)
        for key in [key for key in self._loading if key not in wanted]:
            self._loading.pop(key).cancel()
        for key in wanted:
            if key not in self._loading:
                self._loading[key] = self._reader.submit(self._read, key)
        return self._loading[window].result()

    def _read(self, starts: tuple[int, ...]) -> list[Item]:
        ranges = [(start, start + self._length(start)) for start in starts]
        return self._load(self._source, _joined(ranges))


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending ranges, those that touch made one: opening a range costs more than reading on."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


@functools.lru_cache(maxsize=8)
def _block_order(seed: int, epoch: int, blocks: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, 2)).permutation(blocks)


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, window: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, window, 3)).permutation(size)
