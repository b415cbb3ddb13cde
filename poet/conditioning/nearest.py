"""OpenCV where it is installed, and the nearest kept pixel of a hole's pixels with it or without."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from poet.spec import UserError

# Neighbours before a pixel in reading order, as steps (rows, columns) and distances: the chamfer mask of 5 x 5 of
# G. Borgefors (Distance transformations in digital images, 1986), with OpenCV's rounding to 1 / 65,536.
_BEFORE = [
    (dy, dx, round(float(np.float32(distance)) * 65536))
    for dy, dx, distance in (
        (-2, -1, 2.1969),
        (-2, 1, 2.1969),
        (-1, -2, 2.1969),
        (-1, -1, 1.4),
        (-1, 0, 1.0),
        (-1, 1, 1.4),
        (-1, 2, 2.1969),
        (0, -1, 1.0),
    )
]
_NEXT, _FAR = 65536, 2**40


def opencv(what: str) -> Any:
    """The module cv2; UserError where it is missing: `what` needs it."""
    try:
        import cv2
    except ImportError:
        raise UserError(f"{what} needs OpenCV: pip install opencv-python-headless") from None
    return cv2


def nearest(covered: np.ndarray) -> np.ndarray:
    """int64 (H, W): the index, in the flat picture, of the kept pixel that is nearest to each pixel.

    Args:
      covered: bool (H, W), not all of it.
    """
    try:
        cv2 = opencv("")
    except UserError:
        found = _by_two_passes(covered.tobytes(), covered.shape)
        return np.array(found, np.int64).reshape(covered.shape)
    _, labels = cv2.distanceTransformWithLabels(
        covered.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # A label numbers a kept pixel; each kept pixel has its own.
    index = np.zeros(labels.max() + 1, np.int64)
    index[labels[~covered]] = np.flatnonzero(~covered)
    return index[labels]


# A hole is the same in many frames of a clip, and in many clips.
@functools.lru_cache(maxsize=256)
def _by_two_passes(covered: bytes, shape: tuple[int, int]) -> list[int]:
    """What OpenCV finds, in pure Python, with the same choice among equal distances."""
    height, width = shape
    # Two columns and rows around the picture are far from everything.
    wide = width + 4
    places = [(y + 2) * wide + x + 2 for y in range(height) for x in range(width)]
    distance, label = [_FAR] * (wide * (height + 4)), [0] * (wide * (height + 4))
    holes = []
    for number, place in enumerate(places):
        label[place] = number
        if covered[number]:
            holes.append(place)
        else:
            distance[place] = 0
    for order, sign, least in ((holes, 1, -1), (holes[::-1], -1, _NEXT)):
        steps = [(sign * (dy * wide + dx), far) for dy, dx, far in _BEFORE]
        for place in order:
            # The second pass leaves pixels beside a kept one.
            best = distance[place]
            if best <= least:
                continue
            for step, far in steps:
                if best > distance[place + step] + far:
                    best, label[place] = distance[place + step] + far, label[place + step]
            distance[place] = best
    return [label[place] for place in places]
