"""How a long clip is cut into chunks of frames and a large one into tiles of latents.

Chunks are exact: `magvit.encode_chunk` carries what one hands to the next.  Tiles are not: a
frame's normalisation statistics become those of the tile, and convolutions see the tile's edge
repeated instead of what lies behind it.  So tiles overlap.  In encoding, each latent is taken from
the tile in whose inner part it lies; in decoding, pixels of neighbours are blended linearly.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from poet.spec import UserError


def chunks(length: int, size: int) -> list[slice]:
    """Cuts 1 + n frames into a first chunk of 1 + `size` and later ones of `size`; 0 cuts nothing.

    The last chunk may be shorter.
    """
    if not size or length <= 1 + size:
        return [slice(0, length)]
    starts = range(1 + size, length, size)
    return [slice(0, 1 + size), *(slice(a, min(a + size, length)) for a in starts)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The part of one dim that a tile covers, in latents.

    Attributes:
      start, stop: what the tile reads.
      low, high: where its part gives way to a neighbour's: the middle of their overlap, or the end
        of the dim.
      overlap: width about `low` and `high` over which decoded pixels are blended.
    """

    start: int
    stop: int
    low: float
    high: float
    overlap: int

    @property
    def owned(self) -> slice:
        """The latents whose codes come from this tile; those of all windows are disjoint."""
        return slice(int(self.low), int(self.high))

    @property
    def inner(self) -> slice:
        """`owned`, counted from the tile's start."""
        return slice(self.owned.start - self.start, self.owned.stop - self.start)

    def weights(self, factor: int) -> np.ndarray:
        """float32 blending weights of the tile's pixels; over all windows they add up to 1."""
        pixels = (np.arange(self.start * factor, self.stop * factor) + 0.5) / factor
        opening = np.ones_like(pixels) if self.low == self.start else self._ramp(pixels, self.low)
        closing = 0.0 if self.high == self.stop else self._ramp(pixels, self.high)
        return (opening - closing).astype(np.float32)

    def _ramp(self, pixels: np.ndarray, middle: float) -> np.ndarray:
        """0 to 1 over `overlap` latents about `middle`; a step where nothing overlaps."""
        if not self.overlap:
            return (pixels > middle).astype(np.float64)
        return np.clip((pixels - middle) / self.overlap + 0.5, 0.0, 1.0)


def windows(size: int, tile: int, overlap: int) -> list[Window]:
    """Windows of `tile` latents, evenly spread over `size`; neighbours share at least `overlap`.

    All have one length, so that one program serves them.  One window covers a dim that is no larger
    than a tile, and any dim when `tile` is 0.

    Raises UserError unless 0 <= overlap < tile.
    """
    if tile and not 0 <= overlap < tile:
        raise UserError(f"tiles of {tile} latents cannot overlap by {overlap}: the overlap must lie in 0..{tile - 1}")
    if not tile or size <= tile:
        return [Window(start=0, stop=size, low=0, high=size, overlap=0)]
    steps = -(-(size - tile) // (tile - overlap))
    starts = [i * (size - tile) // steps for i in range(steps + 1)]
    middles = [(left + tile + right) / 2 for left, right in zip(starts, starts[1:])]
    return [
        Window(start=start, stop=start + tile, low=low, high=high, overlap=overlap)
        for start, low, high in zip(starts, [0, *middles], [*middles, size])
    ]
