"""Validation of super-resolution in `poet train`, and its samples.

N clips, S and M positions of the high and the low resolution.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from poet.data.loader import eval_batches
from poet.distributed import processes
from poet.distributed.processes import batch_share
from poet.evaluation import hooks
from poet.evaluation.likelihood import place
from poet.models.superres import SuperResolution, build_model
from poet.sampling import masked as sampling
from poet.sampling import passes
from poet.streams.base import HIDDEN
from poet.streams.low_resolution import SCALE
from poet.tasks.layout import Layout
from poet.tasks.resolved import Resolved
from poet.tokenizers.video.base import VideoTokenizer
from poet.training import losses, masked
from poet.training.trainable import Hook, Report, State

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


def sample_hook(resolved: Resolved) -> Hook:
    """A picture: clips of EVAL.split at the low resolution, above what is sampled from them, above the truth; all as
    the tokenizer renders their codes.

    Sampling follows SUPER_RESOLUTION, with the clips' texts.  Nothing is read if TRAIN.sample_every is 0.

    Raises UserError: no frozen tokenizer, or a split without clips.
    """
    every = resolved.spec.train.sample_every
    if not every:
        return Hook(name="samples", every=0, fn=lambda state, step: Report())
    ((task, layout),) = resolved.layouts.items()
    tokenizer, model = VideoTokenizer.of(resolved.spec.video_tokenizer), build_model(resolved)
    batch = hooks.sample_batch(resolved, task)

    def run(state: State, step: int) -> Report:
        del step
        # On one device and without axes: the passes say nothing of where their arrays lie.
        params = jax.tree.map(processes.whole, state["params"])
        if not processes.first():
            return Report()
        with jax.set_mesh(Mesh(np.empty((), object), ())):
            sampled = np.asarray(_sampled(resolved, model, params, batch, layout))
            return Report(images={task: _strips(tokenizer, layout, batch, sampled)})

    return Hook(name="samples", every=every, fn=run)


def _sampled(
    resolved: Resolved, model: SuperResolution, params: masked.Params, batch: Mapping[str, np.ndarray], layout: Layout
) -> jax.Array:
    """int32 [N, S]: every code sampled."""
    spec, has_text = resolved.spec.super_resolution, layout.text_span is not None
    codes_NxS, low_NxM = map(np.asarray, masked.codes_of(batch["tokens"], layout))
    rows_N, hidden_NxS = np.arange(len(low_NxM), dtype=np.int32), np.full_like(codes_NxS, HIDDEN)
    plan = passes.passes(spec, resolved.format.video, has_text)
    numbers = passes.sampling_params(spec, has_text, resolved.spec.sample.seed)
    network = sampling.Network(model, jax.jit(model.compute_params)(params))
    return network(plan, hidden_NxS, low_NxM, losses.text_of(batch, layout), rows_N, numbers)


def _strips(
    tokenizer: VideoTokenizer, layout: Layout, batch: Mapping[str, np.ndarray], sampled_NxS: np.ndarray
) -> np.ndarray:
    """uint8 [rows, width, 3]: for each clip the low resolution enlarged, what was sampled, and the truth."""
    (t, h, w), shown = masked.grid_of(layout), hooks.CLIPS_SHOWN
    true_NxS, low_NxM = map(np.asarray, masked.codes_of(batch["tokens"], layout))
    low = tokenizer.decode(low_NxM[:shown].reshape(-1, t, h // SCALE, w // SCALE))
    made, true = (tokenizer.decode(codes[:shown].reshape(-1, t, h, w)) for codes in (sampled_NxS, true_NxS))
    return hooks.stacked(low.repeat(SCALE, axis=2).repeat(SCALE, axis=3), made, true)
