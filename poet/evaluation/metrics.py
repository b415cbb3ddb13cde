"""The metrics of `poet eval`.  Adding one touches this file alone: a function and a line in `METRICS`.

Shape suffixes: N clips, T frames, U unknown frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Mapping, Sequence

import jax
import numpy as np

from poet.data.loader import eval_batches
from poet.evaluation import condition_gain, examples, gain_view, resources
from poet.evaluation.image_metrics import PSNR_CEILING_DB, blurred, mean_and_error, psnr, ssim
from poet.evaluation.likelihood import StreamLikelihood, likelihood, task_batches, unigram_nats
from poet.evaluation.resources import Resources
from poet.evaluation.tables import Row
from poet.evaluation.unigram import TRAINING_CLIPS
from poet.media import write_gif, write_png_strip
from poet.models.transformer import Params
from poet.tasks.registry import Task, layouts, mixture, run_layout
from poet.tasks.resolved import Resolved

CLIPS_SHOWN = 4
STRIP_EVERY = 2
# Names of the predictions that know no motion, and by how many pixels some of them are blurred.
REPEAT = "repeat"
BLURS = (1, 2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
    """Pictures of one clip: label -> file below the output folder."""

    kind: str
    key: str
    caption: str
    note: str
    files: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a metric found.

    Attributes:
      rows: measurements; see `poet.evaluation.tables` for their keys.
      notes: how to read them, a sentence each.
      curves: name -> value per frame of the clip, None where there is none.
      media: pictures.
    """

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    curves: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    media: Sequence[Media] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A way to look at a checkpoint.

    Attributes:
      needs: "store", "source", "tokenizer", or a task that the checkpoint must know.
      shared: all processes measure it together; any other one is left to process 0.
      shown: its rows -> those that are printed, where not all of a row is.
    """

    needs: tuple[str, ...]
    measure: Callable[[Resources], Result]
    shared: bool = False
    shown: Callable[[Sequence[Row]], Sequence[Row]] = list


# ----------------------------------------------------------------------------------- likelihood


def measure_likelihood(r: Resources) -> Result:
    """Loss and accuracy of every task and stream, beside the unigram of the training split."""
    e, rows = r.experiment, []
    with jax.set_mesh(r.mesh):
        params = r.load_params()
        for task, layout in layouts(e).items():
            batches = task_batches(e, task, r.mesh, e.eval.batches)
            found = likelihood(
                r.model, params, batches, layout, r.mesh, e.train.loss_vocabulary
            )
            baseline = unigram_nats(e, r.manifest, task, layout)
            rows += [_likelihood_row(task, stream, part, baseline) for stream, part in found.items()]
    note = (
        f"Means over tokens of split {e.eval.split}, ± the standard error over batches; given frames, "
        "boundary tokens and padding do not count. The unigram is the cross-entropy of the same tokens "
        f"under how often each id occurs in the first {TRAINING_CLIPS:,} clips of the training split, "
        "plus one."
    )
    return Result(rows=rows, notes=[note])


def _likelihood_row(
    task: str, stream: str, part: StreamLikelihood, baseline: Mapping[str, tuple[float, float | None]]
) -> Row:
    nats, error = baseline.get(stream, (None, None))
    return {
        "task": task,
        "stream": stream,
        **{name: getattr(part, name) for name in ("loss_nats", "loss_nats_error")},
        "unigram_nats": nats,
        "unigram_nats_error": error,
        "accuracy": part.accuracy,
        "tokens": part.tokens,
    }


# -------------------------------------------------------------------------------- condition gain


def measure_condition_gain(r: Resources) -> Result:
    """What each kind of condition is worth to the model: its loss with another clip's, less that with the right one."""
    e, rows = r.experiment, []
    with jax.set_mesh(r.mesh):
        params = r.load_params()
        for task in mixture(e):
            given = condition_gain.kinds(e, task)
            rows += _gain_rows(r, task, given, params) if given else []
    note = (
        "How much more the true clip costs the model when one kind of condition is another clip's: 0 for a "
        f"condition that it ignores. Means over clips of split {e.eval.split}, with the interval that holds "
        "95 % of bootstrap resamples of these clips. Copyable tokens are those whose code stands at the same "
        "place of the right condition (of given opening frames: of the last one)."
    )
    return Result(rows=rows, notes=[note])


def _gain_rows(
    r: Resources, task: Task, given: Sequence[condition_gain.Kind], params: Params
) -> list[Row]:
    e, spec = r.experiment, r.experiment.eval
    layout = run_layout(e, task)
    taken = list(eval_batches(Resolved(e), task.name, spec.split, spec.batch, r.gain_batches))
    batch = {name: np.concatenate([part[name] for part in taken]) for name in taken[0]}
    lengths_P = [span.segment.length for span in layout.loss_spans]
    usable_N = (batch["known"] < lengths_P).any(axis=1)
    keys, captions = r.clip_names(len(usable_N))
    partners_N = condition_gain.partners(keys, captions, usable_N)
    found = condition_gain.gains(
        r.model, params, batch, layout, given, partners_N, r.mesh,
        size=spec.batch, loss_vocabulary=e.train.loss_vocabulary,
    )
    return [condition_gain.row(task.name, gain) for gain in found]


