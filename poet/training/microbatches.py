"""Gradient accumulation: a batch in parts, for the memory of one part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from poet.spec import UserError


def total(run: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """Sum over `parts` equal parts of `batch` (leading dim) of `run(part)`, one after the other.

    `run` returns a pytree of floats, whose sum over the parts is that of the whole batch: sums over
    its clips or tokens and their gradients.  Several parts are added up in float32.
    """
    if parts == 1:
        return run(batch)
    pieces = jax.tree.map(lambda x: _cut(x, parts), batch)
    first = jax.eval_shape(run, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32, out_sharding=s.sharding), first)

    def add(so_far: Any, piece: Any) -> tuple[Any, None]:
        # A sum in float32 whatever the parts are in: small terms must not vanish beside it.
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), so_far, run(piece)), None

    return jax.lax.scan(add, zeros, pieces)[0]


def mean(run: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """As `total`, divided by `parts`: for what `run` returns as means over as many things in each part.

    A term that is no such mean (the batch entropy of a quantizer, say) is taken within each part.
    """
    found = total(run, batch, parts)
    return found if parts == 1 else jax.tree.map(lambda x: x / parts, found)


def _cut(x: jax.Array, parts: int) -> jax.Array:
    """(B, ...) -> (parts, B / parts, ...).  Strided, so that a sharded batch stays where it is."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def check(batch: int, parts: int, shards: int, what: str) -> None:
    """Raises UserError unless every shard's share of the batch divides into the parts."""
    if batch % (parts * shards):
        raise UserError(
            f"{what}: a batch of {batch} does not divide into TRAIN.microbatches = {parts} parts on "
            f"each of {shards} shards; it must be a multiple of {parts * shards}"
        )
