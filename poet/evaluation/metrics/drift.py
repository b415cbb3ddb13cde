"""How far a film drifts from its beginning: field `video`, uint8 [N, T, H, W, 3], and `rate_hz`.

A film that falls apart becomes flat, blurred or noisy: contrast or detail change by many dB.  A change of place changes
them too, in real films as well, whose number stands beside that of samples.

Shape suffixes: T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import numpy as np

from poet.evaluation.metric import Batch, Metric, Values, register

# At the beginning and at the end; a film that is not twice as long does not count.
SECONDS = 3.0
# Variances in squared levels below which there is nothing: rounding to 8 bits has 1/12.
LEAST = 1 / 12


def drift_db(video_TxHxWx3: np.ndarray, rate_hz: float) -> float:
    """The larger one of the changes of contrast and of detail in dB, whatever their sign; NaN of a short film."""
    count = round(SECONDS * rate_hz)
    if not count or len(video_TxHxWx3) < 2 * count:
        return float("nan")
    first, last = (_powers(part) for part in (video_TxHxWx3[:count], video_TxHxWx3[-count:]))
    return float(np.abs(10 * np.log10(last / first)).max())


def _powers(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float64 [2]: variance of pixels within frames, and mean square of the steps to neighbours, in squared levels."""
    video = video_TxHxWx3.astype(np.float64)
    contrast = video.var(axis=(1, 2)).mean()
    detail = (np.diff(video, axis=1) ** 2).mean() + (np.diff(video, axis=2) ** 2).mean()
    return np.maximum([contrast, detail / 2], LEAST)


def _measure(batch: Batch) -> Values:
    found = np.array([drift_db(video, batch["rate_hz"]) for video in batch["video"]], np.float64)
    known = np.isfinite(found)
    return Values.of(batch, np.where(known, found, 0), known)


register(
    Metric(
        name="drift_db",
        better="less",
        tables=("clips",),
        needs=("video", "rate_hz"),
        measure=_measure,
        note=f"Change of contrast or of detail, the larger, from the first {SECONDS:g} s of a film to the last, "
        "without sign; a real film's stands beside it.",
        protocol={"seconds": SECONDS},
    )
)
