"""The language model as a `Trainable`: one pure train step per layout, and the evaluation step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from poet.distributed import mesh as mesh_lib
from poet.models import guidance, sequence
from poet.models.layers import constrain
from poet.models.transformer import Model, Params, build_model
from poet.spec import OptimizerSpec, TrainSpec
from poet.tasks.layout import Layout
from poet.tasks.resolved import Resolved
from poet.training import bit_flips, flops, losses, microbatches, optimizer
from poet.training.cross_entropy import Sums
from poet.training.trainable import Batch, Group, Metrics, State, Trainable

Step = Callable[[State, Batch, jax.Array, jax.Array], tuple[State, Metrics]]


def language_model(resolved: Resolved, mesh: Mesh | AbstractMesh) -> Trainable:
    """The prefix LM of a run: one group per layout of its mixture.

    Raises UserError, before any device work, if a parameter or a group's batch does not divide over
    the mesh.
    """
    model, spec = build_model(resolved), resolved.spec

    def step(layout: Layout, tx: optax.GradientTransformation) -> Step:
        return train_step(model, layout, tx, spec.optimizer, spec.train, resolved.usual_tokens)

    for name, (layout, _) in resolved.groups.items():
        sequence.check(mesh, spec.model.kv_heads, layout, f"group {name!r}")
    cost = functools.partial(flops.train_flops, model, loss_vocabulary=spec.train.loss_vocabulary)
    return assembled(resolved, mesh, model, step, cost)


def assembled(
    resolved: Resolved,
    mesh: Mesh | AbstractMesh,
    model: Model,
    step: Callable[[Layout, optax.GradientTransformation], Step],
    clip_flops: Callable[[Layout], float],
) -> Trainable:
    """A model of codes with a step for each group of a run's mixture.

    Args:
      step: makes that of a layout with an optimizer.
      clip_flops: of a layout, forward and backward.

    Raises UserError as `language_model`.
    """
    spec, axes = resolved.spec, model.axes()
    tx = optimizer.build(spec.optimizer, axes)
    abstract = model.abstract()
    mesh_lib.Rules().check(mesh, axes, abstract)

    def init(key: jax.Array) -> State:
        params = model.init(key)
        return {"step": jnp.zeros((), jnp.int32), "params": params, "opt_state": tx.init(params)}

    batches, groups = resolved.batches, {}
    for name, (layout, _) in resolved.groups.items():
        what = f"DATA.batch, group {name!r}"
        mesh_lib.check_batch(mesh, batches[name], what)
        microbatches.check(batches[name], spec.train.microbatches, mesh_lib.batch_ways(mesh), what)
        groups[name] = Group(
            name=name,
            step=step(layout, tx),
            batch=batch_shapes(layout, batches[name], spec.text.width),
            clips=batches[name],
            tokens=batches[name] * layout.length,
            flops=batches[name] * clip_flops(layout),
        )
    return Trainable(
        init=init,
        axes={"step": (), "params": axes, "opt_state": optimizer.state_axes(tx, abstract, axes)},
        rate=optimizer.learning_rate(spec.optimizer, spec.train.steps),
        groups=groups,
    )


def batch_shapes(layout: Layout, batch: int, text_width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Global shapes and dtypes of one batch of a layout; see `losses.stream_sums` for meanings."""
    shapes = {
        "tokens": jax.ShapeDtypeStruct((batch, layout.length), jnp.int32),
        "known": jax.ShapeDtypeStruct((batch, len(layout.loss_spans)), jnp.int32),
    }
    span = layout.text_span
    if span is not None:
        states = (batch, span.segment.length, text_width)
        shapes["text_states"] = jax.ShapeDtypeStruct(states, jnp.float16)
        shapes["text_length"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return shapes


def train_step(
    model: Model,
    layout: Layout,
    tx: optax.GradientTransformation,
    optimizer_spec: OptimizerSpec,
    spec: TrainSpec,
    usual: float = 1.0,
) -> Step:
    """Pure (state, batch, key, rate) -> (state, metrics) for one layout.

    The objective is the mean over the tokens of the whole batch, however many `spec.microbatches` it is
    taken in.  A batch without a token to predict moves nothing.  With `spec.step_weight = 'tokens'` it is the
    sum over them divided by `usual`, see `Resolved.usual_tokens`.

    Metrics: those of `losses.means` and `optimizer.apply`, and `filled` (see `losses.filled`).
    """

    def loss_of(params: Params, batch: Batch) -> tuple[jax.Array, dict[str, Sums]]:
        sums = losses.stream_sums(
            model, params, batch, layout, loss_vocabulary=spec.loss_vocabulary, z_loss=spec.z_loss
        )
        return losses.total(sums).objective, sums

    def step(state: State, batch: Batch, key: jax.Array, rate: jax.Array) -> tuple[State, Metrics]:
        gradients = functools.partial(jax.grad(loss_of, has_aux=True), state["params"])
        batch, update_key = dict(batch), key
        if spec.bit_flips:
            update_key, flip_key = jax.random.split(key)
            batch["read"] = bit_flips.flipped(flip_key, batch["tokens"], layout, spec.bit_flips)
        if model.spec.guidance_input and layout.text_span is not None:
            update_key, beta_key = jax.random.split(update_key)
            batch["beta"] = constrain(guidance.sampled(beta_key, batch["text_length"]), "batch")
        grads, sums = microbatches.total(gradients, batch, spec.microbatches)
        count = losses.total(sums).count
        over = usual if spec.step_weight == "tokens" else jnp.maximum(count, 1.0)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / over, grads)
        new, optimizer_metrics = optimizer.apply(
            tx, optimizer_spec, grads, state, rate, key=update_key, trains=count > 0
        )
        metrics = losses.means(sums) | optimizer_metrics | {"filled": losses.filled(batch, layout)}
        return {"step": state["step"] + 1, **new}, metrics

    return step


def evaluate_step(
    model: Model, params: Params, batch: Mapping[str, jax.Array], layout: Layout, loss_vocabulary: str = "legal"
) -> tuple[losses.TokenScores, ...]:
    """Loss and hit [B, N] of every token of each loss span, over the mesh's batch axes."""
    return losses.token_scores(model, params, batch, layout, loss_vocabulary=loss_vocabulary)
