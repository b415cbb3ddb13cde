"""Batches of raw clips for the training of video tokenizers.

Their order is that of `poet.data.pool`: drawn from the seed, so the state of an iterator is its
position alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from poet.data.backend import tensorflow
from poet.data.iterator import Batches, PositionIterator
from poet.data.pool import Pool, check_weights, mixed, open_pool
from poet.processes import Share
from poet.specs import ClipSpec, UserError
from poet.store.sources import Source, TfdsSource, open_source, say_once, usable

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
    share: Share = Share(),
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
        larger than a clip, or a batch not divisible by the parts of the share.
    """
    whole = (clip.frames, clip.height, clip.width)
    size = tuple(asked or limit for asked, limit in zip((frames, height, width), whole))
    if not all(1 <= side <= limit for side, limit in zip(size, whole)):
        raise UserError(
            f"excerpts of {size} (frames, height, width) do not fit clips of {whole}"
        )
    check_weights(sources, "clips")
    rows = share.rows(batch, "the batch of clips").tolist()
    pools = [_pool(_open(path, split, clip), clip, window_bytes) for path in sources]
    weights = tuple(sources.values())
    seed %= 2**32

    def build(examples: int) -> Batches:
        while True:
            yield {"video": np.stack([example(examples + row) for row in rows])}
            examples += batch

    def example(index: int) -> np.ndarray:
        source, position = mixed(seed, index, weights)
        return _excerpt(pools[source].item(seed, position), size, (seed, index))

    return PositionIterator(build, batch)


def _open(path: str, split: str, clip: ClipSpec) -> Source:
    source = open_source(path, split, clip)
    for note in source.notes:
        say_once(note)
    if isinstance(source, TfdsSource):
        tensorflow()  # before the source starts it with an accelerator in sight
    if not len(source):
        raise UserError(f"split {split!r} of {path} is empty")
    return source


def _excerpt(
    video: np.ndarray, size: tuple[int, int, int], seed: tuple[int, int]
) -> np.ndarray:
    draw = np.random.default_rng((*seed, 1))
    starts = [draw.integers(side - taken + 1) for side, taken in zip(video.shape, size)]
    return video[tuple(slice(start, start + taken) for start, taken in zip(starts, size))]


def _pool(source: Source, clip: ClipSpec, window_bytes: int) -> Pool[np.ndarray]:
    clip_bytes = clip.frames * clip.height * clip.width * 3
    return open_pool(source, _load, BLOCK_CLIPS, window_bytes, clip_bytes)


def _load(source: Source, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """uint8 (T, H, W, 3) of every item that can be read."""
    items = (item for start, stop in ranges for item in source.read(start, stop))
    clips = [item.video for item in usable(items)]
    if not clips:
        raise UserError(
            f"none of the items from {ranges[0][0]} on of the source can be read as a clip"
        )
    return clips
