"""Weights of the blocks as they may lie in memory while a model samples: bfloat16, or int8 with a scale for each output
channel.  They become the compute dtype where a block takes them: each step reads a half or a quarter of the bytes.

Tables, norms and the activations stay as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from poet.spec import choose

# Dims of a weight, without that of the layers, that a product sums over; those of all others are the first.
_SUMMED = {"out": (0, 1, 2)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
    """A weight: `values` int8 or bfloat16 of its shape; `scale` float32, 1 along what a product sums over, or None."""

    values: jax.Array
    scale: jax.Array | None

    def __getitem__(self, layer: Any) -> Stored:
        return Stored(self.values[layer], None if self.scale is None else self.scale[layer])

    def restored(self, dtype: jnp.dtype) -> jax.Array:
        """The weight in the compute dtype."""
        if self.scale is None:
            return self.values.astype(dtype)
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


def stored(params: dict[str, Any], kind: str) -> dict[str, Any]:
    """Parameters whose blocks' weights are kept as `kind`: 'bfloat16', 'int8', or '' as they are.

    Raises UserError for another one.
    """
    keep = choose(kind, {"": None, "bfloat16": _bfloat16, "int8": _int8}, "kind of stored weights")
    if keep is None:
        return params
    return {**params, "blocks": jax.tree_util.tree_map_with_path(keep, params["blocks"])}


def restored(values: Any, dtype: jnp.dtype) -> Any:
    """A tree of parameters without `Stored` ones."""
    return jax.tree.map(lambda v: v.restored(dtype) if is_stored(v) else v, values, is_leaf=is_stored)


def is_stored(value: Any) -> bool:
    return isinstance(value, Stored)


def _bfloat16(path: Any, weight: jax.Array) -> jax.Array | Stored:
    return Stored(weight.astype(jnp.bfloat16), None) if weight.ndim > 2 else weight


def _int8(path: Any, weight: jax.Array) -> jax.Array | Stored:
    if weight.ndim <= 2:  # A norm of each layer.
        return weight
    summed = tuple(1 + dim for dim in _SUMMED.get(path[-1].key, (0,)))
    weight = weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(weight), axis=summed, keepdims=True), 1e-30) / 127
    return Stored(jnp.round(weight / scale).astype(jnp.int8), scale)