# ------------------------------------------------------------------------------- reconstruction


def measure_reconstruction(r: Resources) -> Result:
    """How near the tokenizer comes to real clips when it encodes and decodes them."""
    scores = score_clips(r.videos, r.reconstructions)
    note = f"All frames of {_counted(r)}. {PSNR_NOTE}"
    media = [
        _write_reconstruction(r, i, scores.psnr_db_N[i]) for i in range(min(CLIPS_SHOWN, len(r.clips)))
    ]
    row = {"frames": "reconstruction", **scores.row(r.origins), "clips": len(r.clips)}
    return Result(rows=[row], notes=[note], media=media)


def _counted(r: Resources) -> str:
    """'32 clips of split validation; mean ± standard error over their 5 films, maps or episodes'."""
    origins = len(set(r.origins))
    over = "clips" if origins == len(r.clips) else f"the {origins} films, maps or episodes that they come from"
    return f"{len(r.clips)} clips of split {r.experiment.eval.split}; mean ± standard error over {over}"


def _write_reconstruction(r: Resources, index: int, psnr_db: float) -> Media:
    shown = {"original": r.videos[index], "reconstruction": r.reconstructions[index]}
    files = {}
    for label, video in shown.items():
        files[label] = f"media/reconstruction_{index}_{label}.png"
        write_png_strip(r.out / files[label], video, STRIP_EVERY)
    clip = r.clips[index]
    return Media(
        kind="reconstruction",
        key=clip.key,
        caption=clip.caption,
        note=f"PSNR {psnr_db:.2f} dB",
        files=files,
    )


# ----------------------------------------------------------------------------- frame prediction


def measure_frame_prediction(r: Resources) -> Result:
    """Drawn frames against the true ones, beside repeating the last given frame."""
    known, spec = r.known_frames, r.experiment.eval
    videos = {"true": r.videos} | candidates(r.videos, r.predictions, r.reconstructions, known)
    result = compare(videos, known, r.origins)
    shown = range(min(CLIPS_SHOWN, len(r.clips)))
    return dataclasses.replace(
        result,
        notes=[
            f"{known} true frames given, {r.videos.shape[1] - known} to be drawn at temperature "
            f"{spec.temperature:g}; {_counted(r)}. The gain is the PSNR less that of the best way to "
            "repeat the last given frame, as it is, as the tokenizer renders it, or blurred, which is "
            "chosen by the mean over these clips; the win rate is the share of clips where it is positive.",
            "Reconstruction is the true clip as codes and back, the best that drawn codes can reach. "
            "A mean of "
            "samples is the pixel mean of independent draws. " + PSNR_NOTE,
        ],
        media=[_write_prediction(r, i, videos) for i in shown],
    )


def candidates(
    truth_NxTxHxWx3: np.ndarray,
    drawn_NxKxTxHxWx3: np.ndarray,
    reconstruction_NxTxHxWx3: np.ndarray,
    known: int,
) -> dict[str, np.ndarray]:
    """What is compared with the truth, each [N, T, H, W, 3]; the first `known` frames do not count."""
    samples = drawn_NxKxTxHxWx3.shape[1]
    means = {f"mean of {samples} samples": _mean(drawn_NxKxTxHxWx3)} if samples > 1 else {}
    return {
        "generated": drawn_NxKxTxHxWx3[:, 0],
        **means,
        REPEAT: _held(truth_NxTxHxWx3, known),
        f"{REPEAT} reconstructed": _held(reconstruction_NxTxHxWx3, known),
        **{f"{REPEAT} blurred {s} px": _held(truth_NxTxHxWx3, known, s) for s in BLURS},
        "reconstruction": reconstruction_NxTxHxWx3,
    }


def _mean(videos_NxKxTxHxWx3: np.ndarray) -> np.ndarray:
    return np.rint(videos_NxKxTxHxWx3.mean(axis=1)).astype(np.uint8)


def _held(videos_NxTxHxWx3: np.ndarray, known: int, sigma: float = 0.0) -> np.ndarray:
    """Frame known - 1, blurred by `sigma` pixels, stands in the place of every later one."""
    frame_Nx1xHxWx3 = videos_NxTxHxWx3[:, known - 1 : known]
    if sigma:
        frame_Nx1xHxWx3 = blurred(frame_Nx1xHxWx3, sigma)
    later = videos_NxTxHxWx3.shape[1] - known
    return np.concatenate([videos_NxTxHxWx3[:, :known]] + [frame_Nx1xHxWx3] * later, axis=1)


