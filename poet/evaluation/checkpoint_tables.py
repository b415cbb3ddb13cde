"""The tables of `poet eval`, and the inputs of their metrics.  To add one, edit only this file: a function and
a line in `TABLES`; a metric is a file of `poet.evaluation.metrics`.

Shape suffixes: N clips, T frames, U unknown frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from poet.evaluation import condition_gain, examples, metric, resources
from poet.evaluation.likelihood import scored, split_batches, training_unigram
from poet.evaluation.metric import GROUPS
from poet.evaluation.metrics import pixels, select
from poet.evaluation.record import Media, Table
from poet.evaluation.report.tables import Row
from poet.evaluation.resources import Resources
from poet.evaluation.unigram import TRAINING_CLIPS
from poet.media import write_gif, write_png_strip
from poet.models.transformer import Params
from poet.tasks.registry import Task

CLIPS_SHOWN = 4
STRIP_EVERY = 2
# Names of the predictions without motion, and by how many pixels some of them are blurred.
REPEAT = "repeat"
BLURS = (1, 2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The source of a table.

    Attributes:
      needs: "store", "source", "tokenizer", or a task that the checkpoint must have.
      shared: all processes measure it together; any other one is left to process 0.
    """

    needs: tuple[str, ...]
    measure: Callable[[Resources], Table]
    shared: bool = False


# ----------------------------------------------------------------------------------- likelihood


def measure_likelihood(r: Resources) -> Table:
    """Loss and accuracy of every task and stream, beside the unigram of the training split."""
    e, rows, every = r.experiment, [], []
    metrics = select("likelihood")[0]
    with jax.set_mesh(r.mesh):
        params = r.load_params()
        for task, layout in r.resolved.layouts.items():
            batches = split_batches(r.resolved, task, e.eval.batches)
            unigram = training_unigram(r.resolved, r.manifest, task, layout)
            steps = scored(r.model, params, batches, layout, r.mesh, e.train.loss_vocabulary, unigram)
            for stream, found in metric.walk(steps, metrics).items():
                tokens = round(found["loss_nats"].state.counts_N.sum())
                rows.append({"task": task, "stream": stream, **metric.columns(found), "tokens": tokens})
                every.append(found)
    note = (
        f"Means over tokens of split {e.eval.split}, ± the standard error over batches; conditioning frames, "
        "boundary tokens and padding do not count. The unigram is the cross-entropy of the same tokens "
        f"under the frequencies of ids in the first {TRAINING_CLIPS:,} clips of the training split, "
        "plus one."
    )
    return Table(rows=rows, metrics=metrics, notes=[note], found=every, examples=r.examples_of_store)


# -------------------------------------------------------------------------------- condition gain


def measure_condition_gain(r: Resources) -> Table:
    """The gain of each kind of condition: the loss with another clip's, less the loss with the right one."""
    e, gains = r.experiment, []
    with jax.set_mesh(r.mesh):
        params = r.load_params()
        for task in r.resolved.mixture:
            given = condition_gain.kinds(r.resolved, task)
            gains += _gains(r, task, given, params) if given else []
    rows, found = [row for row, _ in gains], [each for _, each in gains]
    note = (
        "The added loss of the true clip when one kind of condition is another clip's: 0 for a "
        f"condition that the model ignores. Means over clips of split {e.eval.split}, with the interval of "
        "95 % of bootstrap resamples of these clips. Copyable tokens have the code of the same "
        "place of the right condition (for opening frames: of the last one)."
    )
    metrics = select("condition_gain")[0]
    return Table(rows=rows, metrics=metrics, notes=[note], found=found, examples=r.examples_of_store)


def _gains(
    r: Resources, task: Task, given: Sequence[condition_gain.Kind], params: Params
) -> list[tuple[Row, metric.Found]]:
    spec, layout = r.experiment, r.resolved.layout(task)
    taken = list(split_batches(r.resolved, task.name, r.gain_batches))
    batch = {name: np.concatenate([part[name] for part in taken]) for name in taken[0]}
    lengths_P = [span.segment.length for span in layout.loss_spans]
    usable_N = (batch["known"] < lengths_P).any(axis=1)
    partners_N = condition_gain.partners(*r.clip_names(len(usable_N)), usable_N)
    found = condition_gain.gains(
        r.model,
        params,
        batch,
        layout,
        given,
        partners_N,
        r.mesh,
        size=spec.eval.batch,
        loss_vocabulary=spec.train.loss_vocabulary,
    )
    return [condition_gain.row(task.name, *gain) for gain in found]


