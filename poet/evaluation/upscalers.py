"""`poet upscale-eval`: scores of a super-resolution network, of resizing, and of the tokenizer's round trip.

Shape suffixes: N clips, T frames, H, W rows and columns of the truth.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from poet import media
from poet.evaluation import metric, realesrgan, record, tokenizers
from poet.evaluation.metrics import perceptual as distances
from poet.evaluation.metrics import pixels
from poet.evaluation.metrics.upscaling import CONSISTENCY, FLICKER, TABLE, clip_flicker
from poet.sampling.superres import Upscaler
from poet.spec import UserError
from poet.streams.low_resolution import SCALE
from poet.tokenizers.video.perceptual import Perceptual

RESULT_FILE = "upscale_scores.json"
RESIZINGS = {
    "nearest": Image.Resampling.NEAREST,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CEILING = "tokenizer round trip"
CORRECTED_CEILING = "tokenizer round trip, corrected"
CORRECTIONS = "corrections alone"
# Of the picture of a set.
FRAMES_SHOWN = 4
NOTES = (
    pixels.NOTE,
    FLICKER.note,
    CONSISTENCY.note,
    f"'{CEILING}' is the truth through the tokenizer: no network does better in its codes; '{CORRECTED_CEILING}' is "
    "corrected by the input as results are (SUPER_RESOLUTION.consistency, .detail and .steadiness). "
    f"'{CORRECTIONS}' is what these make of nothing: a network must beat it. "
    "Seconds are those of one frame after the first clip, by one clip at a time.",
)

# Clips [N, T, h, w, 3] -> [N, T, H, W, 3].
Way = Callable[[np.ndarray], np.ndarray]


def evaluate(
    upscaler: Upscaler,
    sets: Mapping[str, np.ndarray],
    out: Path,
    *,
    perceptual: Perceptual | None,
    steps: Sequence[int] = (),
    seed: int = 0,
    skipped: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Scores on sets of clips at the high resolution, each uint8 (N, T, H, W, 3), that are halved first.

    Writes OUT/upscale_scores.json and a picture OUT/SET.png per set, and returns what the JSON holds
    (`record.content`).

    Args:
      perceptual: the distance beside PSNR and SSIM; None skips it.
      steps: numbers of sampling steps, a row each; () is SUPER_RESOLUTION.steps.
      skipped: sets that could not be opened -> why.

    Raises UserError: no set, or clips that the network or SSIM cannot take.
    """
    skipped = skipped or {}
    tokenizers.check_clips(sets, skipped)
    for clips in sets.values():
        upscaler.check((len(clips), clips.shape[1], *(side // SCALE for side in clips.shape[2:4]), 3))
    metrics = [pixels.PSNR, metric.METRICS["ssim"], FLICKER, CONSISTENCY]
    metrics += [distances.distance(perceptual)] if perceptual else []
    scored = {}
    for name, clips in tokenizers.each(sets, "clips"):
        given = np.stack([media.resize_video(clip, *(side // SCALE for side in clip.shape[1:3])) for clip in clips])
        rows, shown = [], [clips[0]]
        for label, run in ways(upscaler, clips, steps, seed):
            made, seconds = _timed(run, given)
            found = metric.measure({"truth": clips, "other": made, "given": given}, metrics)
            rows.append({"upscaler": label, "s_per_frame": seconds, **metric.columns(found)})
            shown.append(made[0])
        scored[name] = {TABLE: rows}
        every = max(clips.shape[1] // FRAMES_SHOWN, 1)
        media.write_png_strip(out / f"{name}.png", np.concatenate(shown, axis=1), every)
    details = {
        name: {"clips": len(clips), "shape": list(clips.shape[1:4]), "truth_flicker_levels": _flicker(clips)}
        for name, clips in sets.items()
    }
    subject = {"fingerprint": upscaler.video_tokenizer.fingerprint, "distance": perceptual and perceptual.label}
    measured = tokenizers.tables(scored, {TABLE: metrics}, {TABLE: NOTES})
    result = record.content(subject, measured, {**skipped, **_left_out()}, sets=details)
    record.write(out / RESULT_FILE, result)
    return result


def _flicker(clips: np.ndarray) -> float:
    """What the truth itself has of FLICKER, in levels: less than that is blur."""
    return float(np.mean([clip_flicker(clip, clip) for clip in clips]))


def _left_out() -> dict[str, str]:
    """Rows that there are none of -> why."""
    try:
        realesrgan.load()
    except UserError as error:
        return {realesrgan.LABEL: str(error)}
    return {}


def ways(upscaler: Upscaler, truth: np.ndarray, steps: Sequence[int], seed: int) -> Iterator[tuple[str, Way]]:
    """The candidates: label, and function from small to large clips.  `truth` uint8 [N, T, H, W, 3]."""
    for name, kind in RESIZINGS.items():
        yield name, functools.partial(resized, kind=kind)
    with contextlib.suppress(UserError):
        yield realesrgan.LABEL, realesrgan.load()
    spec = upscaler.experiment.super_resolution
    size = truth.shape[2:]
    yield CORRECTIONS, lambda given: upscaler.corrected(np.zeros((*given.shape[:2], *size), np.uint8), given)
    for number in steps or (spec.steps,):
        yield f"super-resolution, {number} steps", functools.partial(_one_by_one, upscaler.changed(steps=number), seed)
    tokenizer = upscaler.video_tokenizer
    rebuilt = tokenizer.decode(tokenizer.encode(truth))
    yield CEILING, lambda given: tokenizer.decode(tokenizer.encode(truth[: len(given)]))
    yield CORRECTED_CEILING, lambda given: upscaler.corrected(rebuilt[: len(given)], given)


def resized(given_NxTxhxwx3: np.ndarray, kind: Image.Resampling) -> np.ndarray:
    """uint8 [N, T, H, W, 3]: every frame at twice its height and width by a filter of Pillow's."""
    size = SCALE * given_NxTxhxwx3.shape[3], SCALE * given_NxTxhxwx3.shape[2]
    frames = [[np.asarray(Image.fromarray(f).resize(size, kind)) for f in clip] for clip in given_NxTxhxwx3]
    return np.asarray(frames)


def _one_by_one(upscaler: Upscaler, seed: int, given: np.ndarray) -> np.ndarray:
    made = [upscaler.upscale(given[n : n + 1], seed=seed, batch=1, first=n) for n in range(len(given))]
    return np.concatenate(made)


def _timed(run: Way, given: np.ndarray) -> tuple[np.ndarray, float]:
    """The result, and the seconds of a frame after compilation."""
    run(given[:1])
    begin = time.perf_counter()
    made = run(given)
    return made, (time.perf_counter() - begin) / (len(given) * given.shape[1])
