"""One step of audio tokenizer training: the generator, its codebooks and the discriminators.

The generator's terms (spec §3.3), every one logged by name: mel reconstruction, hinge adversarial
loss, feature matching, commitment.  Codebooks learn by moving averages and the generator has none,
as in the paper: a moving average of the encoder would not fit codebooks of the encoder itself.

State: step, params, opt_state, codebooks; with discriminators also `critic`: params and opt_state.
Batch: `audio` int16 (B, S), and with a noise source `noise` int16 (B, S) and `denoise` int8 (B,).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poet.distributed.mesh import BATCH_AXES
from poet.models.declaration import Tree
from poet.spec import AudioTokenizerSpec, AudioTrainSpec
from poet.tokenizers import adversarial
from poet.tokenizers.adversarial import Networks, Step, when
from poet.tokenizers.audio import critics, rvq, soundstream, spectra
from poet.training.trainable import Batch, Metrics, State

INT16 = 32768.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Inputs of the losses besides weights and sounds.

    Attributes:
      gan_start: the step from which on the discriminators judge, and learn.
      mesh_axes: manual mesh axes (inside `jax.shard_map`) over which means are taken.
    """

    spec: AudioTokenizerSpec
    train: AudioTrainSpec
    gan_start: int
    mesh_axes: Sequence[str] = ()

    def mean(self, value: Any) -> Any:
        """The mean of a tree of a shard's values over the mesh."""
        return jax.lax.pmean(value, tuple(self.mesh_axes)) if self.mesh_axes else value


def init(nets: Networks, spec: AudioTokenizerSpec, frames: int, key: jax.Array, start: Tree | None = None) -> State:
    """A fresh state; `start` holds trained weights and their `codebooks`, and a batch `frames` frames."""
    if start is None:
        return adversarial.init(nets, key) | {"codebooks": rvq.empty(spec)}
    weights = {name: value for name, value in start.items() if name != "codebooks"}
    vectors = jnp.asarray(start["codebooks"])
    # As if every code had been used alike: trained codebooks neither jump nor count as dead.
    usage = jnp.full(vectors.shape[:2], frames / spec.codes)
    books = {"vectors": vectors, "usage": usage, "sums": vectors * usage[..., None]}
    return adversarial.init(nets, key, weights) | {"codebooks": books}


def axes(nets: Networks) -> State:
    """Logical axes of `init`'s result; codebooks are equal everywhere."""
    books = {"vectors": (None, None, None), "sums": (None, None, None), "usage": (None, None)}
    return adversarial.axes(nets) | {"codebooks": books}


def train_step(objective: Objective, nets: Networks, mesh: Mesh | None = None) -> Step:
    """The pure step; `key` samples levels, and what replaces dead codes."""
    objective = dataclasses.replace(objective, mesh_axes=() if mesh is None else BATCH_AXES)
    gradients = adversarial.over_mesh(functools.partial(_gradients, objective), mesh)

    def step(state: State, batch: Batch, key: jax.Array, rate: jax.Array) -> tuple[State, Metrics]:
        judge = state.get("critic")
        weights = {"generator": state["params"], "codebooks": state["codebooks"], "critic": judge and judge["params"]}
        grads, codebooks, metrics = gradients(weights, dict(batch), state["step"], jax.random.key_data(key))
        new, update_metrics = adversarial.update(nets, state, grads, rate)
        return new | {"step": state["step"] + 1, "codebooks": codebooks}, metrics | update_metrics

    return step


