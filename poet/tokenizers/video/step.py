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
from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from poet.mesh import BATCH_AXES
from poet.specs import Experiment
from poet.tokenizers import declaration
from poet.tokenizers.declaration import Tree
from poet.tokenizers.video import discriminator, losses, magvit, perceptual
from poet.tokenizers.video.losses import Objective
from poet.training import microbatches, optimizer
from poet.training.trainable import Batch, Metrics, State

Step = Callable[[State, Batch, jax.Array], tuple[State, Metrics]]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """The declared weights of the networks that learn, and an optimizer for each."""

    generator: Tree
    critic: Tree | None
    generator_tx: optax.GradientTransformation
    critic_tx: optax.GradientTransformation | None


def networks(experiment: Experiment, shape: Shape) -> Networks:
    """Declares what learns on clips of (frames, height, width) = `shape`."""
    spec, steps = experiment.optimizer, experiment.train.steps
    generator = magvit.declare(experiment.video_tokenizer)
    tx = optimizer.build(spec, steps, declaration.axes(generator))
    if not experiment.tokenizer_train.adversarial:
        return Networks(generator=generator, critic=None, generator_tx=tx, critic_tx=None)
    critic = discriminator.declare(experiment.discriminator, *shape)
    slower = spec.replace(
        learning_rate=spec.learning_rate * experiment.discriminator.learning_rate
    )
    return Networks(
        generator=generator,
        critic=critic,
        generator_tx=tx,
        critic_tx=optimizer.build(slower, steps, declaration.axes(critic)),
    )


def init(nets: Networks, key: jax.Array, start: Tree | None = None) -> State:
    """A fresh state; the moving average starts at the initial weights, which are `start` if given."""
    params = declaration.init(nets.generator, key) if start is None else jax.tree.map(jnp.asarray, start)
    state = {
        "step": jnp.int32(0),
        "params": params,
        "ema": jax.tree.map(jnp.copy, params),
        "opt_state": nets.generator_tx.init(params),
    }
    if nets.critic is not None:
        judge = declaration.init(nets.critic, jax.random.fold_in(key, 1))
        state["critic"] = {
            "params": judge,
            "opt_state": nets.critic_tx.init(judge),
            "averages": {"real": jnp.float32(0), "fake": jnp.float32(0)},
        }
    return state


def axes(nets: Networks) -> State:
    """Logical axes of `init`'s result."""

    def of(declared: Tree, tx: optax.GradientTransformation) -> dict[str, Any]:
        params = jax.eval_shape(lambda: declaration.init(declared, jax.random.key(0)))
        logical = declaration.axes(declared)
        return {"params": logical, "opt_state": optimizer.state_axes(tx, params, logical)}

    state = {"step": (), **of(nets.generator, nets.generator_tx)}
    state["ema"] = state["params"]
    if nets.critic is not None:
        averages = {"real": (), "fake": ()}
        state["critic"] = {**of(nets.critic, nets.critic_tx), "averages": averages}
    return state


def load_perceptual(experiment: Experiment) -> perceptual.Perceptual | None:
    """The frozen network of the perceptual term; None when it is off."""
    train = experiment.tokenizer_train
    return perceptual.load(train.perceptual, train.perceptual_path) if train.perceptual else None


