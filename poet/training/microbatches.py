"""Gradient accumulation: a batch in parts, for the memory of one part."""

from __future__ import annotations

from typing import Any, Callable

import jax
import jax.numpy as jnp

from poet.specs import UserError


def mean(run: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """Mean over `parts` equal parts of `batch` (leading dim) of `run(part)`, one after the other.

    `run` returns a pytree of floats: gradients and metrics that are means over its clips, so that
    their mean is that of the whole batch.  A term that is no such mean (the batch entropy of a
    quantizer, say) is taken within each part.
    """
    if parts == 1:
        return run(batch)
    pieces = jax.tree.map(lambda x: _cut(x, parts), batch)
    first = jax.eval_shape(run, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, out_sharding=s.sharding), first)

    def add(total: Any, piece: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, run(piece)), None

    total, _ = jax.lax.scan(add, zeros, pieces)
    return jax.tree.map(lambda x: x / parts, total)


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
