"""PSNR of the pixels that were to be made: fields `truth` and `other`, uint8 [N, T, H, W, 3], and `hole`,
bool [N, T, H, W].

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import numpy as np

from poet.evaluation.metric import Batch, Metric, Values, register
from poet.evaluation.metrics.pixels import PAIRS, PSNR_CEILING_DB, mse_db


def hole_psnr(truth_TxHxWx3: np.ndarray, other_TxHxWx3: np.ndarray, hole_TxHxW: np.ndarray) -> float:
    """The mean over frames of the PSNR of a hole in dB, capped as that of frames; NaN of no hole."""
    pairs = zip(truth_TxHxWx3.astype(np.float64), other_TxHxWx3, hole_TxHxW)
    found = [mse_db(float(np.mean((a[hole] - b[hole]) ** 2))) for a, b, hole in pairs if hole.any()]
    return float(np.mean(found)) if found else float("nan")


def _measure(batch: Batch) -> Values:
    found = np.array([hole_psnr(*one) for one in zip(batch["truth"], batch["other"], batch["hole"], strict=True)])
    known = np.isfinite(found)
    return Values.of(batch, np.where(known, found, 0), known)


register(
    Metric(
        name="hole_psnr_db",
        better="more",
        tables=("holes",),
        needs=(*PAIRS, "hole"),
        measure=_measure,
        note=f"PSNR of what was to be filled in, the mean over frames, capped at {PSNR_CEILING_DB:.1f} dB.",
    )
)
