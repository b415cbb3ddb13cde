"""The declaration of a network's weights.

A network is declared once as a nested dict of `Weight`; its initial values, shapes and logical axes
are all derived from that declaration.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from poet.distributed.mesh import LogicalAxes, Rules

Tree = dict[str, Any]
# (key, shape, dtype, out_sharding) -> values.  Weights of equal initializers, shapes and axes are sampled together.
Initializer = Callable[[jax.Array, tuple[int, ...], str, PartitionSpec | None], jax.Array]
zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones


@dataclasses.dataclass(frozen=True)
class Normal:
    """A Gaussian initializer of mean 0."""

    stddev: float

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: str, out_sharding: PartitionSpec | None = None
    ) -> jax.Array:
        return jax.random.normal(key, shape, dtype, out_sharding=out_sharding) * self.stddev


def fan_in(inputs: int) -> Normal:
    """Variance 1 / inputs."""
    return Normal(inputs**-0.5)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One declared array."""

    shape: tuple[int, ...]
    axes: LogicalAxes
    initializer: Initializer
    dtype: str = "float32"


def dense(width: int, out: int) -> Tree:
    """A linear map per position."""
    return {
        "kernel": Weight((width, out), ("conv_in", "conv_out"), fan_in(width)),
        "bias": Weight((out,), (None,), zeros),
    }


def is_weight(node: Any) -> bool:
    return isinstance(node, Weight)


def by_name(declared: Tree) -> Sequence[int]:
    """Random streams: each weight's place in the order of names."""
    return range(len(jax.tree.leaves(declared, is_leaf=is_weight)))


def as_declared(declared: Tree) -> Sequence[int]:
    """Random streams, in the order of names: each weight's place among the random ones as declared."""

    def number(node: Tree | Weight, places: Iterator[int]) -> Any:
        if isinstance(node, Weight):
            return 0 if node.initializer in (zeros, ones) else next(places)
        return {name: number(child, places) for name, child in node.items()}

    return jax.tree.leaves(number(declared, itertools.count()))


def init(declared: Tree, key: jax.Array, streams: Callable[[Tree], Sequence[int]] = by_name) -> Tree:
    """Initial values; `streams` numbers the weights' random streams.

    On a mesh each device makes its own part: whole arrays would need the memory of the whole model there.
    """
    leaves, treedef = jax.tree.flatten(declared, is_leaf=is_weight)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.array(streams(declared)))
    alike: dict[Weight, list[int]] = {}
    for i, weight in enumerate(leaves):
        alike.setdefault(weight, []).append(i)
    values: dict[int, jax.Array] = {}
    for weight, places in alike.items():
        # One sample for all weights of a kind: it compiles several times faster than one for each.
        # One device keeps the plain program: the sharded one rounds a last bit otherwise.
        place = Rules().spec(weight.axes) if jax.sharding.get_abstract_mesh().size > 1 else None
        sample = jax.vmap(lambda k, w=weight, place=place: w.initializer(k, w.shape, w.dtype, place))
        values |= zip(places, sample(keys[jnp.array(places)]))
    return jax.tree.unflatten(treedef, [values[i] for i in range(len(leaves))])


def stacked(declared: Tree, count: int, axis: str) -> Tree:
    """The weights of `count` such networks, in a leading dim of this logical axis."""

    def stack(w: Weight) -> Weight:
        return dataclasses.replace(w, shape=(count, *w.shape), axes=(axis, *w.axes))

    return jax.tree.map(stack, declared, is_leaf=is_weight)


def shapes(declared: Tree) -> Tree:
    """ShapeDtypeStruct of every weight."""
    return jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), declared, is_leaf=is_weight)


def axes(declared: Tree) -> Tree:
    """The logical axes of every weight."""
    return jax.tree.map(lambda w: w.axes, declared, is_leaf=is_weight)


def count(declared: Tree) -> int:
    """Number of scalars."""
    return sum(math.prod(w.shape) for w in jax.tree.leaves(declared, is_leaf=is_weight))
