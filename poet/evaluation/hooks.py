"""What `poet train` and `poet tokenizer-train` show on the way: validation numbers and sample strips.

Hooks run inside the loop, under its mesh, on the state as it stands; they read the split EVAL.split and
change nothing.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from poet.data.loader import eval_batches
from poet.evaluation import metric
from poet.evaluation.likelihood import check_split_feeds, place, scored, split_batches
from poet.evaluation.metrics import pixels, tokens
from poet.media import frame_strip
from poet.distributed import processes
from poet.distributed.mesh import batch_ways
from poet.sampling.decode import Decoder, Plan
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec import Experiment, UserError
from poet.store.reader import check_split, load_manifest
from poet.store.raw import usable
from poet.store.sources import open_source
from poet.tasks.layout import Layout
from poet.tasks.registry import get_task
from poet.tokenizers.video.base import VideoTokenizer, load_video_tokenizer
from poet.training.loop import Hook
from poet.training.reporting import Report
from poet.models.transformer import build_model
from poet.tasks.resolved import Resolved
from poet.training.trainable import State

CLIPS_SHOWN = 4
STRIP_EVERY = 2


# ---------------------------------------------------------------------------- the language model


def validation_hook(experiment: Experiment) -> Hook:
    """Loss and accuracy per task and stream on TRAIN.eval_batches batches of EVAL.split.

    Scalars `<task>/loss/<stream>` and `<task>/accuracy/<stream>`, where any token was scored.

    Raises:
      UserError: the store or its split cannot feed it, or EVAL.conditioning_frames does not fit a task.
        Nothing is read if TRAIN.eval_every is 0.
    """
    if experiment.train.eval_every:
        for task in Resolved(experiment).mixture:
            Resolved(experiment).eval_latents(task)
        check_split_feeds(experiment, load_manifest(experiment.data.store), _mesh())

    def run(state: State, step: int) -> Report:
        del step
        return Report(scalars=_validate(experiment, state["params"]))

    return Hook(name="validation", every=experiment.train.eval_every, fn=run)


def _validate(experiment: Experiment, params: Any) -> dict[str, float]:
    model, scalars = build_model(Resolved(experiment)), {}
    for task, layout in Resolved(experiment).layouts.items():
        batches = split_batches(experiment, task, experiment.train.eval_batches)
        steps = scored(model, params, batches, layout, _mesh(), experiment.train.loss_vocabulary)
        for stream, found in metric.walk(steps, [tokens.LOSS, tokens.ACCURACY]).items():
            loss, accuracy = (each.summary for each in found.values())
            if loss.n:
                scalars[f"{task}/loss/{stream}"] = loss.value
                scalars[f"{task}/accuracy/{stream}"] = accuracy.value
    return scalars


def sample_hook(experiment: Experiment) -> Hook:
    """A picture per visual task: clips of EVAL.split as the tokenizer renders them, over clips drawn
    from the same captions and given frames.

    Sampling follows SAMPLE, without guidance.  Nothing is read if TRAIN.sample_every is 0.

    Raises:
      UserError: no frozen tokenizer, or no clip of the split leaves a task anything to draw.
    """
    tasks = _visual_tasks(experiment) if experiment.train.sample_every else {}
    tokenizer = load_video_tokenizer(experiment.video_tokenizer) if tasks else None
    batches = {task: _sample_batch(experiment, task) for task in tasks}
    programs = {task: _decoder(experiment, tasks[task], batches[task]) for task in tasks}

    def run(state: State, step: int) -> Report:
        del step
        images = {}
        for task, layout in tasks.items():
            batch = batches[task]
            drawn = _draw(experiment, programs[task], state["params"], batch)
            if processes.first():
                images[task] = _strips(tokenizer, layout, batch["tokens"], drawn)
        return Report(images=images)

    return Hook(name="samples", every=experiment.train.sample_every, fn=run)


def _visual_tasks(experiment: Experiment) -> dict[str, Layout]:
    return {
        task: layout
        for task, layout in Resolved(experiment).layouts.items()
        if get_task(task).predicted[0].shows
    }


def _sample_batch(experiment: Experiment, task: str) -> Mapping[str, np.ndarray]:
    """The first clips of the split that leave the task something to draw; on every process.

    As many as are shown and the mesh divides; they are repeated where the split has fewer.
    """
    ways, split, declared = batch_ways(_mesh()), experiment.eval.split, get_task(task)
    size = -(-CLIPS_SHOWN // ways) * ways
    wanted = Resolved(experiment).conditioning_codes(declared, Resolved(experiment).eval_latents(declared))
    manifest = load_manifest(experiment.data.store)
    check_split(manifest, split)
    rows = eval_batches(Resolved(experiment), task, split, 1, manifest.splits[split].clips)
    usable = (row for row in rows if tuple(row["known"][0]) == wanted)  # a silent clip is given whole
    found = list(itertools.islice(usable, size))
    if not found:
        raise UserError(
            f"no clip of split {split!r} of {experiment.data.store} has the sound that {task} takes: set "
            "EVAL.split to one that has, leave the task out, or set TRAIN.sample_every = 0"
        )
    chosen = [found[i % len(found)] for i in range(size)]
    return {name: np.concatenate([row[name] for row in chosen]) for name in chosen[0]}


def _decoder(experiment: Experiment, layout: Layout, batch: Mapping[str, np.ndarray]) -> Decoder:
    plan = Plan(
        layout=layout,
        known=tuple(batch["known"][0].tolist()),
        truncation=Truncation.of(experiment.sample),
    )
    return Decoder(build_model(Resolved(experiment)), plan)


def _draw(
    experiment: Experiment, decoder: Decoder, params: Any, batch: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Whole sequences int32 [B, S] that open with what the batch gives."""
    plan = decoder.plan
    given_BxG = batch["tokens"][:, plan.given]
    given_BxN, forced_BxK = np.split(given_BxG, [plan.prefilled], axis=1)
    everything = processes.Share()
    known = {"tokens": given_BxN}
    known |= {k: batch[k] for k in ("text_states", "text_length") if k in batch}
    placed = place(known, _mesh(), everything)
    forced = place({"forced": forced_BxK} if plan.forced else {}, _mesh(), everything)
    rows_B = np.arange(len(given_BxN), dtype=np.int32)
    cache, x_RxD = decoder.prefill(params, *placed.values())
    sampling_params = SamplingParams.of(experiment.sample)
    drawn, _ = decoder.decode(params, cache, x_RxD, rows_B, sampling_params, *forced.values())
    return np.concatenate([given_BxN, processes.whole(drawn)], axis=1)


