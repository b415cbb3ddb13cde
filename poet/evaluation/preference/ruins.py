"""Twins of clips that are worse for certain: for attention checks, and for training pairs.

Shape suffixes: T frames, H height, W width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

# Noise of this deviation, of 255 levels, is seen at once, and the scene can still be recognised.
NOISE_LEVELS = 48.0
# A clip whose frames differ by less on average, of 255 levels, may look still: its frozen twin is no fair check.
LEAST_MOTION_LEVELS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ruin:
    """A way to make a clip worse.

    Attributes:
      apply: (uint8 [T, H, W, 3], a generator) -> the twin, of the same shape.
      decides: questions whose only right answer is the intact clip.
      explanation: what a training pair says of it; `{side}` is that of the intact clip.
      needs_motion: the twin of a clip that stands still would look like the clip.
      checks: whether attention checks use it.
    """

    apply: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    decides: tuple[str, ...]
    explanation: str
    needs_motion: bool = False
    checks: bool = True


def frozen(video_TxHxWx3: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """The first frame all the time."""
    return np.repeat(video_TxHxWx3[:1], len(video_TxHxWx3), 0)


def noisy(video_TxHxWx3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Independent normal noise in every pixel of every frame."""
    noise = rng.normal(0.0, NOISE_LEVELS, video_TxHxWx3.shape)
    return np.clip(np.rint(video_TxHxWx3 + noise), 0, 255).astype(np.uint8)


def shuffled(video_TxHxWx3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The frames in another order, whatever their number."""
    order = rng.permutation(len(video_TxHxWx3))
    return video_TxHxWx3[np.roll(order, 1) if (order == np.arange(len(order))).all() else order]


RUINS = {
    "frozen": Ruin(
        apply=frozen,
        decides=("motion_interestingness",),
        explanation="One of the clips stands still: nothing moves in it. The motion of the clip on the {side} is "
        "more interesting, whatever the clip shows.",
        needs_motion=True,
    ),
    "noise": Ruin(
        apply=noisy,
        decides=("video_quality", "temporal_consistency"),
        explanation="One of the clips is covered with noise. The clip on the {side} looks better frame by frame, and "
        "its things stay the same, where noise flickers.",
    ),
    "shuffled": Ruin(
        apply=shuffled,
        decides=("motion_realism", "temporal_consistency"),
        explanation="The frames of one of the clips are out of order. Each of them looks good alone, so the quality is "
        "about equal; but the motion of the clip on the {side} is more realistic.",
        needs_motion=True,
        checks=False,
    ),
}


def motion(video_TxHxWx3: np.ndarray) -> float:
    """The mean absolute difference of neighbouring frames, of 255 levels; 0 of a single frame."""
    if len(video_TxHxWx3) < 2:
        return 0.0
    return float(np.mean(np.abs(np.diff(video_TxHxWx3.astype(np.int16), axis=0))))