# ------------------------------------------------------------------------------- reconstruction


def measure_reconstruction(r: Resources) -> Table:
    """How near the tokenizer comes to real clips when it encodes and decodes them."""
    metrics = select("reconstruction")[0]
    found = metric.measure({"truth": r.videos, "other": r.reconstructions, GROUPS: r.origins}, metrics)
    psnr_db_N = found["psnr_db"].state.ratios_N
    shown = {"original": r.videos, "reconstruction": r.reconstructions}
    media = _write(r, "reconstruction", shown, [f"PSNR {psnr_db:.2f} dB" for psnr_db in psnr_db_N])
    row = {"frames": "reconstruction", **metric.columns(found), "clips": len(r.clips)}
    note = f"All frames of {_counted(r)}. {pixels.NOTE}"
    return Table(rows=[row], metrics=metrics, notes=[note], media=media, found=[found], examples=r.examples_of_source)


def _counted(r: Resources) -> str:
    """'32 clips of split validation; mean ± standard error over their 5 films, maps or episodes'."""
    origins = len(set(r.origins))
    over = "clips" if origins == len(r.clips) else f"the {origins} films, maps or episodes that they come from"
    return f"{len(r.clips)} clips of split {r.experiment.eval.split}; mean ± standard error over {over}"


def _write(r: Resources, kind: str, videos: Mapping[str, np.ndarray], notes: Sequence[str]) -> list[Media]:
    """Label -> the first clips' videos [N, T, H, W, 3] as files: strips of a reconstruction, else gifs."""
    found = []
    for index, clip in enumerate(r.clips[:CLIPS_SHOWN]):
        files = {}
        for label, video in videos.items():
            stem = f"media/{kind}_{index}_{label.split()[0]}"
            files[label] = f"{stem}.png" if kind == "reconstruction" else f"{stem}.gif"
            if kind == "reconstruction":
                write_png_strip(r.out / files[label], video[index], STRIP_EVERY)
            else:
                write_gif(r.out / files[label], video[index], r.experiment.clip.rate_hz)
        found.append(Media(kind=kind, key=clip.key, caption=clip.caption, note=notes[index], files=files))
    return found


# ----------------------------------------------------------------------------- frame prediction


def measure_frame_prediction(r: Resources) -> Table:
    """Sampled frames against the true ones, beside repeating the last conditioning frame."""
    known, spec = r.conditioning_frames, r.experiment.eval
    videos = {"true": r.videos} | candidates(r.videos, r.predictions, r.reconstructions, known)
    result = compare(videos, known, r.origins)
    singles = ({name: video[i : i + 1] for name, video in videos.items()} for i in range(len(r.clips[:CLIPS_SHOWN])))
    scored_alone = (compare(single, known).rows for single in singles)
    remarks = [", ".join(f"{row['frames']} {row['psnr_db']:.2f} dB" for row in rows) for rows in scored_alone]
    shown = {"true": r.videos, "generated": videos["generated"], "repeat the last frame": videos[REPEAT]}
    return dataclasses.replace(
        result,
        examples=f"{r.examples_of_source} after {known}",
        notes=[
            f"{known} conditioning frames, {r.videos.shape[1] - known} sampled at temperature "
            f"{spec.temperature:g}; {_counted(r)}. The gain is the PSNR less that of the best way to "
            "repeat the last conditioning frame (as it is, encoded and decoded, or blurred), "
            "chosen by the mean over these clips; the win rate is the fraction of clips where it is positive.",
            "Reconstruction is the true clip, encoded and decoded: the best that sampled codes can reach. "
            "A mean of "
            "samples is the pixel mean of independent samples. " + pixels.NOTE,
        ],
        media=_write(r, "frame_prediction", shown, remarks),
    )