def compare(
    videos: Mapping[str, np.ndarray], known: int, origins: Sequence[str] | None = None
) -> Result:
    """Rows of every candidate against "true" on the frames from `known` on.

    Args:
      videos: "true" and any others, each uint8 [N, T, H, W, 3].  Of those whose names begin with
        REPEAT the one of the best mean PSNR is what gains are over.
      origins: the film, map or episode of each clip; None: all are independent.
    """
    unknown = {name: video[:, known:] for name, video in videos.items()}
    truth = unknown.pop("true")
    scores = {name: score_clips(truth, video) for name, video in unknown.items()}
    repeats = (name for name in scores if name.startswith(REPEAT))
    best = max(repeats, key=lambda name: scores[name].psnr_db_N.mean())
    base_N = scores[best].psnr_db_N
    rows = []
    for name, score in scores.items():
        gain, error = mean_and_error(score.psnr_db_N - base_N, origins)
        wins = None if name == best else float(np.mean(score.psnr_db_N > base_N))
        gained = {"gain_db": gain, "gain_db_error": error, "win_rate": wins}
        rows.append({"frames": name, **score.row(origins), **gained, "clips": len(truth)})
    blank = [None] * known
    curves = {name: blank + score.psnr_db_U.tolist() for name, score in scores.items()}
    return Result(rows=rows, curves=curves)


def _write_prediction(r: Resources, index: int, videos: Mapping[str, np.ndarray]) -> Media:
    labels = {"true": "true", "generated": "generated", "repeat": "repeat the last frame"}
    files, rate_hz = {}, r.experiment.clip.rate_hz
    for name, label in labels.items():
        files[label] = f"media/frame_prediction_{index}_{name}.gif"
        write_gif(r.out / files[label], videos[name][index], rate_hz)
    clip, known = r.clips[index], r.known_frames
    found = compare({name: video[index : index + 1] for name, video in videos.items()}, known)
    note = ", ".join(f"{row['frames']} {row['psnr_db']:.2f} dB" for row in found.rows)
    return Media(
        kind="frame_prediction", key=clip.key, caption=clip.caption, note=note, files=files
    )


# ------------------------------------------------------------------------------ every task once


def measure_examples(r: Resources) -> Result:
    """One example of every task, to be looked at and listened to."""
    found = examples.draw(r)
    rows = [
        {"task": e.task, "given": e.given, "drawn": e.text or "see below", "clip": e.clip.key}
        for e in found
    ]
    media = [
        Media(
            kind="example",
            key=e.clip.key,
            caption=e.task.replace("_", " "),
            note=f"given {e.given}" + (f"; it wrote “{e.text}”" if e.text else ""),
            files=e.files,
        )
        for e in found
    ]
    note = "One draw each, the first that came, with the checkpoint's sampling settings."
    return Result(rows=rows, notes=[note], media=media)


# --------------------------------------------------------------------------------------- scores

PSNR_NOTE = (
    f"PSNR and SSIM are means over frames; the PSNR of a frame is capped at {PSNR_CEILING_DB:.1f} dB, "
    "the error of rounding to 8 bits."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """PSNR (capped) and SSIM of clips, means over frames; `psnr_db_U` is per frame over clips."""

    psnr_db_N: np.ndarray
    ssim_N: np.ndarray
    psnr_db_U: np.ndarray

    def row(self, origins: Sequence[str] | None = None) -> dict[str, Any]:
        """Means with standard errors over clips, or over the films, maps or episodes they come from."""
        psnr_db, psnr_error = mean_and_error(self.psnr_db_N, origins)
        similarity, ssim_error = mean_and_error(self.ssim_N, origins)
        return {
            "psnr_db": psnr_db,
            "psnr_db_error": psnr_error,
            "ssim": similarity,
            "ssim_error": ssim_error,
        }


def score_clips(truth_NxUxHxWx3: np.ndarray, other_NxUxHxWx3: np.ndarray) -> Scores:
    """Scores of each clip, one clip at a time, so that memory stays that of one clip."""
    pairs = list(zip(truth_NxUxHxWx3, other_NxUxHxWx3, strict=True))
    psnr_db_NxU = np.stack([np.minimum(psnr(a, b), PSNR_CEILING_DB) for a, b in pairs])
    return Scores(
        psnr_db_N=psnr_db_NxU.mean(axis=1),
        ssim_N=np.array([ssim(a, b).mean() for a, b in pairs]),
        psnr_db_U=psnr_db_NxU.mean(axis=0),
    )


METRICS: dict[str, Metric] = {
    "likelihood": Metric(needs=(resources.STORE,), measure=measure_likelihood, shared=True),
    "condition_gain": Metric(
        needs=(resources.STORE, resources.OTHERS),
        measure=measure_condition_gain,
        shared=True,
        shown=gain_view.shown,
    ),
    "reconstruction": Metric(
        needs=(resources.SOURCE, resources.TOKENIZER), measure=measure_reconstruction
    ),
    "frame_prediction": Metric(
        needs=(resources.SOURCE, resources.TOKENIZER, resources.PREDICTION),
        measure=measure_frame_prediction,
    ),
    "examples": Metric(
        needs=(resources.EXAMPLES, resources.SOURCE, resources.TOKENIZER), measure=measure_examples
    ),
}
