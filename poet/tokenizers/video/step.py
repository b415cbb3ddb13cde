"""One step of tokenizer training: the generator, its average, and the discriminator if there is one.

Each loss runs inside one `jax.shard_map` over the batch axes of the mesh: weights are gathered once,
means and the batch entropy are those of the global batch, and gradients come back summed.  Both
networks are updated from the same forward pass of the generator.

State: step, params, opt_state, ema; with a discriminator also `critic`: params, opt_state and the
running mean logits `real` and `fake`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poet.models.declaration import Tree
from poet.spec import DiscriminatorSpec
from poet.tokenizers import adversarial
from poet.tokenizers.adversarial import Networks, Step
from poet.tokenizers.video import discriminator, losses
from poet.tokenizers.video.losses import Objective
from poet.training import microbatches
from poet.training.trainable import Batch, Metrics, State


def init(nets: Networks, key: jax.Array, start: Tree | None = None) -> State:
    """A fresh state; the moving average starts at the initial weights, which are `start` if given."""
    state = adversarial.init(nets, key, start)
    state["ema"] = jax.tree.map(jnp.copy, state["params"])
    if nets.critic is not None:
        state["critic"]["averages"] = {"real": jnp.float32(0), "fake": jnp.float32(0)}
    return state


def axes(nets: Networks) -> State:
    """Logical axes of `init`'s result."""
    state = adversarial.axes(nets)
    state["ema"] = state["params"]
    if nets.critic is not None:
        state["critic"]["averages"] = {"real": (), "fake": ()}
    return state


def train_step(objective: Objective, judge: DiscriminatorSpec, nets: Networks, mesh: Mesh | None, parts: int) -> Step:
    """The pure step, in `parts` microbatches; `key` samples the frames that the perceptual term compares."""
    gradients = adversarial.over_mesh(functools.partial(_gradients, objective, judge, parts), mesh)
    frozen = objective.perceptual

    def step(state: State, batch: Batch, key: jax.Array, rate: jax.Array) -> tuple[State, Metrics]:
        critic = state.get("critic", {})
        weights = {
            "generator": state["params"],
            "critic": critic.get("params"),
            "averages": critic.get("averages"),
            "perceptual": None if frozen is None else frozen.params,
        }
        grads, averages, metrics = gradients(weights, batch["video"], state["step"], jax.random.key_data(key))
        new, update_metrics = adversarial.update(nets, state, grads, rate)
        new["step"] = state["step"] + 1
        if objective.train.frozen_encoder:  # Weight decay would move it.
            new["params"] = {**new["params"], "encoder": state["params"]["encoder"]}
        decay = ema_decay(objective.train.ema_decay, state["step"])
        new["ema"] = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state["ema"], new["params"])
        if critic:
            new["critic"]["averages"] = averages
        return new, metrics | update_metrics

    return step


def _gradients(
    objective: Objective,
    judge: DiscriminatorSpec,
    parts: int,
    weights: dict[str, Any],
    video: jax.Array,
    step: jax.Array,
    key: jax.Array,
) -> tuple[dict[str, Tree | None], Metrics | None, Metrics]:
    """(gradients by network, new averages, metrics) of one shard's clips.

    `weights` holds those of the perceptual network too: `shard_map` takes no arrays from outside.
    With microbatches, every one of them is judged beside the averages of before the step.
    """
    averages = weights["averages"]
    if objective.perceptual is not None:
        network = dataclasses.replace(objective.perceptual, params=weights["perceptual"])
        objective = dataclasses.replace(objective, perceptual=network)

    def critic(params: Tree | None) -> losses.Critic | None:
        if params is None:
            return None
        return lambda clips: discriminator.apply(judge, params, clips)

    def generator_loss(params: Tree, clips: jax.Array) -> Any:
        return losses.tokenizer_loss(
            objective, params, clips, step, jax.random.wrap_key_data(key), critic(weights["critic"])
        )

    def judge_loss(params: Tree, clips: jax.Array, output: jax.Array) -> Any:
        return losses.critic_loss(objective, critic(params), clips, output, averages, step)

    def part(clips: jax.Array) -> Any:
        grads, (metrics, output) = jax.grad(generator_loss, has_aux=True)(weights["generator"], clips)
        if weights["critic"] is None:
            return {"generator": grads, "critic": None}, None, metrics

        started = adversarial.started(step, objective.train.gan_start)
        judge_grads, (judge_metrics, moved) = adversarial.when(
            started, lambda: jax.grad(judge_loss, has_aux=True)(weights["critic"], clips, jax.lax.stop_gradient(output))
        )
        moved = jax.tree.map(lambda new, old: jnp.where(started, new, old), moved, averages)
        return {"generator": grads, "critic": judge_grads}, moved, metrics | judge_metrics

    return microbatches.mean(part, video, parts)


def ema_decay(decay: float, step: jax.Array) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)), so that a short run does not average its start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))
