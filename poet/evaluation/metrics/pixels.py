"""PSNR and SSIM of 8-bit frames, in float64 NumPy: fields `truth` and `other`, uint8 [N, T, H, W, 3].

Shape suffixes: N leading dims, T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from poet.evaluation.metric import Batch, Metric, Values, register

PEAK = 255.0
# Rounding to 8 bits is an error of variance 1/12, which bounds the agreement of two frames.
# Clip means cap PSNR there; otherwise one frame without motion would make a mean infinite.
PSNR_CEILING_DB = 10 * math.log10(12 * PEAK**2)

# Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", IEEE TIP 13(4), 2004, section III.C.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def psnr(truth_NxHxWx3: np.ndarray, other_NxHxWx3: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame in dB, float64 [N]; inf where frames are equal.

    The squared error is averaged over pixels and channels together.
    """
    truth, other = _as_float(truth_NxHxWx3, other_NxHxWx3)
    mse_N = np.mean((truth - other) ** 2, axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(PEAK**2 / mse_N)


def ssim(truth_NxHxWx3: np.ndarray, other_NxHxWx3: np.ndarray) -> np.ndarray:
    """Structural similarity of each frame in [-1, 1], float64 [N].

    Gaussian window of 11 x 11 and sigma 1.5, population covariances, K = (0.01, 0.03); the mean over
    the windows that lie wholly inside the frame, per channel, then over channels.

    Raises:
      ValueError: a side is shorter than the window.
    """
    lightness, contrast = ssim_maps(*_as_float(truth_NxHxWx3, other_NxHxWx3))
    return (lightness * contrast).mean(axis=(-3, -2, -1))


def ssim_maps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of SSIM at every window of float64 frames (..., H, W, 3): lightness; contrast and structure.

    Raises:
      ValueError: a side is shorter than the window.
    """
    if min(x.shape[-3:-1]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs sides of at least {SSIM_WINDOW} pixels, got {x.shape[-3:-1]}")
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    lightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return lightness, (2 * cov + c2) / (var_x + var_y + c2)


def clip_psnr(truth_TxHxWx3: np.ndarray, other_TxHxWx3: np.ndarray) -> float:
    """Mean over frames of `psnr`, each capped at `PSNR_CEILING_DB` (58.9)."""
    return float(np.minimum(psnr(truth_TxHxWx3, other_TxHxWx3), PSNR_CEILING_DB).mean())


def clip_ssim(truth_TxHxWx3: np.ndarray, other_TxHxWx3: np.ndarray) -> float:
    """Mean over frames of `ssim`."""
    return float(ssim(truth_TxHxWx3, other_TxHxWx3).mean())


def _as_float(truth: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if truth.shape != other.shape or truth.ndim < 3:
        raise ValueError(f"frames must have equal (..., H, W, 3), got {truth.shape}, {other.shape}")
    if truth.dtype != np.uint8 or other.dtype != np.uint8:
        raise ValueError(f"frames must be uint8, got {truth.dtype} and {other.dtype}")
    return truth.astype(np.float64), other.astype(np.float64)


def blurred(frames_NxHxWx3: np.ndarray, sigma: float) -> np.ndarray:
    """uint8 frames under a Gaussian of `sigma` pixels, edges repeated."""
    reach = math.ceil(4 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    made = frames_NxHxWx3.astype(np.float64)
    for axis in (-3, -2):
        size = made.shape[axis]
        places = np.clip(np.arange(-reach, size + reach), 0, size - 1)
        padded = np.moveaxis(np.take(made, places, axis=axis), axis, 0)
        made = np.moveaxis(sum(w * padded[i : i + size] for i, w in enumerate(weights)), 0, axis)
    return np.rint(made).astype(np.uint8)


@functools.cache
def _window() -> tuple[float, ...]:
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    return tuple(weights / weights.sum())


def _blur(frames_NxHxWx3: np.ndarray) -> np.ndarray:
    """Separable Gaussian over the windows inside the frame: sides shrink by SSIM_WINDOW - 1."""
    for axis in (-3, -2):
        size = frames_NxHxWx3.shape[axis] - SSIM_WINDOW + 1
        moved = np.moveaxis(frames_NxHxWx3, axis, 0)
        summed = sum(w * moved[i : i + size] for i, w in enumerate(_window()))
        frames_NxHxWx3 = np.moveaxis(summed, 0, axis)
    return frames_NxHxWx3


def clip_mse(truth_TxHxWx3: np.ndarray, other_TxHxWx3: np.ndarray) -> float:
    """Mean squared error of all values."""
    return float(np.mean((truth_TxHxWx3.astype(np.float64) - other_TxHxWx3) ** 2))


def mse_db(mse: float) -> float:
    """The PSNR in dB of a mean squared error, capped at `PSNR_CEILING_DB`."""
    return PSNR_CEILING_DB if mse == 0 else min(10 * math.log10(PEAK**2 / mse), PSNR_CEILING_DB)


def frame_psnr(truth_NxTxHxWx3: np.ndarray, other_NxTxHxWx3: np.ndarray) -> np.ndarray:
    """float64 [N, T]: `psnr` of each frame, capped."""
    pairs = zip(truth_NxTxHxWx3, other_NxTxHxWx3, strict=True)
    return np.stack([np.minimum(psnr(*pair), PSNR_CEILING_DB) for pair in pairs])


def by_pair(score: Callable[[np.ndarray, np.ndarray], float], other: str = "other") -> Callable[[Batch], Values]:
    """Measures one pair of clips, of `truth` and of the field `other`, at a time: memory stays that of one clip."""

    def measure(batch: Batch) -> Values:
        return Values.of(batch, [score(*pair) for pair in zip(batch["truth"], batch[other], strict=True)])

    return measure


PAIRS = ("truth", "other")
NOTE = (
    f"PSNR and SSIM are means over frames; the PSNR of a frame is capped at {PSNR_CEILING_DB:.1f} dB, "
    "the error of rounding to 8 bits."
)
PSNR = register(
    Metric(
        name="psnr_db",
        better="more",
        needs=PAIRS,
        measure=by_pair(clip_psnr),
        note=NOTE,
        tables=("reconstruction", "frame_prediction", "renderings", "conditions", "pairs"),
    )
)
register(
    Metric(
        name="ssim",
        better="more",
        needs=PAIRS,
        measure=by_pair(clip_ssim),
        note=NOTE,
        tables=("reconstruction", "frame_prediction", "renderings", "pairs"),
    )
)
register(
    Metric(
        name="psnr_of_mean_MSE_db",
        better="more",
        needs=PAIRS,
        measure=by_pair(clip_mse),
        finish=mse_db,
        tables=("renderings",),
        beside=("low", "high"),
        note="PSNR of mean MSE is that of the squared error averaged over all clips first.",
    )
)


# ------------------------------------------------------------------------------- against a baseline


register(
    Metric(
        name="gain_db",
        better="more",
        needs=("gains_db",),
        measure=lambda batch: Values.of(batch, batch["gains_db"]),
        tables=("gains",),
        note="The PSNR of each clip less that of the baseline.",
    )
)
register(
    Metric(
        name="win_rate",
        better="more",
        needs=("wins",),
        measure=lambda batch: Values.of(batch, batch["wins"]),
        tables=("gains",),
        beside=("low", "high"),
        note="Fraction of clips that are nearer than the baseline.",
    )
)
