"""Distances between two sounds.

Every score compares float64 (S,) in [-1, 1] at 16 kHz with the original of the same length, and
gives one number, or NaN where it is not defined, as on silence.  An original that it is not defined
on counts for no codec; what a codec makes of another one and it fails on counts as the worst.

Fields: `truth` and `other`, lists of such sounds; `defined`, a dict of this truth that `measure` fills.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from poet.evaluation.metric import Batch, Metric, Values, register
from poet.runs import assets
from poet.tokenizers.audio.spectra import mel_matrix

RATE_HZ = 16_000

# Log-mel distance.  64 ms resolve the lowest of 64 bands, whose width is 56 Hz; 80 dB below full
# scale is near the noise of a quiet recording, and nothing below it counts.
MEL_BANDS, MEL_WINDOW, MEL_HOP = 64, 1024, 256
MEL_FLOOR = 1e-4
# Ceiling of SI-SDR: 16-bit samples reach no further, and one clip shall not
# rule a mean.
SI_SDR_LIMIT_DB = 60.0
# What P.862.2 makes of the lowest raw score, -0.5.
PESQ_WORST = 0.999 + 4 / (1 + math.exp(1.3669 * 0.5 + 3.8224))

# (original, other), float64 (S,) -> the metric or NaN.
Score = Callable[[np.ndarray, np.ndarray], float]


def to_float(sound_S: np.ndarray) -> np.ndarray:
    """float64 in [-1, 1] of int16; floats as they are."""
    scale = 32768 if sound_S.dtype == np.int16 else 1
    return sound_S.astype(np.float64) / scale


# --------------------------------------------------------------------------------------- distances


def log_mel_distance(truth_S: np.ndarray, other_S: np.ndarray) -> float:
    """Mean over frames and bands of the absolute difference of two mel spectra in dB.

    A spectrum is the magnitude under a Hann window of 1,024 samples every 256, scaled so that a
    full-scale sine has magnitude 1, summed into 64 triangles on the HTK mel scale from 0 to 8 kHz,
    and no less than -80 dB.
    """
    return float(np.mean(np.abs(mel_db(truth_S) - mel_db(other_S))))


def mel_db(sound_S: np.ndarray) -> np.ndarray:
    """float64 (frames, MEL_BANDS) in dB of full scale; the ends are padded with silence."""
    half = MEL_WINDOW // 2
    padded = np.pad(sound_S, (half, half))
    window = np.hanning(MEL_WINDOW + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, MEL_WINDOW)[::MEL_HOP]
    magnitudes = np.abs(np.fft.rfft(frames * window)) * (2 / window.sum())
    bands = magnitudes @ mel_matrix(MEL_WINDOW, RATE_HZ, MEL_BANDS)
    return 20 * np.log10(np.maximum(bands, MEL_FLOOR))


def si_sdr_db(truth_S: np.ndarray, other_S: np.ndarray) -> float:
    """Scale-invariant ratio of signal to distortion (Le Roux et al., arXiv 1811.02508), in dB.

    Means are taken off first.  Within +-60 dB; NaN where the original is constant.
    """
    truth, other = truth_S - truth_S.mean(), other_S - other_S.mean()
    energy = truth @ truth
    if energy <= 0:
        return math.nan
    target = (truth @ other) / energy * truth
    signal, noise = target @ target, (target - other) @ (target - other)
    if noise <= 0 and signal > 0:
        return SI_SDR_LIMIT_DB
    if signal <= 0:
        return -SI_SDR_LIMIT_DB
    ratio_db = 10 * math.log10(signal / noise)
    return min(max(ratio_db, -SI_SDR_LIMIT_DB), SI_SDR_LIMIT_DB)


def pesq_wb(truth_S: np.ndarray, other_S: np.ndarray) -> float:
    """PESQ, wide band (ITU-T P.862.2): about 1 to 4.64; NaN where it hears no utterance."""
    import pesq

    if not truth_S.any():
        return math.nan
    try:
        return float(pesq.pesq(RATE_HZ, truth_S, other_S, "wb"))
    # A score of NaN, as against silence, is taken for the number of an error and raises ValueError.
    except (pesq.PesqError, ValueError):
        return math.nan


def stoi(truth_S: np.ndarray, other_S: np.ndarray) -> float:
    """STOI (Taal et al. 2011), about 0..1; NaN with less than 0.4 s of sound above silence."""
    import pystoi

    if not truth_S.any():
        return math.nan
    with warnings.catch_warnings():
        # It warns, and gives 1e-5, where too few frames are left.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(truth_S, other_S, RATE_HZ))
        except RuntimeWarning:
            return math.nan


VISQOL_RATE_HZ = 48_000


def visqol(truth_S: np.ndarray, other_S: np.ndarray) -> float:
    """ViSQOL v3 (arXiv 2004.09584), audio mode at 48 kHz: 1 to 4.73."""
    up = VISQOL_RATE_HZ // RATE_HZ
    return _visqol("audio", _upsampled(truth_S, up), _upsampled(other_S, up), VISQOL_RATE_HZ)


def visqol_speech(truth_S: np.ndarray, other_S: np.ndarray) -> float:
    """ViSQOL v3, speech mode at 16 kHz with the lattice model: 1 to 5, for equal sounds 4 and more."""
    return _visqol("speech", truth_S, other_S, RATE_HZ)


def _visqol(mode: str, truth_S: np.ndarray, other_S: np.ndarray, rate_hz: int) -> float:
    """NaN for a sound without a patch that it can compare: too short, or silent."""
    # A silent sound divides by zero when levels are made equal.
    if not truth_S.any() or not other_S.any():
        return math.nan
    try:
        with np.errstate(all="ignore"):
            return float(_visqol_api(mode).measure_from_arrays(truth_S, other_S, rate_hz).moslqo)
    except (ValueError, IndexError):
        return math.nan


@functools.cache
def _visqol_api(mode: str) -> Any:
    from visqol import VisqolApi

    logging.getLogger("visqol").setLevel(logging.ERROR)
    api = VisqolApi()
    api.create(mode=mode)
    return api


def _upsampled(sound_S: np.ndarray, factor: int) -> np.ndarray:
    """The band-limited interpolation: the spectrum with zeros above."""
    spectrum = np.fft.rfft(sound_S)
    return np.fft.irfft(spectrum, factor * len(sound_S)) * factor


# -------------------------------------------------------------------------------------- declarations


def declare(name: str, score: Score, *, worst: float, better: str = "more", **more: Any) -> None:
    """Registers a score of pairs; `worst` is what counts where it fails on what was made of an original that it is
    defined on."""

    def measure(batch: Batch) -> Values:
        truths, known = batch["truth"], batch["defined"]
        if name not in known:
            known[name] = np.array([math.isfinite(score(truth, truth)) for truth in truths])
        pairs = zip(truths, batch["other"], known[name], strict=True)
        scores_N = np.array([score(truth, other) if counts else 0.0 for truth, other, counts in pairs])
        failed_N = ~np.isfinite(scores_N)
        return Values.of(batch, np.where(failed_N, worst, scores_N), known[name], failed_N)

    register(
        Metric(
            name=name,
            better=better,
            tables=("sounds",),
            needs=("truth", "other", "defined"),
            measure=measure,
            beside=("error", "low", "high", "n"),
            protocol={"rate_hz": RATE_HZ, "worst": worst},
            **more,
        )
    )


NEEDS_COMPILER = f"{assets.install('sound')} (builds from source: needs a C++ compiler)"
declare(
    "log-mel_db",
    log_mel_distance,
    better="less",
    worst=-20 * math.log10(MEL_FLOOR),  # Full scale against silence.
    note="log-mel: mean absolute difference of 64 mel bands, 64 ms windows every 16 ms, "
    "floor -80 dB of full scale; 0 is best.",
)
declare(
    "SI-SDR_db",
    si_sdr_db,
    worst=-SI_SDR_LIMIT_DB,
    note="SI-SDR: scale-invariant signal to distortion, held within ±60 dB.",
)
declare(
    "PESQ-wb",
    pesq_wb,
    worst=PESQ_WORST,
    note="PESQ-wb: ITU-T P.862.2, about 1 to 4.64.",
    package="pesq",
    install=NEEDS_COMPILER,
)
declare("STOI", stoi, worst=0.0, note="STOI: intelligibility, 0 to 1.", package="pystoi", install="pip install pystoi")
declare(
    "ViSQOL",
    visqol,
    worst=1.0,
    note="ViSQOL: audio mode at 48 kHz, 1 to 4.73.",
    package="visqol",
    install=NEEDS_COMPILER,
)
declare(
    "ViSQOL-speech",
    visqol_speech,
    worst=1.0,
    note="ViSQOL-speech: speech mode at 16 kHz, 1 to 5, for equal sounds 4 and more.",
    package="visqol",
    install=NEEDS_COMPILER,
)
