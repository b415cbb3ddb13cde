"""Common parts of the tokenizers' training steps: a generator, its critic, and the mesh.

A state holds step, params and opt_state of the generator; with a critic also `critic`: params and
opt_state.  Each loss runs inside one `jax.shard_map` over the batch axes of the mesh: weights are
gathered once, and gradients come back summed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from poet.distributed.mesh import BATCH_AXES
from poet.models import declaration
from poet.models.declaration import Tree
from poet.spec import OptimizerSpec
from poet.training import optimizer
from poet.training.trainable import Batch, Metrics, State

Step = Callable[[State, Batch, jax.Array, jax.Array], tuple[State, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """The declared weights of the networks that learn, and an optimizer for each.

    `critic_rate` is the factor of the critic's learning rate.
    """

    generator: Tree
    critic: Tree | None
    optimizer: OptimizerSpec
    generator_tx: optax.GradientTransformation
    critic_tx: optax.GradientTransformation | None
    critic_rate: float


def networks(spec: OptimizerSpec, generator: Tree, critic: Tree | None, critic_rate: float) -> Networks:
    return Networks(
        generator=generator,
        critic=critic,
        optimizer=spec,
        generator_tx=optimizer.build(spec, declaration.axes(generator)),
        critic_tx=critic and optimizer.build(spec, declaration.axes(critic)),
        critic_rate=critic_rate,
    )


def init(nets: Networks, key: jax.Array, start: Tree | None = None) -> State:
    """A fresh state; the generator starts at `start`, what that lacks at chance."""
    params = _laid_over(declaration.init(nets.generator, key), start or {})
    state = {"step": jnp.int32(0), "params": params, "opt_state": nets.generator_tx.init(params)}
    if nets.critic is not None:
        judge = declaration.init(nets.critic, jax.random.fold_in(key, 1))
        state["critic"] = {"params": judge, "opt_state": nets.critic_tx.init(judge)}
    return state


def _laid_over(tree: Tree, above: Tree) -> Tree:
    """`above`, and of `tree` what that lacks."""
    inner = {name: _laid_over(tree[name], child) for name, child in above.items() if isinstance(child, dict)}
    return {**tree, **{name: jnp.asarray(leaf) for name, leaf in above.items() if name not in inner}, **inner}


def axes(nets: Networks) -> State:
    """Logical axes of `init`'s result."""

    def of(declared: Tree, tx: optax.GradientTransformation) -> dict[str, Any]:
        logical, shapes = declaration.axes(declared), declaration.shapes(declared)
        return {"params": logical, "opt_state": optimizer.state_axes(tx, shapes, logical)}

    state = {"step": (), **of(nets.generator, nets.generator_tx)}
    if nets.critic is not None:
        state["critic"] = of(nets.critic, nets.critic_tx)
    return state


def update(
    nets: Networks, state: State, grads: dict[str, Tree | None], rate: jax.Array
) -> tuple[dict[str, Any], Metrics]:
    """({params, opt_state} of the generator, with a critic also `critic` with its own, metrics)."""
    new, metrics = optimizer.apply(nets.generator_tx, nets.optimizer, grads["generator"], state, rate)
    if nets.critic is not None:
        new["critic"], optimizer_metrics = optimizer.apply(
            nets.critic_tx, nets.optimizer, grads["critic"], state["critic"], rate * nets.critic_rate
        )
        metrics["critic/grad_norm"] = optimizer_metrics["grad_norm"]
    return new, metrics


def started(step: jax.Array, start: int) -> jax.Array | bool:
    """Whether the step `start` has come; known before tracing when that is 0."""
    return step >= start if start else True


def when(condition: jax.Array | bool, value: Callable[[], Any]) -> Any:
    """`value()`, which is the same on the whole mesh, or zeros without the cost of it.

    A condition known before tracing leaves no branch behind: XLA's CPU compiler runs what is inside
    of a branch about five times as slowly.
    """
    if condition is True:
        return value()
    shapes = jax.eval_shape(value)
    zeros = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
    return jax.lax.cond(condition, value, zeros)


def over_mesh(run: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """`run(weights, batch, step, key_data)`, the batch cut over the mesh's batch axes.

    The result is to be equal on all shards.
    """
    if mesh is None:
        return run
    whole = PartitionSpec()
    sharded = jax.shard_map(run, mesh=mesh, in_specs=(whole, PartitionSpec(BATCH_AXES), whole, whole), out_specs=whole)

    def gathered(weights: Any, *rest: Any) -> Any:
        return sharded(jax.tree.map(lambda p: jax.sharding.reshard(p, whole), weights), *rest)

    return gathered
