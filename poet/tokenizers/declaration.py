"""The declaration of a network's weights.

A network is declared once as a nested dict of `Weight`; its initial values, shapes and logical
axes are all derived from that declaration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from poet.distributed.mesh import LogicalAxes

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One declared array; `fan_in` = 0 means zeros, -1 ones, else normal with variance 1/fan_in."""

    shape: tuple[int, ...]
    axes: LogicalAxes
    fan_in: int

    def init(self, key: jax.Array) -> jax.Array:
        if self.fan_in > 0:
            return jax.random.normal(key, self.shape) * self.fan_in**-0.5
        return jnp.full(self.shape, float(-self.fan_in))


def dense(width: int, out: int) -> Tree:
    """A linear map per position."""
    return {
        "kernel": Weight((width, out), ("conv_in", "conv_out"), width),
        "bias": Weight((out,), (None,), 0),
    }


def is_weight(node: Any) -> bool:
    return isinstance(node, Weight)


def init(declared: Tree, key: jax.Array) -> Tree:
    """Float32 values; each weight's stream is its place in the declaration."""
    leaves, treedef = jax.tree.flatten(declared, is_leaf=is_weight)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(leaves)))
    alike: dict[Weight, list[int]] = {}
    for i, weight in enumerate(leaves):
        alike.setdefault(weight, []).append(i)
    values: dict[int, jax.Array] = {}
    for weight, places in alike.items():
        # One draw for all weights of a kind: it compiles several times faster than one for each.
        values |= zip(places, jax.vmap(weight.init)(keys[jnp.array(places)]))
    return jax.tree.unflatten(treedef, [values[i] for i in range(len(leaves))])


def axes(declared: Tree) -> Tree:
    """The logical axes of every weight."""
    return jax.tree.map(lambda w: w.axes, declared, is_leaf=is_weight)


def count(declared: Tree) -> int:
    """Number of scalars."""
    return sum(math.prod(w.shape) for w in jax.tree.leaves(declared, is_leaf=is_weight))
