"""Residual vector quantizer: every level quantizes the residual of the levels before it (spec §3.2).

Codebooks are moving averages of the vectors that chose them, so they take no gradient.  They start
from k-means on the first batch; a code that is used less than a fraction of what the codes of its level
are used on average is replaced by a vector of the batch.
On a mesh every statistic is that of the global batch, and all shards hold equal codebooks.

A state of codebooks is {'vectors': (L, N, D), 'sums': (L, N, D), 'usage': (L, N)}, float32; `usage`
is the moving average of how many vectors of a step choose a code, `sums` that of their sum.

Shape legend: B batch, F frames, D latent width, L levels, N codes, P = B * F vectors of a shard.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from poet.models.declaration import Tree
from poet.spec import AudioTokenizerSpec, AudioTrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """The result of quantizing a batch.

    Attributes:
      z: (B, F, D), the sum of the chosen vectors, without gradient.
      ids: int32 (B, L, F); where a level was dropped, the code it would have had.
      commitment: scalar: mean squared distance of a level's input to its chosen vector,
        averaged over the levels that were used.
      residuals: (L, P, D): the input of each level, and `weights` (L, P): 1 where it was used.
    """

    z: jax.Array
    ids: jax.Array
    commitment: jax.Array
    residuals: jax.Array
    weights: jax.Array


jax.tree_util.register_dataclass(Quantized, ["z", "ids", "commitment", "residuals", "weights"], [])


def empty(spec: AudioTokenizerSpec) -> Tree:
    """Codebooks that `kmeans` has not filled: no code was ever used."""
    shape = (spec.levels, spec.codes, spec.dim)
    return {"vectors": jnp.zeros(shape), "sums": jnp.zeros(shape), "usage": jnp.zeros(shape[:2])}


def nearest(x_PxD: jax.Array, vectors_NxD: jax.Array) -> jax.Array:
    """int32 (P,): the code with the least squared distance; of equal ones the first."""
    dots = jnp.einsum("pd,nd->pn", x_PxD, vectors_NxD, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(vectors_NxD**2, axis=-1) - 2 * dots, axis=-1).astype(jnp.int32)


def encode(z_BxFxD: jax.Array, vectors_LxNxD: jax.Array) -> jax.Array:
    """int32 ids (B, L, F) at as many levels as there are codebooks."""
    b, f, d = z_BxFxD.shape

    def level(rest_PxD: jax.Array, vectors_NxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        ids = nearest(rest_PxD, vectors_NxD)
        return rest_PxD - vectors_NxD[ids], ids

    _, ids_LxP = jax.lax.scan(level, z_BxFxD.reshape(b * f, d), vectors_LxNxD)
    return ids_LxP.reshape(-1, b, f).swapaxes(0, 1)


def decode(ids_BxLxF: jax.Array, vectors_LxNxD: jax.Array) -> jax.Array:
    """(B, F, D): the sum of the vectors of the ids' levels, which may be fewer than the codebooks."""
    levels = ids_BxLxF.shape[1]
    chosen = jax.vmap(lambda vectors, ids: vectors[ids], in_axes=(0, 1))
    return jnp.sum(chosen(vectors_LxNxD[:levels], ids_BxLxF), axis=0)


