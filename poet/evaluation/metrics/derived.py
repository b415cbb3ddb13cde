"""What a tokenizer keeps of the pictures that are made of clips (`poet.conditioning`): a model hears no more of a
condition than its codes hold.

Fields: `truth` and `other`, the pictures before and after the tokenizer, uint8 [N, T, H, W, 3]; where holes are
filled in, `cells`, the latents that hold nothing filled in, bool [N, t, h, w], and `ids_same`, whether their codes
are the clip's own; of structures, `flow_scale`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from poet.conditioning import structure
from poet.evaluation.metric import Batch, Metric, Sums, Values, register
from poet.evaluation.metrics.pixels import PAIRS

# Motion in pixels, and depth as a fraction of its range, below which it counts as none: hues have whole levels.
LEAST = 0.02
FOLDS = 16
NOTE = (
    "Conditions: PSNR is that of the derived clips, before and after the tokenizer. Given cells are the latents "
    "without filling; given codes kept is the fraction of their codes that equal the clip's own. Flow and "
    "depth error are root mean squares of the tokenizer's error, relative to the motion and to the "
    "depth's deviation in the condition: at 1 nothing is left."
)


def _given(batch: Batch) -> Values:
    cells = batch["cells"]
    return Values.of(batch, cells.reshape(len(cells), -1).mean(1))


def _kept(batch: Batch) -> Values:
    cells, kept = (x.reshape(len(x), -1) for x in (batch["cells"], batch["cells"] & batch["ids_same"]))
    return Values.of(batch, kept.sum(1), cells.sum(1))


def _read(batch: Batch) -> Sums:
    """Squared motion and what became of it; depth, its square and what became of it: means of each clip."""
    rows = []
    for before, after in zip(batch["truth"], batch["other"], strict=True):
        (motion, near), (motion_after, near_after) = (
            tuple(map(np.stack, zip(*(structure.read(picture, batch["flow_scale"]) for picture in video))))
            for video in (before, after)
        )
        parts = ((motion_after - motion) ** 2, motion**2, (near_after - near) ** 2, near**2, near)
        rows.append([part.mean() for part in parts])
    return Sums.of(batch, FOLDS, moments=np.array(rows), clips=np.ones(len(rows), np.int64))


def _flow_error(totals: Mapping[str, np.ndarray]) -> float | None:
    lost, size, *_ = totals["moments"] / totals["clips"]
    return _relative(lost, size)


def _depth_error(totals: Mapping[str, np.ndarray]) -> float | None:
    *_, lost, square, mean = totals["moments"] / totals["clips"]
    return _relative(lost, square - mean**2)


def _relative(lost: float, size: float) -> float | None:
    """The root of both squares' ratio; None of what is not there to be lost."""
    return math.sqrt(lost / size) if size > LEAST**2 else None


CELLS, STRUCTURES = ("cells", "ids_same"), (*PAIRS, "flow_scale")
_COLUMNS: dict[str, Any] = {"tables": ("conditions",), "beside": ("low", "high"), "note": NOTE}
register(Metric(name="given_cells", better="neither", needs=CELLS, measure=_given, tables=("conditions",), beside=()))
register(Metric(name="given_codes_kept", better="more", needs=CELLS, measure=_kept, **_COLUMNS))
for _name, _finish in (("flow_error", _flow_error), ("depth_error", _depth_error)):
    register(Metric(name=_name, better="less", needs=STRUCTURES, measure=_read, finish=_finish, **_COLUMNS))
