"""Hooks of `poet train`: validation metrics and sample strips.

Hooks run inside the loop, under its mesh, on the state as it stands; they read the split EVAL.split and
change nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from poet.data.loader import eval_batches
from poet.distributed import processes
from poet.distributed.mesh import batch_ways
from poet.evaluation import metric
from poet.evaluation.likelihood import check_feeds, place, scored, split_batches
from poet.evaluation.metrics import tokens
from poet.media import frame_strip
from poet.models.transformer import Params, build_model
from poet.sampling.decode import Decoder, Plan
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec import UserError
from poet.store.reader import check_split, load_manifest
from poet.tasks.layout import Layout
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved
from poet.tokenizers.video.base import VideoTokenizer
from poet.training.trainable import Hook, Report, State

CLIPS_SHOWN = 4
STRIP_EVERY = 2


def validation_hook(resolved: Resolved) -> Hook:
    """Loss and accuracy per task and stream on TRAIN.eval_batches batches of EVAL.split.

    Scalars `<task>/loss/<stream>` and `<task>/accuracy/<stream>`, where any token was scored; `loss` is the mean
    of the former.

    Raises:
      UserError: the store or its split cannot feed it, or EVAL.conditioning_frames does not fit a task.
        Nothing is read if TRAIN.eval_every is 0.
    """
    model, spec = build_model(resolved), resolved.spec.train

    def validate(params: Params) -> dict[str, float]:
        scalars = {}
        for task, layout in resolved.layouts.items():
            batches = split_batches(resolved, task, spec.eval_batches)
            steps = scored(model, params, batches, layout, _mesh(), spec.loss_vocabulary)
            for stream, found in metric.walk(steps, [tokens.LOSS, tokens.ACCURACY]).items():
                loss, accuracy = (each.summary for each in found.values())
                if loss.n:
                    scalars[f"{task}/loss/{stream}"] = loss.value
                    scalars[f"{task}/accuracy/{stream}"] = accuracy.value
        return scalars

    return validation(resolved, validate)


def validation(resolved: Resolved, validate: Callable[[Params], dict[str, float]]) -> Hook:
    """A hook of what `validate` says of the parameters every TRAIN.eval_every steps; errors of `validation_hook`."""
    every = resolved.spec.train.eval_every
    if every:
        check_feeds(resolved, load_manifest(resolved.spec.data.store), _mesh())
    return Hook(
        name="validation", every=every, fn=lambda state, step: Report(scalars=_with_mean(validate(state["params"])))
    )


def _with_mean(scalars: dict[str, float]) -> dict[str, float]:
    losses = [value for name, value in scalars.items() if "/loss/" in name]
    return scalars | ({"loss": float(np.mean(losses))} if losses else {})


def sample_hook(resolved: Resolved) -> Hook:
    """A picture per visual task: clips of EVAL.split as the tokenizer renders them, over clips sampled
    from the same captions and conditioning frames.

    Sampling follows SAMPLE, without guidance.  Nothing is read if TRAIN.sample_every is 0.

    Raises:
      UserError: no frozen tokenizer, or no clip of the split leaves a task anything to sample.
    """
    spec = resolved.spec
    layouts = resolved.layouts if spec.train.sample_every else {}
    tasks = {task: layout for task, layout in layouts.items() if get_task(task).predicted[0].shows}
    tokenizer = VideoTokenizer.of(spec.video_tokenizer) if tasks else None
    batches = {task: sample_batch(resolved, task) for task in tasks}
    decoders = {task: _decoder(resolved, layout, batches[task]) for task, layout in tasks.items()}

    def run(state: State, step: int) -> Report:
        del step
        images, sampling_params = {}, SamplingParams.of(spec.sample)
        for task, layout in tasks.items():
            sampled = _sample(decoders[task], state["params"], batches[task], sampling_params)
            if processes.first():
                images[task] = _strips(tokenizer, layout, batches[task]["tokens"], sampled)
        return Report(images=images)

    return Hook(name="samples", every=spec.train.sample_every, fn=run)


def sample_batch(resolved: Resolved, task: str) -> Mapping[str, np.ndarray]:
    """The first clips of the split that are not all condition; on every process.

    As many as the strip has and the mesh divides; they are repeated where the split has fewer.
    """
    ways, split, declared = batch_ways(_mesh()), resolved.spec.eval.split, get_task(task)
    size = -(-CLIPS_SHOWN // ways) * ways
    wanted = resolved.conditioning_codes(declared, resolved.eval_latents(declared))
    store = resolved.spec.data.store
    manifest = load_manifest(store)
    check_split(manifest, split)
    rows = eval_batches(resolved, task, split, 1, manifest.splits[split].clips)
    usable = (row for row in rows if tuple(row["known"][0]) == wanted)  # a silent clip is given whole
    found = list(itertools.islice(usable, size))
    if not found:
        raise UserError(
            f"no clip of split {split!r} of {store} has the sound that {task} takes: set "
            "EVAL.split to one that has, leave the task out, or set TRAIN.sample_every = 0"
        )
    chosen = [found[i % len(found)] for i in range(size)]
    return {name: np.concatenate([row[name] for row in chosen]) for name in chosen[0]}


def _decoder(resolved: Resolved, layout: Layout, batch: Mapping[str, np.ndarray]) -> Decoder:
    known, truncation = tuple(batch["known"][0].tolist()), Truncation.of(resolved.spec.sample)
    return Decoder(build_model(resolved), Plan(layout=layout, known=known, truncation=truncation))


def _sample(
    decoder: Decoder, params: Any, batch: Mapping[str, np.ndarray], sampling_params: SamplingParams
) -> np.ndarray:
    """Whole sequences int32 [B, S] that open with the conditioning tokens of the batch."""
    plan, everything = decoder.plan, processes.Share()
    given_BxN, forced_BxK = np.split(batch["tokens"][:, plan.given], [plan.prefilled], axis=1)
    known = {"tokens": given_BxN} | {k: batch[k] for k in ("text_states", "text_length") if k in batch}
    placed = place(known, _mesh(), everything)
    forced = place({"forced": forced_BxK} if plan.forced else {}, _mesh(), everything)
    rows_B = np.arange(len(given_BxN), dtype=np.int32)
    cache, x_RxD = decoder.prefill(params, *placed.values())
    sampled, _ = decoder.decode(params, cache, x_RxD, rows_B, sampling_params, *forced.values())
    return np.concatenate([given_BxN, processes.whole(sampled)], axis=1)


def _strips(tokenizer: VideoTokenizer, layout: Layout, true_BxS: np.ndarray, sampled_BxS: np.ndarray) -> np.ndarray:
    """uint8 [rows, width, 3]: for each clip the true codes' frames above the sampled codes'."""
    stream = layout.output_streams[0]
    grid = layout.loss_spans[0].segment.grid
    codes = [layout.parse(t[:CLIPS_SHOWN])[stream] for t in (true_BxS, sampled_BxS)]
    with processes.alone():
        return stacked(*(tokenizer.decode(c.reshape(-1, *grid)) for c in codes))


def _mesh() -> Mesh:
    """The mesh that the loop runs under."""
    return jax.sharding.get_mesh()


def stacked(*videos_NxTxHxWx3: np.ndarray) -> np.ndarray:
    """One image uint8 [rows, width, 3]: for each of N clips its strips in all videos, one over the other."""
    clips = zip(*videos_NxTxHxWx3, strict=True)
    return np.concatenate([frame_strip(one, STRIP_EVERY) for clip in clips for one in clip])
