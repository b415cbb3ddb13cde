"""AdamW with warm-up and cosine decay, and the logical axes of its state.

The papers publish no optimizer values (spec §7); every one of them is a field of `OptimizerSpec`.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from poet.mesh import is_axes
from poet.specs import OptimizerSpec


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
    """Global-norm clip, then AdamW.

    Args:
      steps: length of the run, where the cosine ends.
      axes: logical axes of the parameters, from which `decay_mask` is made; without them every
        leaf of two or more dims decays, which is right only where no layers are stacked.
    """
    if axes is None:
        mask = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)  # noqa: E731
    else:
        mask = decay_mask(axes)
    return optax.chain(
        optax.clip_by_global_norm(spec.clip_norm),
        optax.adamw(
            learning_rate(spec, steps),
            b1=spec.b1,
            b2=spec.b2,
            weight_decay=spec.weight_decay,
            mask=mask,
        ),
    )


def state_axes(tx: optax.GradientTransformation, params: Any, axes: Any) -> Any:
    """Logical axes of `tx.init(params)`: moments mirror the parameters, counters are scalars.

    Args:
      params: arrays or ShapeDtypeStructs.
      axes: a tree like `params` with a tuple of logical axis names per leaf.

    Raises:
      ValueError: the state holds an array that mirrors no parameter; where to place it is unknown.
    """
    structure = jax.tree.structure(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]

    def mirrors(node: Any) -> bool:
        return jax.tree.structure(node) == structure and [
            leaf.shape for leaf in jax.tree.leaves(node)
        ] == shapes

    def axes_of(node: Any) -> Any:
        if mirrors(node):
            return axes
        if node.ndim:
            raise ValueError(f"optimizer state of shape {node.shape} mirrors no parameter")
        return ()

    return jax.tree.map(axes_of, jax.eval_shape(tx.init, params), is_leaf=mirrors)
