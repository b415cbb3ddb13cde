"""Metrics of upscaled clips besides similarity: flicker, and consistency with the input.

Fields `truth` and `other`, uint8 [N, T, H, W, 3], and `given`, uint8 [N, T, h, w, 3].
"""

from __future__ import annotations

import numpy as np

from poet.conditioning.structure import flow, followed
from poet.evaluation.metric import Batch, Metric, Values, register
from poet.evaluation.metrics.pixels import PAIRS, by_pair, clip_psnr
from poet.media import resize_video
from poet.spec import ConditioningSpec

TABLE = "upscalers"
# A pixel whose truth changes by more levels along its motion is occluded or relit, and does not count for flicker.
SAME_LEVELS = 12.0


def clip_flicker(truth_TxHxWx3: np.ndarray, other_TxHxWx3: np.ndarray) -> float:
    """Mean absolute change along the truth's motion in levels, where the truth keeps its own; 0 for one frame."""
    motion = flow(truth_TxHxWx3, ConditioningSpec())
    changes = []
    for now, after in enumerate(range(1, len(truth_TxHxWx3))):
        steady = np.abs(followed(truth_TxHxWx3[after], motion[now]) - truth_TxHxWx3[now]).max(axis=-1) <= SAME_LEVELS
        change = np.abs(followed(other_TxHxWx3[after], motion[now]) - other_TxHxWx3[now])
        changes.append(change[steady])
    found = np.concatenate(changes) if changes else np.zeros(0)
    return float(found.mean()) if found.size else 0.0


def _consistency(batch: Batch) -> Values:
    pairs = zip(batch["given"], batch["other"], strict=True)
    return Values.of(batch, [clip_psnr(given, resize_video(other, *given.shape[1:3])) for given, other in pairs])


FLICKER = register(
    Metric(
        name="flicker_levels",
        better="less",
        needs=PAIRS,
        measure=by_pair(clip_flicker),
        tables=(TABLE, "pairs"),
        note=f"Flicker is the mean absolute change along the truth's motion, where the truth itself changes by "
        f"{SAME_LEVELS:g} levels at most.",
        protocol={"flow": "dis", "same_levels": SAME_LEVELS},
    )
)
CONSISTENCY = register(
    Metric(
        name="consistency_db",
        better="more",
        needs=("given", "other"),
        measure=_consistency,
        tables=(TABLE,),
        note="Consistency is the PSNR of the result at half its size (bicubic, antialiased) against the input.",
    )
)
