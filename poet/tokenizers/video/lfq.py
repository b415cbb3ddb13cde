"""Lookup-free quantizer (MAGVIT-v2 §3.1): the sign of each of K latent channels is one bit.

There is no codebook and no activation before the sign.  Everything here is computed in float32,
because the entropy terms overflow in half precision.

The entropy terms are exact at any K.  With affinity 2 z.c / tau over the 2^K corner codes c, the
softmax factorises into independent bits with P(bit = 1) = sigmoid(4 z / tau).  So the entropy of
one token is a sum of K binary entropies, and the mean distribution of a batch over 2^m codes is
one matmul of two tables of 2^(m/2) rows: nothing of size tokens x 2^K is ever formed.
tests/benchmarks/bench_lfq.py prints time and memory beside the usual form.

The batch entropy has three modes: full (exact over all codes and tokens), grouped (over groups of
bits: an upper bound) and sub-sampled (over some of the tokens).  The last two may be combined.

Shapes: N tokens, n of them sampled, K bits, m bits of one group, C its 2^m codes, L codes of its
lower and H of its upper half, G groups; `...` any leading dims.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from poet.spec import UserError

# Keeps log and its gradient finite where a probability underflows.
TINY = 1e-20
# Tokens whose tables of the batch entropy exist at once: 2 x 2 MB at 18 bits.
CHUNK = 1024


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
    z: jax.Array,
    *,
    temperature: float = 0.01,
    groups: int = 0,
    samples: int = 0,
    key: jax.Array | None = None,
    mesh_axes: Sequence[str] = (),
) -> LFQLosses:
    """The quantizer's losses of latents (..., K), in float32 (weights: spec §2.1).

    Args:
      temperature: tau of the code probabilities (0.01 in the public code).
      groups: the batch entropy is summed over this many groups of bits; 0 or 1 is exact over all
        2^K codes.  With more groups it is an upper bound, averaged over groups of consecutive and
        of strided bits.
      samples: the batch entropy is taken over about this many of the tokens of all shards, by
        `sample_tokens`; 0, or no fewer than there are, takes them all.  The mean probabilities are
        without bias; their entropy is that of the smaller batch, so it lies lower.
      key: samples tokens anew; without it they are evenly spaced, the same ones in
        every call.
      mesh_axes: manual mesh axes (inside `jax.shard_map`) over which means are taken, so that the
        batch entropy is that of the global batch.

    Raises:
      UserError: `groups` lies outside 0..K, or `samples` is negative.
    """
    z_NxK = z.reshape(-1, z.shape[-1]).astype(jnp.float32)
    _check_modes(z_NxK.shape[1], groups, samples)
    signs_NxK = jnp.where(z_NxK >= 0, 1.0, -1.0)
    logits_NxK = z_NxK * (4.0 / temperature)
    sampled_nxK = _sampled(logits_NxK, samples, key, mesh_axes)
    return LFQLosses(
        commitment=_mean(jnp.mean((signs_NxK - z_NxK) ** 2), mesh_axes),
        sample_entropy=_mean(jnp.mean(jnp.sum(binary_entropy(logits_NxK), -1)), mesh_axes),
        batch_entropy=_batch_entropy(sampled_nxK, groups, mesh_axes),
    )


def _check_modes(bits: int, groups: int, samples: int) -> None:
    if not 0 <= groups <= bits:
        raise UserError(
            f"the batch entropy of {bits} bits cannot be summed over {groups} groups "
            f"(TOKENIZER_TRAIN.entropy_groups); use 0 (exact) to {bits} (each bit alone)"
        )
    if samples < 0:
        raise UserError(
            f"the batch entropy cannot be taken over {samples} tokens "
            "(TOKENIZER_TRAIN.entropy_samples); use 0 (all tokens) or more"
        )


def sample_tokens(tokens: int, samples: int, key: jax.Array | None = None) -> jax.Array:
    """int32 indices (samples,) into `tokens` tokens in order: one of each of equal stretches.

    With a key the place in every stretch is uniform, so that every token is expected equally often;
    without one it is the first.  A token on the border of two stretches may come twice.
    """
    place_n = 0.0 if key is None else jax.random.uniform(key, (samples,))
    indices_n = jnp.floor((jnp.arange(samples) + place_n) * (tokens / samples))
    # Rounding may reach the end of the last stretch.
    return jnp.minimum(indices_n.astype(jnp.int32), tokens - 1)


def _sampled(logits_NxK: jax.Array, samples: int, key: jax.Array | None, mesh_axes: Sequence[str]) -> jax.Array:
    """The tokens of this shard that the batch entropy is taken over: an equal part of `samples`."""
    tokens = logits_NxK.shape[0]
    shards = jax.lax.axis_size(tuple(mesh_axes)) if mesh_axes else 1
    share = -(-samples // shards)
    if not 0 < share < tokens:
        return logits_NxK
    if key is not None and mesh_axes:
        key = jax.random.fold_in(key, jax.lax.axis_index(tuple(mesh_axes)))
    return logits_NxK[sample_tokens(tokens, share, key)]


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
    groups = max(groups, 1)
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
    mean = _mean(_summed_probabilities(logits_Nxm.T) / logits_Nxm.shape[0], mesh_axes)
    return -jnp.sum(mean * jnp.log(jnp.maximum(mean, TINY)))


@jax.custom_vjp
def _summed_probabilities(logits_mxN: jax.Array) -> jax.Array:
    """Code probabilities summed over tokens: (2^(m - m//2), 2^(m//2)), high bits x low bits.

    Runs over chunks of tokens, whose tables the backward pass makes again, so that the memory does
    not grow with the batch.
    """
    first, rest = _chunks(logits_mxN)
    add = lambda total, chunk: (total + _summed(chunk), None)  # noqa: E731
    return jax.lax.scan(add, _summed(first), rest)[0]


def _forward(logits_mxN: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _summed_probabilities(logits_mxN), logits_mxN


def _backward(logits_mxN: jax.Array, dsummed_HxL: jax.Array) -> tuple[jax.Array]:
    first, rest = _chunks(logits_mxN)
    dfirst = _dsummed(dsummed_HxL, first)
    drest = jax.lax.map(functools.partial(_dsummed, dsummed_HxL), rest)
    bits = logits_mxN.shape[0]
    return (jnp.concatenate([dfirst, jnp.moveaxis(drest, 0, 1).reshape(bits, -1)], axis=1),)


_summed_probabilities.defvjp(_forward, _backward)


def _chunks(logits_mxN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The odd part, of 1 to CHUNK tokens, and the rest (chunks, m, CHUNK).

    Sums start with the odd part: with values that are sharded as all others are.
    """
    bits, tokens = logits_mxN.shape
    chunks = (tokens - 1) // CHUNK
    first = tokens - chunks * CHUNK
    rest = logits_mxN[:, first:].reshape(bits, chunks, CHUNK)
    return logits_mxN[:, :first], jnp.moveaxis(rest, 1, 0)


def _summed(logits_mxN: jax.Array) -> jax.Array:
    half = logits_mxN.shape[0] // 2
    low_LxN, high_HxN = _code_probabilities(logits_mxN[:half]), _code_probabilities(logits_mxN[half:])
    return jnp.matmul(high_HxN, low_LxN.T, precision="highest")


def _dsummed(dsummed_HxL: jax.Array, logits_mxN: jax.Array) -> jax.Array:
    """The gradient of `_summed` with respect to its argument."""
    half = logits_mxN.shape[0] // 2
    low_LxN, high_HxN = _code_probabilities(logits_mxN[:half]), _code_probabilities(logits_mxN[half:])
    dlow_LxN = jnp.matmul(dsummed_HxL.T, high_HxN, precision="highest")
    dhigh_HxN = jnp.matmul(dsummed_HxL, low_LxN, precision="highest")
    return jnp.concatenate(
        [_dlogits(logits_mxN[:half], low_LxN * dlow_LxN), _dlogits(logits_mxN[half:], high_HxN * dhigh_HxN)]
    )


def _code_probabilities(logits_mxN: jax.Array) -> jax.Array:
    """(m, N) log-odds -> (2^m, N) probabilities, code c in row c (first bit least).

    Tokens are the last dim, so that every product of two rows runs along memory.
    """
    bits, tokens = logits_mxN.shape
    if bits == 0:
        return jnp.ones((1, tokens), jnp.float32)
    if bits == 1:
        return jnp.concatenate([jax.nn.sigmoid(-logits_mxN), jax.nn.sigmoid(logits_mxN)])
    low = _code_probabilities(logits_mxN[: bits // 2])
    high = _code_probabilities(logits_mxN[bits // 2 :])
    return (high[:, None] * low[None]).reshape(2**bits, tokens)


def _dlogits(logits_mxN: jax.Array, weighed_CxN: jax.Array) -> jax.Array:
    """The gradient (m, N) of log-odds from that of their codes, each times its probability.

    Log-odds x of a bit with P(1) = s change the probability p of a code that has it by p (1 - s), of
    one that lacks it by -p s: two sums over codes for each bit, with no loss where s is near 0 or 1.
    """
    bits = logits_mxN.shape[0]
    on_mxC = ids_to_bits(jnp.arange(2**bits), bits).T > 0
    with_bit = jnp.matmul(on_mxC.astype(jnp.float32), weighed_CxN, precision="highest")
    without = jnp.matmul((~on_mxC).astype(jnp.float32), weighed_CxN, precision="highest")
    return jax.nn.sigmoid(-logits_mxN) * with_bit - jax.nn.sigmoid(logits_mxN) * without
