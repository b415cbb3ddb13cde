"""Optimizers of optax with warm-up and cosine decay, and the logical axes of their states.

The papers publish no optimizer values (spec §7); every one of them is a field of `OptimizerSpec`.
The learning rate is an input of a step: a longer run is the same program.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from poet.distributed.mesh import is_axes
from poet.spec import OptimizerSpec, UserError
from poet.training.trainable import Mean, Metrics

_LOG = logging.getLogger(__name__)


def learning_rate(spec: OptimizerSpec, steps: int) -> Callable[[int], float]:
    """Step number -> rate, on the host: linear up to the peak, a cosine towards `final_fraction` of it.

    The warm-up reaches the peak at its last step, and the cosine would reach its end at step `steps`,
    the first that is not done: no step has rate 0.  A warm-up longer than the run is cut to the run.
    """
    warmup, peak = min(spec.warmup_steps, steps), spec.learning_rate
    end = peak * spec.final_fraction

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * done))

    return rate


def decay_mask(axes: Any) -> Any:
    """True for the leaves that weight decay applies to, from their logical axes.

    Matrices and convolution kernels decay.  Norm scales and biases do not (a stacked `layers` dim
    does not make a vector a matrix), nor do tables with a `vocab` dim: the row of a rare id would
    shrink towards zero between its few gradients.
    """

    def decays(leaf: tuple[str | None, ...]) -> bool:
        return "vocab" not in leaf and sum(a != "layers" for a in leaf) >= 2

    return jax.tree.map(decays, axes, is_leaf=is_axes)


def build(spec: OptimizerSpec, axes: Any = None) -> optax.GradientTransformation:
    """Global-norm clip, then the optimizer that `spec.name` says: updates at a learning rate of 1.

    Moments follow float32 parameters, whatever the parameters are in.

    Args:
      axes: logical axes of the parameters, from which `decay_mask` is made; without them every
        leaf of two or more dims decays, which is right only where no layers are stacked.

    Raises:
      UserError: Muon without axes, which determine what is a matrix.
    """
    if axes is None:
        mask = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)  # noqa: E731
    else:
        mask = decay_mask(axes)
    clip = optax.clip_by_global_norm(spec.clip_norm)
    tx = optax.chain(clip, OPTIMIZERS[spec.name](spec, mask, axes))
    tx = tx if axes is None else _lazy_rows(tx, axes)
    return optax.GradientTransformation(lambda params: tx.init(_float32(params)), tx.update)


def apply(
    tx: optax.GradientTransformation,
    spec: OptimizerSpec,
    grads: Any,
    state: Mapping[str, Any],
    rate: jax.Array | float,
    *,
    key: jax.Array | None = None,
    trains: jax.Array | bool = True,
) -> tuple[dict[str, Any], Metrics]:
    """({params, opt_state} after these gradients, metrics).

    Sums are taken in float32.  Parameters in bfloat16 are rounded up or down at random, in proportion
    to what is nearer: rounded to the nearest, most updates would be lost (spacing 2^-8 of the value).

    Metrics: `grad_norm` before clipping, `clipped` (1 where it was more than `spec.clip_norm`),
    `learning_rate`; with `spec.log_norms` also `norms/<table>/gradient` and `norms/<table>/update`, the latter over
    the norm of the table.

    Args:
      tx: of `build(spec)`.
      state: `params` and `opt_state`.
      key: for the rounding; needed where a parameter is in bfloat16.
      trains: whether the step has anything to learn from; if not, nothing moves, and its norm counts
        for nothing.
    """
    params, grads = state["params"], _float32(grads)
    wide = _float32(params)
    updates, opt_state = tx.update(grads, state["opt_state"], wide)
    moved = jax.tree.map(lambda p, u: p + rate * u, wide, updates)
    new = {"params": _rounded(moved, params, key), "opt_state": opt_state}
    norm = optax.tree.norm(grads)
    metrics = {"grad_norm": norm, "clipped": (norm > spec.clip_norm).astype(jnp.float32)}
    if spec.log_norms:
        metrics |= _norms(grads, updates, wide, rate)
    if trains is not True:
        old = {name: state[name] for name in new}
        new = jax.tree.map(lambda a, b: jnp.where(trains, a, b), new, old)
        weight = jnp.asarray(trains, jnp.float32)
        metrics = {name: Mean(value * weight, weight) for name, value in metrics.items()}
    return new, metrics | {"learning_rate": jnp.asarray(rate, jnp.float32)}


def _norms(grads: Any, updates: Any, params: Any, rate: jax.Array | float) -> Metrics:
    """Norms of each table's gradient, and of its update over its own."""
    found: Metrics = {}
    for (path, g), u, p in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    ):
        name = f"norms/{jax.tree_util.keystr(path, simple=True, separator='.')}"
        tiny = jnp.finfo(jnp.float32).tiny
        found[f"{name}/gradient"] = optax.tree.norm(g)
        found[f"{name}/update"] = rate * optax.tree.norm(u) / jnp.maximum(optax.tree.norm(p), tiny)
    return found


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _rounded(wide: Any, like: Any, key: jax.Array | None) -> Any:
    """float32 leaves in the dtypes of `like`; those in bfloat16 rounded at random."""
    leaves, tree = jax.tree.flatten(wide)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(like)]
    return jax.tree.unflatten(
        tree,
        [
            x if kind == jnp.float32 else _rounded_at_random(x, jax.random.fold_in(key, i))
            for i, (x, kind) in enumerate(zip(leaves, kinds, strict=True))
        ],
    )