def waves(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(what the encoder hears, what the decoder shall say, the switch), floats in [-1, 1]."""
    clean = batch["audio"].astype(jnp.float32) / INT16
    if "noise" not in batch:
        return clean, clean, None
    noisy = jnp.clip(clean + batch["noise"].astype(jnp.float32) / INT16, -1.0, 1.0)
    switch = batch["denoise"]
    return noisy, jnp.where(switch[:, None] > 0, clean, noisy), switch


def _gradients(
    objective: Objective, weights: dict[str, Any], batch: Batch, step: jax.Array, key_data: jax.Array
) -> tuple[dict[str, Tree | None], Tree, Metrics]:
    """(gradients by network, new codebooks, metrics) of one shard's sounds."""
    train, mesh_axes, mean = objective.train, objective.mesh_axes, objective.mean
    heard, target, switch = waves(batch)
    key = jax.random.wrap_key_data(key_data)
    started = adversarial.started(step, objective.gan_start)
    books = _started_codebooks(objective, weights, heard, switch, key)

    def generator_loss(params: Tree) -> Any:
        return _generator_loss(
            objective,
            params,
            books["vectors"],
            weights["critic"],
            (heard, target, switch),
            started,
            _own_key(key, mesh_axes),
        )

    grads, (metrics, output, quantized) = jax.grad(generator_loss, has_aux=True)(weights["generator"])
    books = rvq.update(books, quantized, jax.random.fold_in(key, 3), train, mesh_axes)
    metrics |= _code_metrics(quantized.ids, objective.spec.codes, mesh_axes)
    if weights["critic"] is None:
        return {"generator": grads, "critic": None}, books, metrics

    def critic_loss(params: Tree) -> tuple[jax.Array, Metrics]:
        both = critics.apply(train, params, jnp.concatenate([target, output]))
        count = target.shape[0]
        parts = slice(count), slice(count, None)
        real, fake = (jax.tree.map(lambda f: f[part], both) for part in parts)
        loss = mean(critics.critic_loss(real, fake))
        return loss, {"critic/loss": loss}

    judge_grads, judged = when(started, lambda: jax.grad(critic_loss, has_aux=True)(weights["critic"]))
    return {"generator": grads, "critic": judge_grads}, books, metrics | judged


def _generator_loss(
    objective: Objective,
    params: Tree,
    vectors: jax.Array,
    critic: Tree | None,
    sounds: tuple[jax.Array, jax.Array, jax.Array | None],
    started: jax.Array | bool,
    key: jax.Array,
) -> tuple[jax.Array, tuple[Metrics, jax.Array, rvq.Quantized]]:
    """(loss, (metrics, output without gradient, what the quantizer gave))."""
    spec, train, mean = objective.spec, objective.train, objective.mean
    heard, target, switch = sounds
    z, _ = soundstream.encode(spec, params, heard, switch)
    levels = rvq.random_levels(key, z.shape[0], spec.levels, train.dropout)
    quantized = rvq.quantize(z, vectors, levels, objective.mesh_axes)
    latents = rvq.straight_through(z, quantized.z)
    output, _ = soundstream.decode(spec, params, latents, switch)
    distance = spectra.reconstruction_loss(output, target, spec.sample_rate_hz)
    terms = {"mel": (train.mel_weight, mean(distance)), "commitment": (train.commitment_weight, quantized.commitment)}
    if train.wave_weight:
        difference = jnp.mean(jnp.abs(output - target))
        terms["wave"] = (train.wave_weight, mean(difference))
    if critic is not None:
        fooled, alike = when(started, lambda: mean(_judged(train, critic, output, target)))
        terms["adversarial"] = (train.adversarial_weight, fooled)
        terms["feature"] = (train.feature_weight, alike)
    loss = sum(weight * value for weight, value in terms.values())
    metrics = {"loss": loss, **{f"loss/{name}": value for name, (_, value) in terms.items()}}
    metrics["latent_rms"] = mean(jnp.mean(z**2)) ** 0.5
    output = jax.lax.stop_gradient(output)
    metrics["si_sdr_db"] = mean(jnp.mean(si_sdr_db(output, target)))
    return loss, (jax.lax.stop_gradient(metrics), output, quantized)


def _judged(train: AudioTrainSpec, critic: Tree, output: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(adversarial loss, feature matching) of reconstructions."""
    fake = critics.apply(train, critic, output)
    real = critics.apply(train, critic, target)
    return critics.generator_loss(fake), critics.feature_loss(real, fake)


def si_sdr_db(output_BxS: jax.Array, target_BxS: jax.Array) -> jax.Array:
    """(B,): scale-invariant ratio of signal to distortion (1811.02508), of sounds without their means."""
    ours, theirs = (x - jnp.mean(x, axis=-1, keepdims=True) for x in (output_BxS, target_BxS))
    energy = jnp.sum(theirs**2, axis=-1, keepdims=True) + 1e-8
    signal = theirs * (jnp.sum(ours * theirs, axis=-1, keepdims=True) / energy)
    distortion = jnp.sum((ours - signal) ** 2, axis=-1) + 1e-8
    return 10 * jnp.log10((jnp.sum(signal**2, axis=-1) + 1e-8) / distortion)


def _started_codebooks(
    objective: Objective, weights: dict[str, Any], heard: jax.Array, switch: jax.Array | None, key: jax.Array
) -> Tree:
    """The codebooks, from k-means on this batch if no code was ever used."""
    books = weights["codebooks"]

    def start() -> Tree:
        z, _ = soundstream.encode(objective.spec, weights["generator"], heard, switch)
        iterations, own_key = objective.train.kmeans_iterations, jax.random.fold_in(key, 1)
        return rvq.kmeans(z, books, own_key, iterations, objective.mesh_axes)

    return jax.lax.cond(jnp.sum(books["usage"]) > 0, lambda: books, start)


def _code_metrics(ids: jax.Array, codes: int, mesh_axes: Sequence[str]) -> Metrics:
    """Usage and entropy of the codes of the first level, the last, and all on average."""
    found = rvq.statistics(ids, codes, mesh_axes)
    metrics = {}
    for name, values in found.items():
        metrics[f"codes/{name}"] = jnp.mean(values)
        metrics[f"codes/{name}_first"], metrics[f"codes/{name}_last"] = values[0], values[-1]
    return metrics


def _own_key(key: jax.Array, mesh_axes: Sequence[str]) -> jax.Array:
    """A key of this shard's own."""
    key = jax.random.fold_in(key, 2)
    return jax.random.fold_in(key, jax.lax.axis_index(tuple(mesh_axes))) if mesh_axes else key
