"""A grid of latents cut into windows, and the windows of another grid that show the same places.

Attention within windows costs what the windows hold, not the square of the grid.  A grid that windows do
not divide is filled up behind its ends; keys that fill up are masked and what stands there is dropped.

Shape suffixes: B batch, S positions of the grid in row-major order, P positions of all windows one after
the other, W windows, N positions of one window, Q queries, M keys, K key-value heads, G query heads per
key-value head, H head dim.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from poet.models import attention
from poet.spec import UserError
from poet.streams.base import Grid


@dataclasses.dataclass(frozen=True)
class Partition:
    """A grid (t, h, w) cut into windows (t, h, w) of one size, in row-major order; static and hashable."""

    grid: Grid
    window: Grid

    @property
    def counts(self) -> Grid:
        """Windows along each axis."""
        t, h, w = (-(-size // window) for size, window in zip(self.grid, self.window))
        return t, h, w

    @property
    def filled(self) -> Grid:
        """The grid with what fills it up."""
        t, h, w = (count * window for count, window in zip(self.counts, self.window))
        return t, h, w

    @property
    def shape(self) -> tuple[int, int]:
        """(W, N)."""
        return math.prod(self.counts), math.prod(self.window)

    def cut(self, x_BxS: Any) -> Any:
        """[B, S, ...] -> [B, P, ...], zeros where the grid is filled up; NumPy or JAX."""
        pad = np.pad if isinstance(x_BxS, np.ndarray) else jnp.pad
        _, _, *rest = x_BxS.shape
        x = _reshaped(x_BxS, self.grid, rest)
        padding = [(0, b - a) for a, b in zip(self.grid, self.filled)]
        if self.grid != self.filled:
            x = pad(x, [(0, 0), *padding, *[(0, 0)] * len(rest)])
        (nt, nh, nw), (t, h, w) = self.counts, self.window
        x = _reshaped(x, (nt, t, nh, h, nw, w), rest).transpose(0, 1, 3, 5, 2, 4, 6, *range(7, 7 + len(rest)))
        return _reshaped(x, (math.prod(self.filled),), rest)

    def join(self, x_BxP: Any) -> Any:
        """The reverse of `cut`: [B, P, ...] -> [B, S, ...]; what fills up is dropped."""
        _, _, *rest = x_BxP.shape
        x = _reshaped(x_BxP, (*self.counts, *self.window), rest)
        x = _reshaped(x.transpose(0, 1, 4, 2, 5, 3, 6, *range(7, 7 + len(rest))), self.filled, rest)
        t, h, w = self.grid
        return _reshaped(x[:, :t, :h, :w], (t * h * w,), rest)

    @property
    def real(self) -> np.ndarray:
        """bool [W, N]: False where the grid is filled up."""
        return self.cut(np.ones((1, math.prod(self.grid)), bool)).reshape(self.shape)

    def places(self, step: float = 1.0) -> np.ndarray:
        """float64 [P, 3]: middles of the cells in (t, h, w), where one is `step` cells high and wide.

        Those of two grids of the same clip agree where the coarser one has the larger step.
        """
        cells = self.cut(np.indices(self.grid).reshape(3, -1).T[None])[0].astype(np.float64)
        return cells * (1, step, step) + (0, (step - 1) / 2, (step - 1) / 2)


def partition(grid: Grid, window: Grid, scale: int = 1) -> Partition:
    """Windows of a grid; 0 is its whole side.

    Args:
      scale: rows and columns that are one in the coarser grid: windows hold whole ones.

    Raises UserError where a side of the grid, or of a window that does not cover it, is no multiple of `scale`.
    """
    if any(side % scale for side in grid[1:]):
        raise UserError(
            f"a grid of {'x'.join(map(str, grid))} latents has no coarser one of 1/{scale} its height and width: "
            f"choose CLIP.height and CLIP.width whose latents are multiples of {scale}"
        )
    t, h, w = (min(want or side, side) for want, side in zip(window, grid))
    if h % scale or w % scale:
        raise UserError(
            f"windows of {'x'.join(map(str, window))} latents: height and width must be multiples of {scale}, or "
            "0 for the whole side"
        )
    return Partition(grid, (t, h, w))


def coarser(fine: Partition, scale: int) -> Partition:
    """The windows of the coarser grid that show the same places, one for each."""
    (t, h, w), (wt, wh, ww) = fine.grid, fine.window
    return Partition((t, h // scale, w // scale), (wt, wh // scale, ww // scale))


def attend(
    q_BxPxKxGxH: jax.Array, k_BxPxKxH: jax.Array, v_BxPxKxH: jax.Array, queries: Partition, keys: Partition
) -> jax.Array:
    """Attention [B, P, K, G, H] of every window's queries to the keys of the window of the same number.

    Args:
      k_BxPxKxH, v_BxPxKxH: P positions of `keys`, which may be another grid.
    """
    q_BxWxQ = _reshaped(q_BxPxKxGxH, queries.shape, q_BxPxKxGxH.shape[2:])
    k_BxWxM, v_BxWxM = (_reshaped(x, keys.shape, x.shape[2:]) for x in (k_BxPxKxH, v_BxPxKxH))
    masks_Wx1x1xM = None if keys.grid == keys.filled else jnp.asarray(keys.real[:, None, None])
    run: Callable[..., jax.Array] = attention.scaled_dot_product
    run = jax.vmap(run, (1, 1, 1, None if masks_Wx1x1xM is None else 0), 1)
    out = run(q_BxWxQ, k_BxWxM, v_BxWxM, masks_Wx1x1xM)
    return _reshaped(out, q_BxPxKxGxH.shape[1:2], q_BxPxKxGxH.shape[2:])


def _reshaped(x: Any, positions: Sequence[int], rest: Sequence[int]) -> Any:
    """[B, ..., *rest] -> [B, *positions, *rest]: neither the batch nor `rest` leaves its devices."""
    shape = (x.shape[0], *positions, *rest)
    if isinstance(x, np.ndarray) or jax.sharding.get_abstract_mesh().empty:
        return x.reshape(shape)
    spec = (*jax.typeof(x).sharding.spec,)
    kept = spec[x.ndim - len(rest) :]
    return jnp.reshape(x, shape, out_sharding=PartitionSpec(spec[0], *(None,) * len(positions), *kept))