def train_step(
    experiment: Experiment,
    nets: Networks,
    mesh: Mesh | None = None,
    frozen: perceptual.Perceptual | None = None,
) -> Step:
    """The pure step; `key` draws the frames that the perceptual term compares."""
    objective = Objective(
        spec=experiment.video_tokenizer,
        train=experiment.tokenizer_train,
        perceptual=frozen,
        mesh_axes=() if mesh is None else BATCH_AXES,
    )
    gradients = _over_mesh(functools.partial(_gradients, experiment, objective), mesh)
    rate = optimizer.learning_rate(experiment.optimizer, experiment.train.steps)

    def step(state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        judge = state.get("critic", {})
        grads, averages, metrics = gradients(
            {"generator": state["params"], "critic": judge.get("params")},
            None if frozen is None else frozen.params,
            judge.get("averages"),
            batch["video"],
            state["step"],
            jax.random.key_data(key),
        )
        new = {"step": state["step"] + 1}
        new |= _update(nets.generator_tx, state, grads["generator"])
        decay = ema_decay(experiment.tokenizer_train.ema_decay, state["step"])
        new["ema"] = jax.tree.map(
            lambda e, p: e + (1 - decay) * (p - e), state["ema"], new["params"]
        )
        metrics["grad_norm"] = optax.tree.norm(grads["generator"])
        metrics["learning_rate"] = rate(state["step"])
        if judge:
            new["critic"] = _update(nets.critic_tx, judge, grads["critic"])
            new["critic"]["averages"] = averages
            metrics["critic/grad_norm"] = optax.tree.norm(grads["critic"])
        return new, metrics

    return step


def _update(tx: optax.GradientTransformation, state: State, grads: Tree) -> dict[str, Any]:
    updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}


def _gradients(
    experiment: Experiment,
    objective: Objective,
    learned: dict[str, Tree | None],
    frozen: Any,
    averages: Metrics | None,
    video: jax.Array,
    step: jax.Array,
    key: jax.Array,
) -> tuple[dict[str, Tree | None], Metrics | None, Metrics]:
    """(gradients by network, new averages, metrics) of one shard's clips.

    `frozen` are the weights of the perceptual network: `shard_map` takes no arrays from outside.
    With microbatches, every one of them is judged beside the averages of before the step.
    """

    if objective.perceptual is not None:
        network = dataclasses.replace(objective.perceptual, params=frozen)
        objective = dataclasses.replace(objective, perceptual=network)

    def critic(weights: Tree) -> losses.Critic | None:
        if weights is None:
            return None
        return lambda clips: discriminator.apply(experiment.discriminator, weights, clips)

    def generator_loss(params: Tree, clips: jax.Array) -> Any:
        return losses.tokenizer_loss(
            objective, params, clips, step, jax.random.wrap_key_data(key),
            critic(learned["critic"]),
        )

    def judge_loss(params: Tree, clips: jax.Array, output: jax.Array) -> Any:
        return losses.critic_loss(objective, critic(params), clips, output, averages, step)

    def part(clips: jax.Array) -> Any:
        grads, (metrics, output) = jax.grad(generator_loss, has_aux=True)(
            learned["generator"], clips
        )
        if learned["critic"] is None:
            return {"generator": grads, "critic": None}, None, metrics

        judge_grads, (judge_metrics, moved) = _from_start(
            step >= objective.train.gan_start,
            averages,
            lambda: jax.grad(judge_loss, has_aux=True)(
                learned["critic"], clips, jax.lax.stop_gradient(output)
            ),
        )
        return {"generator": grads, "critic": judge_grads}, moved, metrics | judge_metrics

    return microbatches.mean(part, video, experiment.train.microbatches)


def _from_start(
    started: jax.Array, averages: Metrics, judged: Callable[[], Any]
) -> tuple[Tree, tuple[Metrics, Metrics]]:
    """`judged()`, or no gradient and the same averages without the cost of it."""

    def rests() -> Any:
        grads, (metrics, _) = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(judged)
        )
        return grads, (metrics, averages)

    return jax.lax.cond(started, judged, rests)


def _over_mesh(run: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """`run(learned, frozen, averages, video, step, key)`, the clips cut over the batch axes."""
    if mesh is None:
        return run
    replicated = PartitionSpec()
    sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(*[replicated] * 3, PartitionSpec(BATCH_AXES), replicated, replicated),
        out_specs=replicated,
    )

    def gathered(learned: Any, frozen: Any, *rest: Any) -> Any:
        whole = jax.tree.map(lambda p: jax.sharding.reshard(p, replicated), (learned, frozen))
        return sharded(*whole, *rest)

    return gathered


def ema_decay(decay: float, step: jax.Array) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)), so that a short run does not average its start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))
