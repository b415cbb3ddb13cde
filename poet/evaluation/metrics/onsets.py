"""Whether sound begins when the picture flashes: fields `video`, uint8 [N, T, H, W, 3], `sound`, a list of int16 [S] at
16 kHz that begin with the video and last as long, or None, and `rate_hz`, the rate of the frames.

Shape suffixes: T frames, S samples, F windows, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import numpy as np

from poet.evaluation.metric import Batch, Metric, Values, register
from poet.evaluation.metrics.sounds import mel_db, to_float

# A clip with fewer frames says nothing about when.
LEAST_FRAMES = 5


def onset_strength(sound_S: np.ndarray, frames: int) -> np.ndarray:
    """float64 [frames]: the largest mean rise of log-mel bands in dB while each frame lasts."""
    bands_FxM = mel_db(to_float(sound_S))
    rises_F = np.maximum(np.diff(bands_FxM, axis=0, prepend=bands_FxM[:1]), 0).mean(axis=1)
    starts = np.arange(frames) * len(rises_F) // frames
    return np.maximum.reduceat(rises_F, starts) if len(rises_F) >= frames else np.zeros(frames)


def agreement(video_TxHxWx3: np.ndarray, sound_S: np.ndarray) -> float:
    """Correlation of the rises of pixels from frame to frame with those of mel bands in the time between them.

    NaN where either has none, or of fewer than `LEAST_FRAMES` frames.
    """
    if len(video_TxHxWx3) < LEAST_FRAMES:
        return float("nan")
    # What is new in a frame began after the one before was taken.
    picture, sound = rises(video_TxHxWx3), onset_strength(sound_S, len(video_TxHxWx3))[:-1]
    # Squares of near-equal numbers cancel: a deviation below this is none.
    if min(picture.std(), sound.std()) < 1e-6:
        return float("nan")
    return float(np.corrcoef(picture, sound)[0, 1])


def rises(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float64 [T - 1]: by how many levels pixels get brighter from each frame to the next, on the mean."""
    light = video_TxHxWx3.mean(axis=-1)
    return np.maximum(light[1:] - light[:-1], 0).mean(axis=(1, 2))


def _measure(batch: Batch) -> Values:
    pairs = zip(batch["video"], batch["sound"], strict=True)
    found = np.array([np.nan if sound is None else agreement(video, sound) for video, sound in pairs], np.float64)
    known = np.isfinite(found)
    return Values.of(batch, np.where(known, found, 0), known)


register(
    Metric(
        name="onset_agreement",
        better="more",
        tables=("clips",),
        needs=("video", "sound"),
        measure=_measure,
        note="Correlation over frames of rises of sound with those of brightness; about 0 for unrelated sound.",
    )
)
