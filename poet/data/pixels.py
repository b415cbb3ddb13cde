"""Batches of raw clips for the training of tokenizers.

A source can only be read in ranges, so its items are cut into blocks; an epoch permutes the blocks,
fills windows of memory with them, and permutes the clips of each window.  A source that fits one
window is read once and permuted as a whole.  Every order is drawn from (seed, epoch, window), so
the state of an iterator is its position alone.

Several sources are mixed by a pattern that holds each of them as often as its weight says, and that
is permuted anew at every repetition; it tells the source of an example and its position in there.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Mapping

import numpy as np

from poet.data.backend import tensorflow
from poet.data.iterator import Batches, PositionIterator, local_batch
from poet.specs import ClipSpec, UserError
from poet.store.sources import RawClip, Source, TfdsSource, open_source

BLOCK_CLIPS = 64
# Clips of one source in memory; while one window is in use the next one is read.
WINDOW_BYTES = 1024**3


def pixel_batches(
    sources: Mapping[str, int],
    split: str,
    clip: ClipSpec,
    batch: int,
    frames: int = 0,
    height: int = 0,
    width: int = 0,
    seed: int = 0,
    *,
    process_index: int = 0,
    process_count: int = 1,
    window_bytes: int = WINDOW_BYTES,
) -> PositionIterator:
    """Endless batches {"video": uint8 [B, frames, height, width, 3]} of one or several sources.

    Args:
      sources: TFDS folder or folder of clips -> weight: of sum(weights) examples every folder gives
        exactly its weight.
      clip: format that the clips are brought to.
      batch: clips per step, of all processes; may be more than the split holds.
      frames, height, width: size of a random excerpt of each clip; 0 takes all of it, and
        `frames` = 1 gives images.

    Raises:
      UserError: no source, a weight below 1, no such source or split, an empty split, an excerpt
        larger than a clip, or a batch not divisible by the processes.
    """
    whole = (clip.frames, clip.height, clip.width)
    size = tuple(asked or limit for asked, limit in zip((frames, height, width), whole))
    if not all(1 <= side <= limit for side, limit in zip(size, whole)):
        raise UserError(
            f"excerpts of {size} (frames, height, width) do not fit clips of {whole}"
        )
    _check_weights(sources)
    local = local_batch(batch, process_count, "the batch of clips")
    pools = [_pool(_open(path, split, clip), clip, window_bytes) for path in sources]
    weights = tuple(sources.values())
    seed %= 2**32
    own = slice(process_index * local, (process_index + 1) * local)

    def build(examples: int) -> Batches:
        while True:
            places = range(examples, examples + batch)[own]
            yield {"video": np.stack([example(i) for i in places])}
            examples += batch

    def example(index: int) -> np.ndarray:
        source, position = _place(seed, index, weights)
        return _excerpt(pools[source].clip(seed, position), size, (seed, index))

    return PositionIterator(build, batch)


def _check_weights(sources: Mapping[str, int]) -> None:
    if not sources or min(sources.values()) < 1:
        raise UserError(
            f"sources of clips are {dict(sources)}: give at least one folder, with weights > 0"
        )


def _open(path: str, split: str, clip: ClipSpec) -> Source:
    source = open_source(path, split, clip)
    if isinstance(source, TfdsSource):
        tensorflow()  # before the source starts it with an accelerator in sight
    if not len(source):
        raise UserError(f"split {split!r} of {path} is empty")
    return source


def _place(seed: int, index: int, weights: tuple[int, ...]) -> tuple[int, int]:
    """Source of an example, and the example's position in the order of that source."""
    repetition, place = divmod(index, sum(weights))
    sources, ranks = _pattern(seed, repetition, weights)
    source = int(sources[place])
    return source, repetition * weights[source] + int(ranks[place])


