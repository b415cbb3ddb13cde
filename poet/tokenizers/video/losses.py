"""The video tokenizer's objectives, every term logged by name (spec §2.5).

The generator's total may be negative: the entropy term rewards a spread-out codebook, down to minus
the logarithm of its size, and the reconstruction terms go to zero.  That is normal.

Shape legend: B clips of one shard, T frames, H height, W width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from poet.models.declaration import Tree
from poet.spec import TokenizerTrainSpec, VideoTokenizerSpec
from poet.tokenizers.adversarial import started, when
from poet.tokenizers.video import discriminator, lfq, magvit
from poet.tokenizers.video.perceptual import Perceptual

# Float video (B, T, H, W, 3) -> one logit per clip.
Critic = Callable[[jax.Array], jax.Array]
Metrics = dict[str, jax.Array]
# Log-odds of a bit for each unit of its latent: commitment pulls latents to +-1, where a bit is then 98 % sure.
ROUND_TRIP_SLOPE = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Inputs of the losses besides weights and pixels.

    Attributes:
      perceptual: frozen network of the perceptual term; None drops the term.
      mesh_axes: manual mesh axes (inside `jax.shard_map`) over which means are taken.
    """

    spec: VideoTokenizerSpec
    train: TokenizerTrainSpec
    perceptual: Perceptual | None = None
    mesh_axes: Sequence[str] = ()

    def mean(self, value: jax.Array) -> jax.Array:
        """The mean of a shard's value over the mesh."""
        return jax.lax.pmean(value, tuple(self.mesh_axes)) if self.mesh_axes else value


def to_float(video_uint8: jax.Array) -> jax.Array:
    """0..255 -> float32 0..1."""
    return video_uint8.astype(jnp.float32) / 255.0


def tokenizer_loss(
    objective: Objective,
    params: Tree,
    video_BxTxHxWx3: jax.Array,
    step: jax.Array,
    key: jax.Array,
    critic: Critic | None = None,
) -> tuple[jax.Array, tuple[Metrics, jax.Array]]:
    """Generator loss of a batch of uint8 clips -> (loss, (metrics, reconstruction)).

    `loss/*` are unweighted; entropies are in bits per latent.  `critic` is the discriminator that
    judges the reconstruction from step `gan_start` on.
    """
    spec, train, mean, axes = objective.spec, objective.train, objective.mean, objective.mesh_axes
    target = to_float(video_BxTxHxWx3)
    if train.frozen_encoder:
        params = {**params, "encoder": jax.lax.stop_gradient(params["encoder"])}
    output, z, ids = magvit.reconstruct(spec, params, target, train.remat)
    quantizer = lfq.losses(
        z,
        temperature=train.temperature,
        groups=train.entropy_groups,
        samples=train.entropy_samples,
        key=jax.random.fold_in(key, 1),
        mesh_axes=axes,
    )
    anneal = lfq.entropy_anneal(step, train.entropy_anneal, train.entropy_anneal_steps)
    terms = {
        "l2": (train.l2_weight, mean(jnp.mean((output - target) ** 2))),
        "commitment": (train.commitment_weight, quantizer.commitment),
        "entropy": (train.entropy_weight * anneal, quantizer.entropy),
    }
    extra = {}
    if train.round_trip_weight:
        misses, match = when(started(step, train.round_trip_start), lambda: round_trip(objective, params, output, z))
        terms["round_trip"] = (train.round_trip_weight, misses)
        extra = {"round_trip_match": match}
    if objective.perceptual is not None:
        distance = _perceptual_distance(objective, output, target, key)
        terms["perceptual"] = (train.perceptual_weight, mean(distance))
    if critic is not None:
        terms["adversarial"] = (
            train.adversarial_weight,
            when(started(step, train.gan_start), lambda: discriminator.generator_loss(critic(output), axes)),
        )
    loss = sum(weight * value for weight, value in terms.values())
    clipped = mean(jnp.mean((jnp.clip(output, 0, 1) - target) ** 2))
    metrics = {
        "loss": loss,
        **{f"loss/{name}": value for name, (_, value) in terms.items()},
        "psnr_db": -10 * jnp.log10(jnp.maximum(clipped, 1e-10)),
        "entropy_sample_bits": quantizer.sample_entropy / math.log(2),
        "entropy_batch_bits": quantizer.batch_entropy / math.log(2),
        **extra,
    }
    return loss, (metrics | code_statistics(ids, spec.bits, axes), output)


