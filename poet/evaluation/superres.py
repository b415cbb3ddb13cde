"""Validation of super-resolution in `poet train`."""

from __future__ import annotations

import functools

import jax
import numpy as np

from poet.data.loader import eval_batches
from poet.distributed.processes import batch_share
from poet.evaluation import hooks
from poet.evaluation.likelihood import place
from poet.models.superres import build_model
from poet.tasks.resolved import Resolved
from poet.training import masked
from poet.training.trainable import Hook

_STEP = jax.jit(masked.evaluate_step, static_argnums=(0, 3))


def validation_hook(resolved: Resolved) -> Hook:
    """Loss and accuracy of masked codes on TRAIN.eval_batches batches of EVAL.split, always the same ones masked.

    Scalars `super_resolution/loss/video` and `super_resolution/accuracy/video`.

    Raises UserError: the store or its split cannot feed it.  Nothing is read if TRAIN.eval_every is 0.
    """
    return hooks.validation(resolved, functools.partial(validate, resolved))


def validate(resolved: Resolved, params: masked.Params) -> dict[str, float]:
    """The hook's scalars for a tree of parameters, under `jax.set_mesh`."""
    ((name, layout),) = resolved.layouts.items()
    model, spec, mesh = build_model(resolved), resolved.spec, jax.sharding.get_mesh()
    share = batch_share(mesh)
    rows = share.rows(spec.eval.batch, "EVAL.batch")
    batches = eval_batches(resolved, name, spec.eval.split, spec.eval.batch, spec.train.eval_batches)
    sums = []
    for number, batch in enumerate(batches):
        placed = place({key: x[rows] for key, x in batch.items()}, mesh, share)
        found = jax.device_get(_STEP(model, params, placed, layout, np.int32(number)))
        sums.append((found.loss, found.correct, found.count))
    loss, correct, count = np.sum(sums, axis=0)
    return {
        f"{name}/loss/{masked.STREAM}": float(loss / count),
        f"{name}/accuracy/{masked.STREAM}": float(correct / count),
    }
