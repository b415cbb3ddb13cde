"""Optimizers of optax with warm-up and cosine decay, and the logical axes of their states.

The papers publish no optimizer values (spec §7); every one of them is a field of `OptimizerSpec`.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

import jax
import optax

from poet.mesh import is_axes
from poet.specs import OptimizerSpec, UserError


def learning_rate(spec: OptimizerSpec, steps: int) -> optax.Schedule:
    """Step -> rate: linear from 0 over `warmup_steps`, a cosine to `final_fraction` of the peak.

    A warm-up longer than the run is cut to the run.
    """
    warmup = min(spec.warmup_steps, steps)
    peak = spec.learning_rate
    if warmup == steps:
        return optax.linear_schedule(0.0, peak, steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else peak,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=steps,
        end_value=peak * spec.final_fraction,
    )


def decay_mask(axes: Any) -> Any:
    """True for the leaves that weight decay applies to, from their logical axes.

    Matrices and convolution kernels decay.  Norm scales and biases do not (a stacked `layers` dim
    does not make a vector a matrix), nor do tables with a `vocab` dim: the row of a rare id would
    shrink towards zero between its few gradients.
    """

    def decays(leaf: tuple[str | None, ...]) -> bool:
        return "vocab" not in leaf and sum(a != "layers" for a in leaf) >= 2

    return jax.tree.map(decays, axes, is_leaf=is_axes)


def build(spec: OptimizerSpec, steps: int, axes: Any = None) -> optax.GradientTransformation:
    """Global-norm clip, then the optimizer that `spec.name` says.

    Args:
      steps: length of the run, where the cosine ends.
      axes: logical axes of the parameters, from which `decay_mask` is made; without them every
        leaf of two or more dims decays, which is right only where no layers are stacked.

    Raises:
      UserError: Muon without axes, which tell what is a matrix.
    """
    if axes is None:
        mask = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)  # noqa: E731
    else:
        mask = decay_mask(axes)
    return optax.chain(
        optax.clip_by_global_norm(spec.clip_norm),
        OPTIMIZERS[spec.name](spec, learning_rate(spec, steps), mask, axes),
    )


def _adamw(
    spec: OptimizerSpec, rate: optax.Schedule, mask: Any, axes: Any
) -> optax.GradientTransformation:
    del axes
    return optax.adamw(
        rate,
        b1=spec.b1,
        b2=spec.b2,
        mu_dtype=spec.state_dtype,
        weight_decay=spec.weight_decay,
        mask=mask,
    )


def _adafactor(
    spec: OptimizerSpec, rate: optax.Schedule, mask: Any, axes: Any
) -> optax.GradientTransformation:
    """Second moments as one row and one column per matrix; the first moment only if b1 > 0.

    Decay is scaled by the rate, as AdamW's is; optax would take it per step.
    """
    del axes
    return optax.chain(
        optax.adafactor(
            None,
            multiply_by_parameter_scale=False,
            momentum=spec.b1 or None,
            dtype_momentum=spec.state_dtype,
        ),
        optax.add_decayed_weights(-spec.weight_decay, mask),
        # The steps of optax.adafactor point downhill already.
        optax.scale_by_learning_rate(rate, flip_sign=False),
    )


def _muon(
    spec: OptimizerSpec, rate: optax.Schedule, mask: Any, axes: Any
) -> optax.GradientTransformation:
    """Orthogonalised momentum for the matrices of the blocks, Nesterov's AdamW for all else.

    Updates are scaled to the size of AdamW's (root mean square 0.2; Moonlight, 2502.16982), so that
    one learning rate serves both.
    """
    if axes is None:
        raise UserError("OPTIMIZER.name = 'muon' is for the language model; use 'adamw' here")
    return _partitioned(optax.contrib.muon(
        rate,
        beta=0.95,
        weight_decay=spec.weight_decay,
        weight_decay_mask=mask,
        mu_dtype=spec.state_dtype,
        adam_b1=spec.b1,
        adam_b2=spec.b2,
        adam_weight_decay=0.0,
        muon_weight_dimension_numbers=matrices(axes),
        consistent_rms=0.2,
    ))


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