def _rounded_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """bfloat16: one of the two neighbours of each float32, whose expectation is that number."""
    mesh, place = jax.sharding.get_abstract_mesh(), None
    if not mesh.empty:
        place = jax.typeof(x).sharding
    noise = jax.random.bits(key, x.shape, jnp.uint16, out_sharding=place).astype(jnp.uint32)
    cut = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(cut, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _lazy_rows(tx: optax.GradientTransformation, axes: Any) -> optax.GradientTransformation:
    """`tx` by which rows of tables that a step does not feed keep their place and their moments.

    Else a row that is fed once in many steps goes on by its momentum while its second moment fades:
    fed every hundred steps it would move six times as far for each gradient as a row fed always.
    """
    flat = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)
    tables = {path: leaf for path, leaf in flat if "vocab" in leaf}

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        fed, shapes = {}, {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
            if path in tables:
                rows = tables[path].index("vocab")
                others = tuple(i for i in range(leaf.ndim) if i != rows)
                fed[path], shapes[path] = jnp.any(leaf != 0, axis=others), leaf.shape

        def kept(path: Any, new: jax.Array, old: jax.Array | float) -> jax.Array:
            own = next((path[cut:] for cut in range(len(path)) if path[cut:] in fed), None)
            names = None if own is None else _following(tables[own], shapes[own], new.shape)
            if names is None:
                return new
            if "vocab" not in names:  # Of all rows together.
                return jnp.where(jnp.any(fed[own]), new, old)
            rows = [1 if name != "vocab" else -1 for name in names]
            return jnp.where(fed[own].reshape(rows), new, old)

        updates, after = tx.update(grads, state, params)
        still = jax.tree_util.tree_map_with_path(lambda path, u: kept(path, u, 0.0), updates)
        return still, jax.tree_util.tree_map_with_path(kept, after, state)

    return optax.GradientTransformation(tx.init, update) if tables else tx


def _adamw(spec: OptimizerSpec, mask: Any, axes: Any) -> optax.GradientTransformation:
    del axes
    return optax.adamw(
        1.0, b1=spec.b1, b2=spec.b2, mu_dtype=spec.state_dtype, weight_decay=spec.weight_decay, mask=mask
    )


def _adafactor(spec: OptimizerSpec, mask: Any, axes: Any) -> optax.GradientTransformation:
    """Second moments as one row and one column per matrix; the first moment only if b1 > 0.

    Decay is scaled by the rate, as AdamW's is; optax would take it per step.
    """
    del axes
    return optax.chain(
        optax.adafactor(
            None, multiply_by_parameter_scale=False, momentum=spec.b1 or None, dtype_momentum=spec.state_dtype
        ),
        # The steps of optax.adafactor point downhill already.
        optax.add_decayed_weights(-spec.weight_decay, mask),
    )


def _muon(spec: OptimizerSpec, mask: Any, axes: Any) -> optax.GradientTransformation:
    """Orthogonalised momentum for the matrices of the blocks, Nesterov's AdamW for all else.

    Updates are scaled to the size of AdamW's (root mean square 0.2; Moonlight, 2502.16982), so that
    one learning rate serves both.
    """
    if axes is None:
        raise UserError("OPTIMIZER.name = 'muon' is for the language model; use 'adamw' here")
    return _partitioned(
        optax.contrib.muon(
            1.0,
            beta=0.95,
            weight_decay=spec.weight_decay,
            weight_decay_mask=mask,
            mu_dtype=spec.state_dtype,
            adam_b1=spec.b1,
            adam_b2=spec.b2,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=matrices(axes),
            consistent_rms=0.2,
        )
    )


def _partitioned(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` with its products placed by the compiler; what it returns lies where its inputs lie."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if jax.sharding.get_abstract_mesh().empty:
            return tx.update(updates, state, params)
        places = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))
        return jax.sharding.auto_axes(tx.update, out_sharding=places)(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "muon": _muon,
}


def matrices(axes: Any) -> Any:
    """`MuonDimensionNumbers` of the blocks' matrices, from their logical axes; None for other leaves.

    A matrix leads from or to the model's width, `embed`; its other dims are the other side, and
    `layers` counts matrices.
    """

    def of(leaf: tuple[str | None, ...]) -> Any:
        dims = [i for i, axis in enumerate(leaf) if axis != "layers"]
        if "layers" not in leaf or "embed" not in leaf or len(dims) < 2:
            return None
        embed, rest = leaf.index("embed"), [i for i in dims if leaf[i] != "embed"]
        sides = ((embed,), tuple(rest)) if embed < rest[0] else (tuple(rest), (embed,))
        return optax.contrib.MuonDimensionNumbers(reduction_axis=sides[0], output_axis=sides[1])

    return jax.tree.map(of, axes, is_leaf=is_axes)


# Numbers of an optimizer's state that may be whole on every device.
FEW = 64


def state_axes(tx: optax.GradientTransformation, params: Any, axes: Any) -> Any:
    """Logical axes of `tx.init(params)`: what is kept of a parameter lies where the parameter lies.

    An array of the state belongs to the parameter whose path its own path ends with.  It has its
    shape, or one dim less (a factored moment), or is a placeholder of one number.  What belongs to no
    parameter, counters and a few constants, is whole on every device.

    Args:
      params: arrays or ShapeDtypeStructs.
      axes: a tree like `params` with a tuple of logical axis names per leaf.

    Raises:
      ValueError: the state holds an array that follows no parameter; where to place it is unknown.
    """
    shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    names = dict(zip(shapes, jax.tree.leaves(axes, is_leaf=is_axes), strict=True))

    def axes_of(path: Any, leaf: Any) -> Any:
        own = next((path[cut:] for cut in range(len(path)) if path[cut:] in shapes), None)
        if leaf.size <= (FEW if own is None else 1) and shapes.get(own) != leaf.shape:
            return (None,) * leaf.ndim
        found = None if own is None else _following(names[own], shapes[own], leaf.shape)
        if found is None:
            raise ValueError(f"optimizer state of shape {leaf.shape} follows no parameter")
        return found

    return jax.tree_util.tree_map_with_path(axes_of, jax.eval_shape(tx.init, params))


def _following(
    axes: tuple[str | None, ...], shape: tuple[int, ...], state: tuple[int, ...]
) -> tuple[str | None, ...] | None:
    """Axes of an array that a parameter of these axes and this shape has in the state."""
    if state == shape:
        return axes
    for left in range(len(shape)):
        if shape[:left] + shape[left + 1 :] == state:
            return axes[:left] + axes[left + 1 :]
    return None


def warn_of_jump(before: tuple[OptimizerSpec, int], now: tuple[OptimizerSpec, int], step: int) -> None:
    """Says so if the learning rate goes on elsewhere than where it was at a step: the schedule is another.

    Args:
      before, now: the arguments of `learning_rate`.
    """
    then, rate = learning_rate(*before)(step), learning_rate(*now)(step)
    if not math.isclose(then, rate, rel_tol=1e-3):
        _LOG.warning(
            "the learning rate jumps from %.3g to %.3g at step %d: the run was planned with "
            "TRAIN.steps = %d and OPTIMIZER.learning_rate = %g, and now has %d and %g. To train on "
            "without a jump, start a new run with TRAIN.init_from and a learning rate of %.2g",
            then,
            rate,
            step,
            before[1],
            before[0].learning_rate,
            now[1],
            now[0].learning_rate,
            then,
        )
