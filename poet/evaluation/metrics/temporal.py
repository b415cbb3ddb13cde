"""Metrics of the course of a clip, without another one to compare it with: field `video`, uint8 [N, T, H, W, 3].

The same numbers of real clips stand beside them: a clip that stands still has no warping error, and is no better.

Shape suffixes: T frames, H height, W width, 3 colour channels, 2 motion (x, y).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from poet.conditioning.structure import flow, followed
from poet.evaluation.metric import Batch, Metric, Values, register
from poet.spec import ConditioningSpec

# A pixel is visible in both frames where its motion there and back cancel, up to this fraction of their squares and
# this many squared pixels (Sundaram, Brox, Keutzer 2010).
CONSISTENT, CONSISTENT_PX2 = 0.01, 0.5
# Mean change in levels below which a frame is the one before: coding noise is less.
STILL_LEVELS = 0.5


def warping_error(video_TxHxWx3: np.ndarray) -> float:
    """Mean absolute change in levels of what moves along the clip's own motion (Lai et al., 1808.00449).

    Pixels that are hidden in the next frame do not count; NaN of a clip without two frames.
    """
    forward, backward = _motions(video_TxHxWx3)
    changes = []
    for now, (there, back) in enumerate(zip(forward, backward)):
        seen = visible(there, back)
        change = np.abs(followed(video_TxHxWx3[now + 1], there) - video_TxHxWx3[now])
        changes.append(change[seen].ravel())
    found = np.concatenate(changes) if changes else np.zeros(0)
    return float(found.mean()) if found.size else float("nan")


def _motions(video_TxHxWx3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [T - 1, H, W, 2]: to the next frame, and from it back."""
    spec = ConditioningSpec()
    return flow(video_TxHxWx3, spec), flow(video_TxHxWx3[::-1], spec)[::-1]


def visible(there_HxWx2: np.ndarray, back_HxWx2: np.ndarray) -> np.ndarray:
    """bool [H, W]: where motion to the next frame and back from there cancel."""
    returned = followed(back_HxWx2, there_HxWx2)
    sizes = (there_HxWx2**2).sum(axis=-1) + (returned**2).sum(axis=-1)
    return ((there_HxWx2 + returned) ** 2).sum(axis=-1) < CONSISTENT * sizes + CONSISTENT_PX2


def changes(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float64 [T - 1]: mean absolute change of each frame from the one before, in levels."""
    video = video_TxHxWx3.astype(np.int16)
    return np.abs(video[1:] - video[:-1]).mean(axis=(1, 2, 3))


def is_frozen(video_TxHxWx3: np.ndarray) -> bool:
    """Whether the last half of a clip stands still."""
    found = changes(video_TxHxWx3)
    return bool(len(found)) and bool((found[len(found) // 2 :] < STILL_LEVELS).all())


def _each(score: Callable[[np.ndarray], float]) -> Callable[[Batch], Values]:
    def measure(batch: Batch) -> Values:
        found = np.array([score(video) if len(video) > 1 else np.nan for video in batch["video"]], np.float64)
        known = np.isfinite(found)
        return Values.of(batch, np.where(known, found, 0), known)

    return measure


def _declare(name: str, score: Callable[[np.ndarray], float], note: str, **protocol: float | str) -> None:
    register(
        Metric(
            name=name,
            better="neither",
            tables=("clips",),
            needs=("video",),
            measure=_each(score),
            note=note,
            protocol=protocol,
        )
    )


_declare(
    "warping_error_levels",
    warping_error,
    "Mean absolute change along the clip's own motion, where both frames show it; above the reference's: flicker.",
    flow="dis",
)
_declare("change_levels", lambda video: float(changes(video).mean()), "Mean absolute change from frame to frame.")
_declare(
    "frozen_rate",
    lambda video: float(is_frozen(video)),
    "Fraction of clips whose last half stands still.",
    still_levels=STILL_LEVELS,
)
