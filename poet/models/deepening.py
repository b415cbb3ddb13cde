"""A deeper model that computes at first what a shallower one does, and goes on training from it.

Blocks are repeated in place, and what a repeated one writes into the residual stream begins at 0 (block expansion of
LLaMA Pro, 2401.02415).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from poet.models.transformer import Params

# Weights of a block, of any network, whose products are added to the residual stream.
WRITES = ("out", "down")


def sources(blocks: int, deeper: int) -> np.ndarray:
    """The block that each of the deeper model's is a copy of, int [deeper]; the first copy of one is itself.

    >>> sources(2, 5)
    array([0, 0, 0, 1, 1])
    """
    return np.arange(deeper) * blocks // deeper


def shallow(abstract: Params, layers: int, deeper: int) -> Params:
    """Shapes and shardings of a model of so many layers, from those of the deeper one."""

    def cut(leaf: Any) -> jax.ShapeDtypeStruct:
        blocks = leaf.shape[0] * layers // deeper  # A block may have several layers.
        return jax.ShapeDtypeStruct((blocks, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)

    return {**abstract, "blocks": jax.tree.map(cut, abstract["blocks"])}


def deepened(params: Params, abstract: Params) -> Params:
    """Parameters of a shallower model as those of the deeper one that `abstract` describes."""
    blocks, deeper = (jax.tree.leaves(tree["blocks"])[0].shape[0] for tree in (params, abstract))
    source = sources(blocks, deeper)
    is_itself = np.diff(source, prepend=-1) > 0

    def spread(path: Any, values: jax.Array, leaf: Any) -> jax.Array:
        kept = is_itself if path[-1].key in WRITES else np.ones_like(is_itself)
        return jax.jit(functools.partial(_repeat, source=source, kept=kept), out_shardings=leaf.sharding)(values)

    return {**params, "blocks": jax.tree_util.tree_map_with_path(spread, params["blocks"], abstract["blocks"])}


def _repeat(values: jax.Array, source: np.ndarray, kept: np.ndarray) -> jax.Array:
    return values[source] * kept.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
