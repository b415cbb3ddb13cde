"""Keys and values of cached decoding: what they are, and how new ones are put among them.

A head's keys lie one after the other, [B, K, C, H], as its scores read them: a product of any other order copies a
layer at every token.

Shape suffixes: B batch, Q positions, D width, C cache length, K key-value heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
    """Keys and values of every layer, and which keys may be seen.

    Attributes:
      k, v: compute dtype, an array [B, K, C, H] for each layer where the program has them one after the other
        (`Model.unrolled`), else one of all in a stack [layers, B, K, C, H].  K lies over `tensor`, then `sequence`.
      mask: bool [B, C]; False at text positions without a piece.
      aligned: compute dtype [B, C + 1 - prefix, D]: what is added where each output position is predicted, the
        first one at 0 (`Layout.aligned`); None where nothing is.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    mask: jax.Array
    aligned: jax.Array | None = None

    @classmethod
    def joined(cls, caches: Sequence[Cache]) -> Cache:
        """The rows of several, in turn."""
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=_batch_dim(parts[0])), *caches)

    def merged(self, other: Cache, taken_B: jax.Array) -> Cache:
        """This one with the rows of another where `taken_B`, bool, says so."""

        def rows(mine: jax.Array, theirs: jax.Array) -> jax.Array:
            others = [dim for dim in range(mine.ndim) if dim != _batch_dim(mine)]
            return jnp.where(jnp.expand_dims(taken_B, others), theirs, mine)

        return jax.tree.map(rows, self, other)


def _batch_dim(part: jax.Array) -> int:
    return 1 if part.ndim == 5 else 0


class Places(NamedTuple):
    """Where tokens stand that are decoded together, and what their states are for.

    Attributes:
      inputs: int32 [Q], the tokens' own positions.
      targets: int32 [Q], the position that each state predicts.
      kept: bool [Q], whether keys and values are written; of a position by one token at the most.
    """

    inputs: jax.Array
    targets: jax.Array
    kept: jax.Array


def filled(new_LxBxNxKxH: jax.Array, length: int, apart: bool) -> tuple[jax.Array, ...]:
    """`Cache.k` or `v` of `length` positions, of which N are there; each layer `apart`, or all in a stack."""
    room = ((0, 0), (0, 0), (0, 0), (0, length - new_LxBxNxKxH.shape[2]), (0, 0))
    stack = jnp.pad(new_LxBxNxKxH.swapaxes(2, 3), room)
    return tuple(stack) if apart else (stack,)


def write(
    held: jax.Array, new_Bx1xKxH: jax.Array, layer: jax.Array | None, position: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Puts one position into a layer, of a stack if it has a number; what is held, and the layer [B, K, C, H]."""
    new_BxKx1xH = new_Bx1xKxH.swapaxes(1, 2)
    if layer is None:
        held = jax.lax.dynamic_update_slice_in_dim(held, new_BxKx1xH, position, axis=2)
        return held, held
    zero = jnp.zeros((), jnp.int32)
    held = jax.lax.dynamic_update_slice(
        held, new_BxKx1xH[None], (layer, zero, zero, jnp.asarray(position, jnp.int32), zero)
    )
    return held, jax.lax.dynamic_index_in_dim(held, layer, keepdims=False)


def scatter(
    held: jax.Array, new_BxQxKxH: jax.Array, layer: jax.Array | None, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`write` of several positions [Q], all different; those behind the end are dropped."""
    if layer is None:
        new_BxKxQxH = new_BxQxKxH.swapaxes(1, 2)
        held = held.at[:, :, positions].set(new_BxKxQxH, mode="drop", unique_indices=True)
        return held, held
    # Dims that are indexed come first.
    held = held.at[layer, :, :, positions].set(new_BxQxKxH.swapaxes(0, 1), mode="drop", unique_indices=True)
    return held, jax.lax.dynamic_index_in_dim(held, layer, keepdims=False)