def round_trip(
    objective: Objective, params: Tree, output_BxTxHxWx3: jax.Array, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(loss, share of codes that come back) of encoding the reconstruction again.

    The loss is the binary cross-entropy of the clip's own bits under the latents of its reconstruction, as an
    8-bit picture; it reaches both networks (the fine-tuning of wmar, 2506.16349, with both of them free).
    """
    spec = objective.spec
    picture = jnp.round(jnp.clip(output_BxTxHxWx3, 0, 1) * 255) / 255
    picture = output_BxTxHxWx3 + jax.lax.stop_gradient(picture - output_BxTxHxWx3)
    again = magvit.encode(spec, params, picture)
    signs = jax.lax.stop_gradient(jnp.where(z >= 0, 1.0, -1.0))
    misses = jnp.mean(jax.nn.softplus(-ROUND_TRIP_SLOPE * signs * again))
    match = jnp.mean(jnp.all((again >= 0) == (z >= 0), axis=-1).astype(jnp.float32))
    return objective.mean(misses), objective.mean(match)


def critic_loss(
    objective: Objective,
    critic: Critic,
    video_BxTxHxWx3: jax.Array,
    output_BxTxHxWx3: jax.Array,
    averages: Metrics,
    step: jax.Array,
) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
    """Discriminator loss -> (loss, (metrics, new averages)).

    Args:
      averages: running mean logits `real` and `fake`, for LeCAM.
    """
    train, axes = objective.train, objective.mesh_axes
    real = to_float(video_BxTxHxWx3)
    on_real, on_fake = critic(real), critic(output_BxTxHxWx3)
    before = averages["real"], averages["fake"]
    terms = {
        "adversarial": (1.0, discriminator.discriminator_loss(on_real, on_fake, axes)),
        "lecam": (train.lecam_weight, discriminator.lecam(on_real, on_fake, *before, axes)),
        "r1": (
            train.r1_weight * train.r1_every,
            when(
                train.r1_every == 1 or step % train.r1_every == 0, lambda: discriminator.r1_penalty(critic, real, axes)
            ),
        ),
    }
    after = discriminator.lecam_update(*before, on_real, on_fake, train.lecam_decay, axes)
    loss = sum(weight * value for weight, value in terms.values())
    metrics = {
        "critic/loss": loss,
        **{f"critic/loss/{name}": value for name, (_, value) in terms.items()},
        "critic/mean_real": objective.mean(jnp.mean(on_real)),
        "critic/mean_fake": objective.mean(jnp.mean(on_fake)),
    }
    return loss, (metrics, dict(zip(("real", "fake"), after)))


def code_statistics(ids: jax.Array, bits: int, mesh_axes: Sequence[str] = ()) -> dict[str, jax.Array]:
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


def _perceptual_distance(objective: Objective, output: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
    """Mean distance of the frames; of the same random ones in every clip, if not of all."""
    network, count = objective.perceptual, objective.train.perceptual_frames
    if 0 < count < target.shape[1]:
        frames = jax.random.choice(key, target.shape[1], (count,), replace=False)
        output, target = jnp.take(output, frames, axis=1), jnp.take(target, frames, axis=1)
    pictures = (x.reshape(-1, *x.shape[2:]) for x in (output, target))
    return jnp.mean(network.distance(network.params, *pictures))