def _strips(
    tokenizer: VideoTokenizer, layout: Layout, true_BxS: np.ndarray, sampled_BxS: np.ndarray
) -> np.ndarray:
    """uint8 [rows, width, 3]: for each clip the true codes' frames above the drawn codes'."""
    stream = layout.output_streams[0]
    grid = layout.loss_spans[0].segment.grid
    codes = [layout.parse(t[:CLIPS_SHOWN])[stream] for t in (true_BxS, sampled_BxS)]
    with processes.alone():
        true, drawn = (tokenizer.decode(c.reshape(-1, *grid)) for c in codes)
    return _stacked(true, drawn)


# ------------------------------------------------------------------------------------- tokenizers


def reconstructions(experiment: Experiment) -> Hook:
    """Clips of TOKENIZER_TRAIN.source above what the averaged weights make of them, and their PSNR.

    The clips are of EVAL.split where the source has it, else of the training split.  Nothing is read
    if TRAIN.sample_every is 0.  Weights that training starts from are looked at before the first step.
    """
    clips = _pixel_clips(experiment) if experiment.train.sample_every else None

    def run(state: State, step: int) -> Report:
        del step
        weights = jax.tree.map(processes.whole, state["ema"])
        if not processes.first():
            return Report()
        tokenizer = VideoTokenizer.from_params(experiment.video_tokenizer, weights)
        with processes.alone():
            rebuilt = tokenizer.decode(tokenizer.encode(clips))
        found = metric.measure({"truth": clips, "other": rebuilt}, [pixels.PSNR])
        return Report(scalars={"psnr_db": found["psnr_db"].summary.value}, images={"clips": _stacked(clips, rebuilt)})

    trained = bool(experiment.tokenizer_train.init_from)
    return Hook(name="reconstruction", every=experiment.train.sample_every, fn=run, at_start=trained)


def _pixel_clips(experiment: Experiment) -> np.ndarray:
    """uint8 [N, T, H, W, 3], N up to CLIPS_SHOWN, of the first folder that is trained on."""
    spec = experiment.tokenizer_train
    folder = next(iter(spec.folders))
    try:
        source = open_source(folder, experiment.eval.split, experiment.clip)
    except UserError:
        source = open_source(folder, spec.split, experiment.clip)
    items = source.read(0, min(2 * CLIPS_SHOWN, len(source)))
    clips = [item.video for item in usable(items)][:CLIPS_SHOWN]
    if not clips:
        raise UserError(f"no clip of {folder} can be read")
    return np.stack(clips)


# ---------------------------------------------------------------------------------------- helpers


def _mesh() -> Mesh:
    """The mesh that the loop runs under."""
    return jax.sharding.get_mesh()


def _stacked(above_NxTxHxWx3: np.ndarray, below_NxTxHxWx3: np.ndarray) -> np.ndarray:
    """One image: strips of each pair, one over the other."""
    strip = functools.partial(frame_strip, every=STRIP_EVERY)
    pairs = zip(above_NxTxHxWx3, below_NxTxHxWx3, strict=True)
    return np.concatenate([strip(clip) for pair in pairs for clip in pair])
