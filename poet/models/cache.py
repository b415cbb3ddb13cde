"""Keys and values of cached decoding: what they are, and how new ones are put among them.

Shape suffixes: B batch, Q positions, D width, C cache length, K key-value heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
    """Keys and values of every layer, and which keys may be seen.

    Attributes:
      k, v: compute dtype [layers, B, C, K, H]; K lies over `tensor`, then `sequence`.
      mask: bool [B, C]; False at text positions without a piece.
      aligned: compute dtype [B, C + 1 - prefix, D]: what is added where each output position is predicted, the
        first one at 0 (`Layout.aligned`); None where nothing is.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array
    aligned: jax.Array | None = None

    @classmethod
    def joined(cls, caches: Sequence[Cache]) -> Cache:
        """The rows of several, in turn."""

        def rows(field: str, *parts: Any) -> Any:
            return None if parts[0] is None else jnp.concatenate(parts, axis=1 if field in ("k", "v") else 0)

        return cls(*map(rows, cls._fields, *caches))

    def merged(self, other: Cache, taken_B: jax.Array) -> Cache:
        """This one with the rows of another where `taken_B`, bool, says so."""

        def rows(field: str, mine: Any, theirs: Any) -> Any:
            if mine is None:
                return None
            dim = 1 if field in ("k", "v") else 0
            taken = jnp.expand_dims(taken_B, [n for n in range(mine.ndim) if n != dim])
            return jnp.where(taken, theirs, mine)

        return Cache(*map(rows, self._fields, self, other))


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


def write(
    all_layers: jax.Array, new_Bx1xKxH: jax.Array, layer: jax.Array, position: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Puts one position of one layer into the cache [layers, B, C, K, H]; returns it and that layer's [B, C, K, H]."""
    zero = jnp.zeros((), jnp.int32)
    at = (layer, zero, jnp.asarray(position, jnp.int32), zero, zero)
    all_layers = jax.lax.dynamic_update_slice(all_layers, new_Bx1xKxH[None], at)
    return all_layers, jax.lax.dynamic_index_in_dim(all_layers, layer, keepdims=False)


def scatter(
    all_layers: jax.Array, new_BxQxKxH: jax.Array, layer: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`write` of several positions [Q], all different; those behind the end are dropped."""
    # Dims that are indexed come first.
    all_layers = all_layers.at[layer, :, positions].set(new_BxQxKxH.swapaxes(0, 1), mode="drop", unique_indices=True)
    return all_layers, jax.lax.dynamic_index_in_dim(all_layers, layer, keepdims=False)