def quantize(
    z_BxFxD: jax.Array, vectors_LxNxD: jax.Array, levels_B: jax.Array | None = None, mesh_axes: Sequence[str] = ()
) -> Quantized:
    """Quantizes with the first `levels_B` levels of each example (None: all).

    Gradients reach `z` through the commitment alone (the mean over the mesh); see
    `straight_through`.
    """
    b, f, d = z_BxFxD.shape
    count = vectors_LxNxD.shape[0]
    used_LxB = (
        jnp.ones((count, b))
        if levels_B is None
        else (jnp.arange(count)[:, None] < levels_B[None, :]).astype(jnp.float32)
    )
    weights_LxP = jnp.repeat(used_LxB, f, axis=1)
    flat_PxD = z_BxFxD.reshape(b * f, d)

    def level(total_PxD: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple:
        vectors_NxD, weight_P = inputs
        rest_PxD = flat_PxD - total_PxD
        ids_P = nearest(rest_PxD, vectors_NxD)
        chosen_PxD = vectors_NxD[ids_P]
        distance_P = jnp.mean((rest_PxD - chosen_PxD) ** 2, axis=-1)
        return total_PxD + chosen_PxD * weight_P[:, None], (ids_P, distance_P, rest_PxD)

    frozen = jax.lax.stop_gradient(vectors_LxNxD)
    # From zeros that vary like the input: inside `shard_map` the carry keeps its type.
    start = jax.lax.stop_gradient(jnp.zeros_like(flat_PxD) * flat_PxD)
    z_PxD, (ids_LxP, distance_LxP, rest_LxPxD) = jax.lax.scan(level, start, (frozen, weights_LxP))
    commitment, count_used = jnp.sum(distance_LxP * weights_LxP), jnp.sum(weights_LxP)
    if mesh_axes:
        commitment, count_used = jax.lax.psum((commitment, count_used), tuple(mesh_axes))
    return Quantized(
        z=jax.lax.stop_gradient(z_PxD).reshape(b, f, d),
        ids=ids_LxP.reshape(count, b, f).swapaxes(0, 1),
        commitment=commitment / count_used,
        residuals=jax.lax.stop_gradient(rest_LxPxD),
        weights=weights_LxP,
    )


def straight_through(z: jax.Array, quantized: jax.Array) -> jax.Array:
    """The quantized values forward, the identity backward."""
    return z + jax.lax.stop_gradient(quantized - z)


def random_levels(key: jax.Array, batch: int, levels: int, fraction: float) -> jax.Array:
    """Quantizer dropout: int32 (B,), uniform over 1..levels for `fraction` of the examples, else all."""
    which, how_many = jax.random.split(key)
    sampled = jax.random.randint(how_many, (batch,), 1, levels + 1)
    return jnp.where(jax.random.uniform(which, (batch,)) < fraction, sampled, levels)


# ----------------------------------------------------------------------------- codebooks that learn


def update(
    codebooks: Tree, quantized: Quantized, key: jax.Array, train: AudioTrainSpec, mesh_axes: Sequence[str] = ()
) -> Tree:
    """The codebooks after a step: moving averages, then rarely used codes replaced.

    Args:
      key: equal on all shards.
      mesh_axes: manual mesh axes (inside `jax.shard_map`) over which statistics are summed.
    """
    decay, axes = train.codebook_decay, tuple(mesh_axes)

    def level(inputs: tuple) -> Tree:
        book, ids_P, rest_PxD, weight_P, key = inputs
        counts_N, sums_NxD = _sums(ids_P, rest_PxD, weight_P, book["usage"].shape[0], axes)
        usage = decay * book["usage"] + (1 - decay) * counts_N
        sums = decay * book["sums"] + (1 - decay) * sums_NxD
        alike = jnp.mean(usage)
        dead_N = usage < train.dead_fraction * alike
        fresh_NxD = _sample(rest_PxD, weight_P, key, dead_N.shape[0], axes)
        # As if it had been used like the others: it has ln(1 / fraction) / (1 - decay) steps to be chosen.
        usage = jnp.where(dead_N, alike, usage)
        vectors = jnp.where(dead_N[:, None], fresh_NxD, sums / jnp.maximum(usage, 1e-8)[:, None])
        sums = jnp.where(dead_N[:, None], fresh_NxD * usage[:, None], sums)
        return {"vectors": vectors, "sums": sums, "usage": usage}

    levels = quantized.weights.shape[0]
    ids_LxP = quantized.ids.swapaxes(0, 1).reshape(levels, -1)
    return jax.lax.map(
        level, (codebooks, ids_LxP, quantized.residuals, quantized.weights, jax.random.split(key, levels))
    )


def kmeans(z_BxFxD: jax.Array, codebooks: Tree, key: jax.Array, iterations: int, mesh_axes: Sequence[str] = ()) -> Tree:
    """Codebooks from the latents of a batch, level after level, by Lloyd's algorithm.

    A code that no vector chooses stays where it is.  With fewer vectors than codes, codes repeat
    and are replaced as training goes on.
    """
    axes, codes = tuple(mesh_axes), codebooks["usage"].shape[1]

    def level(rest_PxD: jax.Array, key: jax.Array) -> tuple[jax.Array, Tree]:
        weight_P = jnp.ones_like(rest_PxD[:, 0])
        start_NxD = _sample(rest_PxD, weight_P, key, codes, axes)

        def lloyd(_: int, vectors_NxD: jax.Array) -> jax.Array:
            counts, sums = _sums(nearest(rest_PxD, vectors_NxD), rest_PxD, weight_P, codes, axes)
            means = sums / jnp.maximum(counts, 1)[:, None]
            return jnp.where(counts[:, None] > 0, means, vectors_NxD)

        vectors = jax.lax.fori_loop(0, iterations, lloyd, start_NxD)
        ids_P = nearest(rest_PxD, vectors)
        usage, _ = _sums(ids_P, rest_PxD, weight_P, codes, axes)
        book = {"vectors": vectors, "sums": vectors * usage[:, None], "usage": usage}
        return rest_PxD - vectors[ids_P], book

    flat_PxD = jax.lax.stop_gradient(z_BxFxD).reshape(-1, z_BxFxD.shape[-1])
    _, books = jax.lax.scan(level, flat_PxD, jax.random.split(key, codebooks["usage"].shape[0]))
    return books


def statistics(ids_BxLxF: jax.Array, codes: int, mesh_axes: Sequence[str] = ()) -> dict:
    """By level (L,): `usage`, the fraction of codes that occur in the batch, and `entropy_bits`."""
    count = jax.vmap(lambda ids: jnp.zeros(codes).at[ids.reshape(-1)].add(1.0), in_axes=1)
    counts_LxN = count(ids_BxLxF)
    if mesh_axes:
        counts_LxN = jax.lax.psum(counts_LxN, tuple(mesh_axes))
    fraction = counts_LxN / jnp.sum(counts_LxN, axis=1, keepdims=True)
    bits = -jnp.sum(fraction * jnp.log2(jnp.maximum(fraction, 1e-12)), axis=1)
    return {"usage": jnp.mean(counts_LxN > 0, axis=1), "entropy_bits": bits}


def _sums(
    ids_P: jax.Array, x_PxD: jax.Array, weight_P: jax.Array, codes: int, axes: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """(how many vectors chose each code (N,), their sum (N, D)), over the mesh."""
    add = functools.partial(jax.ops.segment_sum, segment_ids=ids_P, num_segments=codes)
    counts_N, sums_NxD = add(weight_P), add(x_PxD * weight_P[:, None])
    return (counts_N, sums_NxD) if not axes else jax.lax.psum((counts_N, sums_NxD), axes)


def _sample(x_PxD: jax.Array, weight_P: jax.Array, key: jax.Array, count: int, axes: tuple[str, ...]) -> jax.Array:
    """(count, D): random vectors of the global batch with weight, equal on all shards."""

    def own(key: jax.Array, number: int) -> jax.Array:
        ends_P = jnp.cumsum(weight_P)
        places = jax.random.uniform(key, (number,)) * ends_P[-1]
        return x_PxD[jnp.clip(jnp.searchsorted(ends_P, places, side="right"), 0, len(x_PxD) - 1)]

    if not axes:
        return own(key, count)
    shards = jax.lax.axis_size(axes)
    number = -(-count // shards)
    mine = own(jax.random.fold_in(key, jax.lax.axis_index(axes)), number)
    # A sum over a mostly empty array, which unlike an all-gather is known to be equal everywhere.
    whole = jnp.zeros((shards, number, x_PxD.shape[-1])).at[jax.lax.axis_index(axes)].set(mine)
    sampled = jax.lax.psum(whole, axes).reshape(shards * number, -1)
    return jax.random.permutation(key, sampled)[:count]
