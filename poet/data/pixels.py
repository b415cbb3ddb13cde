"""Batches of raw clips for the training of video tokenizers.

Their order is that of `poet.data.pool`: a function of the seed, so the state of an iterator is its
position alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from poet import conditioning
from poet.data.backend import tensorflow
from poet.data.iterator import Batches, PositionIterator
from poet.data.pool import Pool, check_weights, mixed, open_pool
from poet.distributed.processes import Share
from poet.spec import ClipSpec, ConditioningSpec, UserError
from poet.store.raw import Source, say_once, usable
from poet.store.sources import open_source
from poet.store.tfds_source import TfdsSource

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
    derived: Derived | None = None,
) -> PositionIterator:
    """Endless batches {"video": uint8 [B, frames, height, width, 3]} of one or several sources.

    Args:
      sources: TFDS folder or folder of clips -> weight: of sum(weights) examples every folder gives
        exactly its weight.
      clip: format that the clips are brought to.
      batch: clips per step, of all processes; may be more than the split holds.
      frames, height, width: size of a random excerpt of each clip; 0 takes all of it, and
        `frames` = 1 gives images.
      derived: what makes other pictures of some of the examples.

    Raises:
      UserError: no source, a weight below 1, no such source or split, an empty split, an excerpt
        larger than a clip, or a batch not divisible by the parts of the share.
    """
    whole = (clip.frames, clip.height, clip.width)
    size = tuple(asked or limit for asked, limit in zip((frames, height, width), whole))
    if not all(1 <= side <= limit for side, limit in zip(size, whole)):
        raise UserError(f"excerpts of {size} (frames, height, width) do not fit clips of {whole}")
    check_weights(sources, "clips")
    rows = share.rows(batch, "the batch of clips").tolist()
    opened = [_open(path, split, clip) for path in sources]
    pools = [_pool(source, clip, window_bytes) for source in opened]
    weights = tuple(sources.values())
    seed %= 2**32

    def build(examples: int) -> Batches:
        while True:
            yield {"video": np.stack([example(examples + row) for row in rows])}
            examples += batch

    def example(index: int) -> np.ndarray:
        source, position = mixed(seed, index, weights)
        item = pools[source].item(seed, position)
        video = _excerpt(item.video, size, (seed, index))
        if derived is None:
            return video
        depth = None if item.depth is None else _excerpt(_as_large(item.depth, item.video), size, (seed, index))
        return derived(video, depth, (seed, index))

    return PositionIterator(build, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived:
    """Makes conditions (`poet.conditioning`) of a fraction of the excerpts, each kind equally often.

    Attributes:
      fraction: of the examples, 0 to 1.
      factor: frames, rows and columns of a latent.
    """

    fraction: float
    spec: ConditioningSpec
    factor: tuple[int, int, int]

    def __call__(self, video: np.ndarray, depth: np.ndarray | None, place: tuple[int, int]) -> np.ndarray:
        """uint8 (T, H, W, 3) of an excerpt, by its place in the order of examples."""
        rng = np.random.default_rng((*place, 5))
        if rng.random() >= self.fraction:
            return video
        kinds = conditioning.possible(self.spec, len(video), has_depth=depth is not None)
        if not kinds:
            return video
        name, key = str(rng.choice(kinds)), "/".join(map(str, place))
        return conditioning.make(name, video, self.spec, key=key, depth=depth, factor=self.factor).video


def _as_large(depth_Txhxw: np.ndarray, video: np.ndarray) -> np.ndarray:
    """Distances (T, H, W) of a clip, the nearest sample of each pixel."""
    rows, columns = (np.arange(n) * own // n for n, own in zip(video.shape[1:3], depth_Txhxw.shape[1:]))
    return depth_Txhxw[: len(video), rows][:, :, columns]


def _open(path: str, split: str, clip: ClipSpec) -> Source:
    source = open_source(path, split, clip)
    for note in source.notes:
        say_once(note)
    if isinstance(source, TfdsSource):
        tensorflow()  # before the source starts it with an accelerator in sight
    if not len(source):
        raise UserError(f"split {split!r} of {path} is empty")
    return source


def _excerpt(video: np.ndarray, size: tuple[int, int, int], seed: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng((*seed, 1))
    starts = [rng.integers(side - taken + 1) for side, taken in zip(video.shape, size)]
    return video[tuple(slice(start, start + taken) for start, taken in zip(starts, size))]


class _Item(NamedTuple):
    """A clip, uint8 (T, H, W, 3), and its distances (T, h, w), None where the source has none."""

    video: np.ndarray
    depth: np.ndarray | None


def _pool(source: Source, clip: ClipSpec, window_bytes: int) -> Pool[_Item]:
    clip_bytes = clip.frames * clip.height * clip.width * 3
    return open_pool(source, _load, BLOCK_CLIPS, window_bytes, clip_bytes)


def _load(source: Source, ranges: Sequence[tuple[int, int]]) -> list[_Item]:
    """Every item that can be read."""
    items = (item for start, stop in ranges for item in source.read(start, stop))
    clips = [_Item(item.video, item.depth) for item in usable(items)]
    if not clips:
        raise UserError(f"none of the items from {ranges[0][0]} on of the source can be read as a clip")
    return clips