def candidates(
    truth_NxTxHxWx3: np.ndarray, sampled_NxKxTxHxWx3: np.ndarray, reconstruction_NxTxHxWx3: np.ndarray, known: int
) -> dict[str, np.ndarray]:
    """The candidates, each [N, T, H, W, 3]; the first `known` frames are conditioning frames and do not count."""
    samples = sampled_NxKxTxHxWx3.shape[1]
    means = {f"mean of {samples} samples": _mean(sampled_NxKxTxHxWx3)} if samples > 1 else {}
    return {
        "generated": sampled_NxKxTxHxWx3[:, 0],
        **means,
        REPEAT: _held(truth_NxTxHxWx3, known),
        f"{REPEAT} reconstructed": _held(reconstruction_NxTxHxWx3, known),
        **{f"{REPEAT} blurred {s} px": _held(truth_NxTxHxWx3, known, s) for s in BLURS},
        "reconstruction": reconstruction_NxTxHxWx3,
    }


def _mean(videos_NxKxTxHxWx3: np.ndarray) -> np.ndarray:
    return np.rint(videos_NxKxTxHxWx3.mean(axis=1)).astype(np.uint8)


def _held(videos_NxTxHxWx3: np.ndarray, known: int, sigma: float = 0.0) -> np.ndarray:
    """Frame known - 1, blurred by `sigma` pixels, replaces every later one."""
    frame_Nx1xHxWx3 = videos_NxTxHxWx3[:, known - 1 : known]
    if sigma:
        frame_Nx1xHxWx3 = pixels.blurred(frame_Nx1xHxWx3, sigma)
    later = videos_NxTxHxWx3.shape[1] - known
    return np.concatenate([videos_NxTxHxWx3[:, :known]] + [frame_Nx1xHxWx3] * later, axis=1)


def compare(videos: Mapping[str, np.ndarray], known: int, origins: Sequence[str] | None = None) -> Table:
    """Rows of every candidate against "true" on the frames from `known` on.

    Args:
      videos: "true" and any others, each uint8 [N, T, H, W, 3].  Of those whose names begin with
        REPEAT the one of the best mean PSNR is what gains are over.
      origins: the film, map or episode of each clip; None: all are independent.
    """
    unknown = {name: video[:, known:] for name, video in videos.items()}
    truth, groups = unknown.pop("true"), {} if origins is None else {GROUPS: origins}
    metrics, against = select("frame_prediction")[0], select("gains")[0]
    batches = {name: {"truth": truth, "other": video, **groups} for name, video in unknown.items()}
    found = metric.walk([batches], metrics)
    psnr_db = {name: each["psnr_db"].state.ratios_N for name, each in found.items()}
    best = max((name for name in psnr_db if name.startswith(REPEAT)), key=lambda name: psnr_db[name].mean())
    rows, every = [], []
    for name, each in found.items():
        wins = {} if name == best else {"wins": psnr_db[name] > psnr_db[best]}
        gained = metric.measure({"gains_db": psnr_db[name] - psnr_db[best], **wins, **groups}, against)
        every.append(each | gained)
        rows.append({"frames": name, **metric.columns(every[-1]), "clips": len(truth)})
    curves = {
        name: [None] * known + pixels.frame_psnr(truth, video).mean(axis=0).tolist() for name, video in unknown.items()
    }
    return Table(rows=rows, metrics=[*metrics, *against], curves=curves, found=every)


# ------------------------------------------------------------------------------ every task once


def measure_examples(r: Resources) -> Table:
    """One sample of every task, to look at and listen to."""
    found = list(examples.sample(r))
    note = "One sample each, not selected, with the checkpoint's sampling settings."
    return Table(rows=[row for row, _ in found], notes=[note], media=[media for _, media in found])


TABLES: dict[str, Source] = {
    "likelihood": Source(needs=(resources.STORE,), measure=measure_likelihood, shared=True),
    "condition_gain": Source(needs=(resources.STORE, resources.OTHERS), measure=measure_condition_gain, shared=True),
    "reconstruction": Source(needs=(resources.SOURCE, resources.TOKENIZER), measure=measure_reconstruction),
    "frame_prediction": Source(
        needs=(resources.SOURCE, resources.TOKENIZER, resources.PREDICTION), measure=measure_frame_prediction
    ),
    "examples": Source(needs=(resources.EXAMPLES, resources.SOURCE, resources.TOKENIZER), measure=measure_examples),
}
