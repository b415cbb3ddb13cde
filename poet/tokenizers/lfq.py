"""Lookup-free quantizer (MAGVIT-v2 §3.1): the sign of each of K latent channels is one bit.

There is no codebook and no activation before the sign.  Everything here is computed in float32,
because the entropy terms overflow in half precision.

The entropy terms are exact at any K.  With affinity 2 z.c / tau over the 2^K corner codes c, the
softmax factorises into independent bits with P(bit = 1) = sigmoid(4 z / tau).  So the entropy of
one sample is a sum of K binary entropies, and the mean distribution of a batch over 2^m codes is
one matmul of two tables of 2^(m/2) columns: nothing of size samples x 2^K is ever formed.

Shapes: N tokens, K bits, m bits of one group; `...` any leading dims.
"""

from __future__ import annotations

import dataclasses
from typing import Sequence

import jax
import jax.numpy as jnp

# Keeps log and its gradient finite where a probability underflows.
TINY = 1e-20


def bits_to_ids(bits: jax.Array) -> jax.Array:
    """Booleans or 0/1 (..., K) -> int32 ids (...), least significant bit first."""
    weights_K = jnp.left_shift(1, jnp.arange(bits.shape[-1], dtype=jnp.int32))
    return jnp.sum(bits.astype(jnp.int32) * weights_K, axis=-1)


def ids_to_bits(ids: jax.Array, bits: int) -> jax.Array:
    """int ids (...) in 0..2^bits-1 -> float32 corner codes (..., bits) of -1 and +1."""
    on = jnp.right_shift(ids[..., None], jnp.arange(bits, dtype=jnp.int32)) & 1
    return on.astype(jnp.float32) * 2 - 1


def quantize(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Latents (..., K) -> (corner codes float32 (..., K), int32 ids (...)).

    z >= 0 gives +1.  The codes are exactly +-1 and carry the identity gradient of z.
    """
    z = z.astype(jnp.float32)
    on = z >= 0
    straight_through = z - jax.lax.stop_gradient(z)
    return jnp.where(on, 1.0, -1.0) + straight_through, bits_to_ids(on)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LFQLosses:
    """Scalars, entropies in nats.  `entropy` = sample - batch; a negative value is normal."""

    commitment: jax.Array
    sample_entropy: jax.Array
    batch_entropy: jax.Array

    @property
    def entropy(self) -> jax.Array:
        return self.sample_entropy - self.batch_entropy


def losses(
    z: jax.Array, *, temperature: float = 0.01, groups: int = 0, mesh_axes: Sequence[str] = ()
) -> LFQLosses:
    """The quantizer's losses of latents (..., K), in float32 (weights: spec §2.1).

    Args:
      temperature: tau of the code probabilities (0.01 in the public code).
      groups: the batch entropy is summed over this many groups of bits; 0 or 1 is exact over all
        2^K codes.  With more groups it is an upper bound, averaged over groups of consecutive and
        of strided bits.
      mesh_axes: manual mesh axes (inside `jax.shard_map`) over which means are taken, so that the
        batch entropy is that of the global batch.
    """
    z_NxK = z.reshape(-1, z.shape[-1]).astype(jnp.float32)
    signs_NxK = jnp.where(z_NxK >= 0, 1.0, -1.0)
    logits_NxK = z_NxK * (4.0 / temperature)
    return LFQLosses(
        commitment=_mean(jnp.mean((signs_NxK - z_NxK) ** 2), mesh_axes),
        sample_entropy=_mean(jnp.mean(jnp.sum(binary_entropy(logits_NxK), -1)), mesh_axes),
        batch_entropy=_batch_entropy(logits_NxK, groups, mesh_axes),
    )


def entropy_anneal(step: jax.Array, start: float, steps: int) -> jax.Array:
    """Factor on the entropy weight: `start` at step 0, linearly to 1 at `steps` (spec §2.1)."""
    if steps <= 0:
        return jnp.float32(1.0)
    return start + (1.0 - start) * jnp.minimum(step / steps, 1.0)


def binary_entropy(logits: jax.Array) -> jax.Array:
    """Entropy in nats of bits with these log-odds; finite, with finite gradient, at any size."""
    magnitude = jnp.abs(logits)
    return jax.nn.softplus(-magnitude) + magnitude * jax.nn.sigmoid(-magnitude)


def _mean(value: jax.Array, mesh_axes: Sequence[str]) -> jax.Array:
    return jax.lax.pmean(value, tuple(mesh_axes)) if mesh_axes else value


def _batch_entropy(logits_NxK: jax.Array, groups: int, mesh_axes: Sequence[str]) -> jax.Array:
    bits = logits_NxK.shape[1]
    groups = min(max(groups, 1), bits)
    consecutive = [range(g * bits // groups, (g + 1) * bits // groups) for g in range(groups)]
    strided = [range(g, bits, groups) for g in range(groups)]
    groupings = [consecutive] if groups in (1, bits) else [consecutive, strided]
    entropies = [
        sum(_group_entropy(logits_NxK[:, g.start : g.stop : g.step], mesh_axes) for g in grouping)
        for grouping in groupings
    ]
    return sum(entropies) / len(entropies)


def _group_entropy(logits_Nxm: jax.Array, mesh_axes: Sequence[str]) -> jax.Array:
    """Entropy of the mean distribution over the 2^m codes of one group of bits."""
    half = logits_Nxm.shape[1] // 2
    low, high = _code_probabilities(logits_Nxm[:, :half]), _code_probabilities(logits_Nxm[:, half:])
    mean = jnp.matmul(high.T, low, precision="highest") / logits_Nxm.shape[0]
    mean = _mean(mean, mesh_axes)
    return -jnp.sum(mean * jnp.log(jnp.maximum(mean, TINY)))


def _code_probabilities(logits_Nxm: jax.Array) -> jax.Array:
    """(N, m) log-odds -> (N, 2^m) probabilities, code c at column c (first bit least)."""
    table = jnp.ones((logits_Nxm.shape[0], 1), jnp.float32)
    for i in range(logits_Nxm.shape[1]):
        on = jax.nn.sigmoid(logits_Nxm[:, i : i + 1])
        off = jax.nn.sigmoid(-logits_Nxm[:, i : i + 1])
        table = jnp.concatenate([table * off, table * on], axis=1)
    return table
