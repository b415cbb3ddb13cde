"""Less flicker in a large clip: each frame is mixed with the frame before it, moved as the small clip moves.

The detail of a frame is made up again in each, so that it changes where nothing moves.  The motion is that of the small
clip, which is known: nothing drifts, and what a frame shows for the first time, as after a cut, is taken from it alone.
Frames that follow one another sample different points of what they show, so that mixing them also recovers detail.

Shape suffixes: T frames, h, w rows and columns of the small clip, H, W of the large one.
"""

from __future__ import annotations

import numpy as np

from poet.conditioning.structure import flow, followed
from poet.sampling import projection
from poet.spec import ConditioningSpec

# A pixel of the small clip that changes by so many levels along its motion takes 0.6 of `steadiness`; three times as
# many, nothing.
SAME_LEVELS = 12.0
# Of the way back to the small clip after each frame.  All of it would bring the flicker back.
RETURN = 0.5


def steadied(
    made_TxHxWx3: np.ndarray, small_Txhxwx3: np.ndarray, steadiness: float, fraction: float = 1.0
) -> np.ndarray:
    """uint8 [T, H, W, 3]; a frame depends on those before it and on none after it.

    Args:
      made_TxHxWx3, small_Txhxwx3: uint8.
      steadiness: part of a frame that the one before it gives where the small clip stays the same, 0 to 1.
      fraction: of the correction by the small clip after each frame, 0 to 1.

    Raises UserError where OpenCV is not installed.
    """
    found: list[np.ndarray] = []
    last: tuple[np.ndarray, np.ndarray] | None = None
    for made, small in zip(made_TxHxWx3, small_Txhxwx3, strict=True):
        guide = projection.pixels(projection.enlarged(small, made.shape[:2]))
        frame = projection.corrected(_mixed(made, guide, *last, steadiness), small, RETURN * fraction) if last else made
        found.append(projection.pixels(frame))
        last = frame, guide
    return np.asarray(found, np.uint8).reshape(made_TxHxWx3.shape)


def _mixed(made: np.ndarray, guide: np.ndarray, last: np.ndarray, before: np.ndarray, steadiness: float) -> np.ndarray:
    """float64 [H, W, 3]: of a frame and the result before it, by the small clip at these times (`guide`, `before`)."""
    (motion_HxWx2,) = flow(np.stack([guide, before]), ConditioningSpec())
    change_HxWx1 = np.abs(followed(before, motion_HxWx2) - guide).max(axis=-1, keepdims=True)
    share_HxWx1 = steadiness * np.exp(-((change_HxWx1 / SAME_LEVELS) ** 2) / 2)
    return share_HxWx1 * followed(last, motion_HxWx2) + (1 - share_HxWx1) * made