@functools.lru_cache(maxsize=8)
def _pattern(
    seed: int, repetition: int, weights: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """For every place of a repetition: its source, and how many places of it come before."""
    ordered = np.repeat(np.arange(len(weights)), weights)
    sources = np.random.default_rng((seed, repetition, 4)).permutation(ordered)
    ranks = np.empty_like(sources)
    for source, weight in enumerate(weights):
        ranks[sources == source] = np.arange(weight)
    return sources, ranks


def _excerpt(
    video: np.ndarray, size: tuple[int, int, int], seed: tuple[int, int]
) -> np.ndarray:
    draw = np.random.default_rng((*seed, 1))
    starts = [draw.integers(side - taken + 1) for side, taken in zip(video.shape, size)]
    return video[tuple(slice(start, start + taken) for start, taken in zip(starts, size))]


def _pool(source: Source, clip: ClipSpec, window_bytes: int) -> _Pool:
    """A pool that iterators over one small source share; larger ones stand at different windows."""
    block_bytes = clip.frames * clip.height * clip.width * 3 * BLOCK_CLIPS
    blocks = max(1, window_bytes // block_bytes)
    whole = blocks * BLOCK_CLIPS >= len(source)
    return _whole_pool(source) if whole else _Pool(source, blocks)


@functools.lru_cache(maxsize=8)
def _whole_pool(source: Source) -> _Pool:
    return _Pool(source, len(source))


class _Pool:
    """The clips of a source in windows of at most `blocks` blocks.

    A window has as many places as items.  Items that give no clip leave their places to the clips
    of the same window, so that a position needs no count of what was skipped.
    """

    def __init__(self, source: Source, blocks: int):
        self._source, self._blocks = source, blocks
        self._windows_per_epoch = -(-len(source) // (blocks * BLOCK_CLIPS))
        self._reader = concurrent.futures.ThreadPoolExecutor(1)
        self._loading: dict[tuple[int, ...], concurrent.futures.Future[list[np.ndarray]]] = {}

    def clip(self, seed: int, position: int) -> np.ndarray:
        """uint8 [T, H, W, 3] at a position of the endless order of this seed."""
        epoch, place = divmod(position, len(self._source))
        for number in range(self._windows_per_epoch):
            window = self._window(seed, epoch, number)
            size = sum(self._length(start) for start in window)
            if place < size:
                break
            place -= size
        clips = self._clips(window, self._following(seed, epoch, number))
        return clips[_order(seed, epoch, number, len(clips))[place % len(clips)]]

    def _length(self, start: int) -> int:
        return min(BLOCK_CLIPS, len(self._source) - start)

    def _window(self, seed: int, epoch: int, number: int) -> tuple[int, ...]:
        """First items of the blocks of a window, ascending."""
        blocks = _block_order(seed, epoch, -(-len(self._source) // BLOCK_CLIPS))
        chosen = blocks[number * self._blocks : (number + 1) * self._blocks]
        return tuple(sorted((chosen * BLOCK_CLIPS).tolist()))

    def _following(self, seed: int, epoch: int, number: int) -> tuple[int, ...]:
        last = number + 1 == self._windows_per_epoch
        return self._window(seed, epoch + 1, 0) if last else self._window(seed, epoch, number + 1)

    def _clips(self, window: tuple[int, ...], following: tuple[int, ...]) -> list[np.ndarray]:
        """Clips of a window in the source's order; reading of the following one begins."""
        wanted = (window, following)
        for key in [key for key in self._loading if key not in wanted]:
            self._loading.pop(key).cancel()
        for key in wanted:
            if key not in self._loading:
                self._loading[key] = self._reader.submit(self._read, key)
        return self._loading[window].result()

    def _read(self, starts: tuple[int, ...]) -> list[np.ndarray]:
        items = (
            item
            for start in starts
            for item in self._source.read(start, start + self._length(start))
        )
        clips = [item.video for item in items if isinstance(item, RawClip)]
        if not clips:
            raise UserError(
                f"none of the items from {starts[0]} on of the source can be read as a clip"
            )
        return clips


@functools.lru_cache(maxsize=8)
def _block_order(seed: int, epoch: int, blocks: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, 2)).permutation(blocks)


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, window: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, window, 3)).permutation(size)
