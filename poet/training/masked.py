"""Super-resolution as a `Trainable`: masked modelling of codes, given those of the low resolution.

MaskGIT's objective (MAGVIT, 2212.05199): a fraction of a clip's codes, the cosine of a uniform number, is masked,
and the loss is theirs alone.  The low-resolution codes are noised and sometimes hidden (VideoPoet §4.4), so that
sampling bears with what a language model makes and can be guided.

Shape suffixes: B batch, S high-resolution positions, M low-resolution positions.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from poet.models.layers import constrain
from poet.models.superres import Params, SuperResolution, build_model
from poet.spec import OptimizerSpec, SuperResolutionSpec, TrainSpec, UserError
from poet.streams.base import HIDDEN, Grid
from poet.tasks.layout import Layout, Span
from poet.tasks.resolved import Resolved
from poet.training import losses, microbatches, optimizer
from poet.training.cross_entropy import Sums, Values
from poet.training.step import Step, assembled
from poet.training.trainable import Batch, Metrics, State, Trainable

STREAM = "video"


def super_resolution(resolved: Resolved, mesh: Mesh | AbstractMesh) -> Trainable:
    """The super-resolution network of a run.

    Raises UserError, before any device work, if a parameter or the batch does not divide over the mesh, if the mesh
    splits positions, or if the windows do not fit the clips.
    """
    model, spec = build_model(resolved), resolved.spec
    if mesh.shape["sequence"] > 1:
        raise UserError(
            f"MESH.sequence = {mesh.shape['sequence']} splits positions, which super-resolution cuts into windows "
            "instead: set MESH.sequence = 1, and MESH.fsdp or MESH.tensor to the devices"
        )
    grid = resolved.format.video
    model.places(grid)

    def step(layout: Layout, tx: optax.GradientTransformation) -> Step:
        return train_step(model, layout, tx, spec.optimizer, spec.train)

    def clip_flops(layout: Layout) -> float:
        text = layout.text_span
        return 3 * model.forward_flops(grid, text.stop - text.start if text else 0)

    return assembled(resolved, mesh, model, step, clip_flops)


def train_step(
    model: SuperResolution,
    layout: Layout,
    tx: optax.GradientTransformation,
    optimizer_spec: OptimizerSpec,
    spec: TrainSpec,
) -> Step:
    """Pure (state, batch, key, rate) -> (state, metrics); the objective is the mean over the batch's masked codes.

    Metrics: those of `losses.means` and `optimizer.apply`, and `masked`, the fraction that was.
    """

    def loss_of(params: Params, batch: Batch) -> tuple[jax.Array, Sums]:
        sums, _ = scored(model, params, batch, layout, spec.z_loss, model.windows.label_smoothing)
        return sums.objective, sums

    def step(state: State, batch: Batch, key: jax.Array, rate: jax.Array) -> tuple[State, Metrics]:
        hide_key, update_key = jax.random.split(key)
        hidden = corrupted(hide_key, batch, layout, model.windows, 2**model.vocabulary.spec.visual_bits)
        gradients = functools.partial(jax.grad(loss_of, has_aux=True), state["params"])
        grads, sums = microbatches.total(gradients, hidden, spec.microbatches)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / sums.count, grads)
        new, told = optimizer.apply(tx, optimizer_spec, grads, state, rate, key=update_key)
        metrics = losses.means({STREAM: sums}) | told | {"masked": sums.count / hidden["codes"].size}
        return {"step": state["step"] + 1, **new}, metrics

    return step


def scored(
    model: SuperResolution, params: Params, batch: Batch, layout: Layout, z_loss: float = 0.0, smoothing: float = 0.0
) -> Values:
    """Sums over the masked codes of a batch of `corrupted` or `masked_by`, and its codes [B, S] one by one."""
    ids = model.vocabulary.visual
    text = losses.text_of(batch, layout)
    x_BxSxD = model.states(params, batch["read"], batch["low"], grid_of(layout), text)
    labels_BxS, masked_BxS = batch["codes"] + ids.low, (batch["read"] == HIDDEN).astype(jnp.float32)
    return losses.chain_sums(model, params, x_BxSxD, labels_BxS, masked_BxS, ids, z_loss, smoothing)


def evaluate_step(model: SuperResolution, params: Params, batch: Batch, layout: Layout, number: jax.Array) -> Sums:
    """Sums over codes that are masked by `number` (int32 scalar), evenly from few of a clip's codes to all of them."""
    clips = batch["tokens"].shape[0]
    ratio_B = jnp.cos(jnp.pi / 2 * (jnp.arange(clips) + 0.5) / clips)
    hidden = masked_by(jax.random.key(number), batch, layout, ratio_B)
    return scored(model, params, hidden, layout)[0]


