"""The video tokenizer's objective: reconstruction and quantizer terms, each logged by name.

The total may be negative: the entropy term rewards a spread-out codebook without bound at zero.
"""

from __future__ import annotations

import math
from typing import Sequence

import jax
import jax.numpy as jnp

from poet.specs import TokenizerTrainSpec, VideoTokenizerSpec
from poet.tokenizers import lfq, magvit
from poet.tokenizers.layers import Tree


def tokenizer_loss(
    spec: VideoTokenizerSpec,
    train: TokenizerTrainSpec,
    params: Tree,
    video_BxTxHxWx3: jax.Array,
    step: jax.Array,
    mesh_axes: Sequence[str] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of a batch of uint8 clips; means are taken over `mesh_axes` too.

    `loss/*` are unweighted; entropies are in bits per latent.
    """
    target = video_BxTxHxWx3.astype(jnp.float32) / 255.0
    output, z, ids = magvit.reconstruct(spec, params, target)
    quantizer = lfq.losses(
        z, temperature=train.temperature, groups=train.entropy_groups, mesh_axes=mesh_axes
    )
    mean = (lambda x: jax.lax.pmean(x, tuple(mesh_axes))) if mesh_axes else (lambda x: x)
    l2 = mean(jnp.mean((output - target) ** 2))
    anneal = lfq.entropy_anneal(step, train.entropy_anneal, train.entropy_anneal_steps)
    loss = (
        train.l2_weight * l2
        + train.commitment_weight * quantizer.commitment
        + train.entropy_weight * anneal * quantizer.entropy
    )
    clipped = mean(jnp.mean((jnp.clip(output, 0, 1) - target) ** 2))
    metrics = {
        "loss": loss,
        "loss/l2": l2,
        "loss/commitment": quantizer.commitment,
        "loss/entropy": quantizer.entropy,
        "psnr_db": -10 * jnp.log10(jnp.maximum(clipped, 1e-10)),
        "entropy_sample_bits": quantizer.sample_entropy / math.log(2),
        "entropy_batch_bits": quantizer.batch_entropy / math.log(2),
    }
    return loss, metrics | code_statistics(ids, spec.bits, mesh_axes)


def code_statistics(
    ids: jax.Array, bits: int, mesh_axes: Sequence[str] = ()
) -> dict[str, jax.Array]:
    """`codebook_usage`: distinct codes of the batch over the most it could hold; `bit_balance`:
    1 when every bit is on half the time, 0 when every bit is constant."""
    counts = jnp.zeros(2**bits, jnp.int32).at[ids.reshape(-1)].add(1)
    mean_bits = jnp.mean(lfq.ids_to_bits(ids, bits).reshape(-1, bits), axis=0)
    tokens = ids.size
    if mesh_axes:
        counts = jax.lax.psum(counts, tuple(mesh_axes))
        mean_bits = jax.lax.pmean(mean_bits, tuple(mesh_axes))
        tokens = jax.lax.psum(tokens, tuple(mesh_axes))
    return {
        "codebook_usage": jnp.sum(counts > 0) / jnp.minimum(2**bits, tokens),
        "bit_balance": 1 - jnp.mean(jnp.abs(mean_bits)),
    }
