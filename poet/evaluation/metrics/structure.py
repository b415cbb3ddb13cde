"""Whether a clip has the structure that it was made from: fields `truth` and `other`, uint8 [N, T, H, W, 3], and
`depth`, a list of distances [T, h, w] or None.

Correlations of a clip's values; unrelated clips of one game are above 0, as all have their floors below.  What a clip
has beyond that is its number less that of wrong pairs.

Shape suffixes: T frames, H height, W width, h w of the depth, 3 colour channels.
"""

from __future__ import annotations

import numpy as np

from poet.conditioning.structure import flow
from poet.evaluation.features.base import resized
from poet.evaluation.metric import Batch, Metric, Values, register
from poet.evaluation.metrics.pixels import PAIRS
from poet.spec import ConditioningSpec

# Cells of a side over which motion is averaged: the condition has no more detail.
CELLS = 8


def flow_agreement(truth_TxHxWx3: np.ndarray, other_TxHxWx3: np.ndarray) -> float:
    """Correlation of the motions of two clips, of x and y together, in cells; NaN of clips that stand still."""
    return _correlation(*(_motion(video) for video in (truth_TxHxWx3, other_TxHxWx3)))


def depth_edge_agreement(depth_Txhxw: np.ndarray, video_TxHxWx3: np.ndarray) -> float:
    """Correlation of how steep depth and lightness are, pixel by pixel of the depth: edges stand where it has them."""
    height, width = depth_Txhxw.shape[1:]
    lightness = resized(video_TxHxWx3, height, width, "box").astype(np.float64).mean(axis=-1)
    # Steps near the camera are larger: their logarithm does not say how near.
    return _correlation(_steepness(np.log1p(np.asarray(depth_Txhxw, np.float64))), _steepness(lightness))


def _motion(video_TxHxWx3: np.ndarray) -> np.ndarray:
    found = flow(video_TxHxWx3, ConditioningSpec())
    t, height, width, _ = found.shape
    cut = found[:, : height - height % CELLS, : width - width % CELLS]
    return cut.reshape(t, CELLS, height // CELLS, CELLS, width // CELLS, 2).mean(axis=(2, 4))


def _steepness(frames_Txhxw: np.ndarray) -> np.ndarray:
    down, across = np.gradient(frames_Txhxw, axis=(1, 2))
    return np.hypot(down, across)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if not a.size or min(a.std(), b.std()) < 1e-6:
        return float("nan")
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def _values(batch: Batch, found: list[float]) -> Values:
    known = np.isfinite(found)
    return Values.of(batch, np.where(known, found, 0), known)


def _flow(batch: Batch) -> Values:
    return _values(batch, [flow_agreement(*pair) for pair in zip(batch["truth"], batch["other"], strict=True)])


def _depth(batch: Batch) -> Values:
    pairs = zip(batch["depth"], batch["video"], strict=True)
    return _values(batch, [float("nan") if d is None else depth_edge_agreement(d, video) for d, video in pairs])


register(
    Metric(
        name="flow_agreement",
        better="more",
        tables=("structure",),
        needs=PAIRS,
        measure=_flow,
        note="Correlation of optical flow with the true clip's, in 8x8 cells.",
        protocol={"flow": "dis", "cells": CELLS},
    )
)
register(
    Metric(
        name="depth_edge_agreement",
        better="more",
        tables=("structure",),
        needs=("depth", "video"),
        measure=_depth,
        note="Correlation of how steep the picture's lightness is with how steep the true depth is.",
    )
)