def grid_of(layout: Layout) -> Grid:
    """(t, h, w) of the codes that are predicted."""
    return layout.loss_spans[0].segment.grid


# ----------------------------------------------------------------------------------- what is hidden


def corrupted(
    key: jax.Array, batch: Batch, layout: Layout, spec: SuperResolutionSpec, codes: int
) -> dict[str, jax.Array]:
    """A batch of `step.batch_shapes` as training reads it.

    Returns `codes` [B, S], `read` [B, S] with masked ones hidden, `low` [B, M] noised or hidden, int32; and the text.
    """
    ratio_key, mask_key, noise_key, drop_key = jax.random.split(key, 4)
    clips = batch["tokens"].shape[0]
    ratio_B = jnp.cos(jnp.pi / 2 * jax.random.uniform(ratio_key, (clips,)))
    made = masked_by(mask_key, batch, layout, ratio_B)
    low_BxM = noised(noise_key, made["low"], spec.noise, codes)
    dropped_Bx1 = _uniform(drop_key, (clips, 1)) < spec.dropout
    return made | {"low": jnp.where(dropped_Bx1, jnp.full_like(low_BxM, HIDDEN), low_BxM)}


def masked_by(key: jax.Array, batch: Batch, layout: Layout, ratio_B: jax.Array) -> dict[str, jax.Array]:
    """As `corrupted`, with a given fraction of each clip's codes masked, one at least, and the low resolution whole."""
    codes_BxS, low_BxM = codes_of(batch["tokens"], layout)
    count_Bx1 = jnp.clip(jnp.ceil(ratio_B * codes_BxS.shape[1]).astype(jnp.int32), 1)[:, None]
    noise_BxS = _uniform(key, codes_BxS.shape)
    is_last_BxS = jnp.arange(codes_BxS.shape[1]) == constrain(count_Bx1, "batch", None) - 1
    last_Bx1 = jnp.sum(jnp.where(is_last_BxS, jnp.sort(noise_BxS, axis=1), 0), axis=1, keepdims=True)
    read_BxS = jnp.where(noise_BxS <= last_Bx1, jnp.full_like(codes_BxS, HIDDEN), codes_BxS)
    text = {name: batch[name] for name in ("text_states", "text_length") if name in batch}
    return {"codes": codes_BxS, "read": read_BxS, "low": low_BxM} | text


def noised(key: jax.Array, low_BxM: jax.Array, most: float, codes: int) -> jax.Array:
    """Codes [B, M] of which a fraction, uniform below `most` for each clip, are replaced by any of `codes`."""
    share_key, where_key, code_key = jax.random.split(key, 3)
    hit_BxM = _uniform(where_key, low_BxM.shape) < most * _uniform(share_key, (len(low_BxM), 1))
    random_BxM = constrain(jax.random.randint(code_key, low_BxM.shape, 0, codes), "batch", None)
    return jnp.where(hit_BxM, random_BxM, low_BxM)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform numbers [B, ...] below 1, each clip's on its device."""
    return constrain(jax.random.uniform(key, shape), "batch", None)


def codes_of(tokens_BxN: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Codes of both resolutions, [B, S] and [B, M], in a layout's sequence of ids."""
    given = next(s for s in layout.spans if s.segment.may_hide)

    def codes(span: Span) -> jax.Array:
        return tokens_BxN[:, span.start : span.stop] - span.segment.ids.low

    return codes(layout.loss_spans[0]), codes(given)
