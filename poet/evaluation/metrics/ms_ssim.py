"""Structural similarity over several scales (Wang, Simoncelli, Bovik 2003) of pairs of clips.

Each scale is half as large as the one before.  Small frames have fewer scales than five, whose weights then sum to 1;
scores of different numbers of scales do not compare.

Shape suffixes: N frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import numpy as np

from poet.evaluation.metric import Metric, register
from poet.evaluation.metrics.pixels import PAIRS, SSIM_WINDOW, by_pair, ssim_maps

# Of the paper, from the finest scale on.
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def scales_of(height: int, width: int) -> int:
    """As many of the five scales as the window fits into; at least 1."""
    side, count = min(height, width), 1
    while count < len(WEIGHTS) and side // 2**count >= SSIM_WINDOW:
        count += 1
    return count


def ms_ssim(truth_NxHxWx3: np.ndarray, other_NxHxWx3: np.ndarray) -> np.ndarray:
    """float64 [N] of uint8 frames; means over windows and channels that are below 0 count as 0."""
    x, y = truth_NxHxWx3.astype(np.float64), other_NxHxWx3.astype(np.float64)
    weights = np.array(WEIGHTS[: scales_of(*x.shape[1:3])])
    product = np.ones(len(x))
    for scale, weight in enumerate(weights / weights.sum(), start=1):
        lightness, contrast = ssim_maps(x, y)
        factor = lightness * contrast if scale == len(weights) else contrast
        product *= np.maximum(factor.mean(axis=(-3, -2, -1)), 0) ** weight
        x, y = _halved(x), _halved(y)
    return product


def _halved(frames_NxHxWx3: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd last row or column is dropped."""
    n, height, width, channels = frames_NxHxWx3.shape
    even = frames_NxHxWx3[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


register(
    Metric(
        name="ms_ssim",
        better="more",
        needs=PAIRS,
        measure=by_pair(lambda truth, other: float(ms_ssim(truth, other).mean())),
        tables=("pairs",),
        note="MS-SSIM is the mean over frames of the similarity over as many of five scales as fit a frame.",
        protocol={"weights": list(WEIGHTS), "window": SSIM_WINDOW},
    )
)
