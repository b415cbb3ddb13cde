"""In which order the codes of a clip are sampled when rows and frames follow each other by a lag (DiagD, 2503.14070).

The codes of one step are a front: in every row that has begun the next one.  A row begins `row_lag` codes behind the
row above it, a latent frame `frame_lag` steps behind the one before.  A code is sampled after what lies before it in
raster order and has been sampled in an earlier step; the model was trained to see all that lies before it.

N positions of the grid, S steps, Q codes of a front at the most.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from poet.spec import UserError
from poet.streams.base import Grid


class Front(NamedTuple):
    """What happens in a step (or in all of them, [S, Q]): codes are sampled, then taken in for the next front.

    Attributes:
      sampled: int32 [Q], positions that are sampled from the states of the slots; N where a slot has none.
      inputs: int32 [Q], positions whose codes are taken in then; 0 where a slot has none.
      targets: int32 [Q], the positions that the states are for; they see what lies before.
      kept: bool [Q], whether keys and values are written: of each code once.
    """

    sampled: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    kept: np.ndarray


class Fronts(NamedTuple):
    """All steps, and int32 [N], the step in which each position is sampled."""

    steps: Front
    order: np.ndarray


def check(grid: Grid, row_lag: int, frame_lag: int) -> None:
    """Raises UserError for lags that a grid (t, h, w) has no codes for; they would sample nothing together."""
    _, rows, columns = grid
    if row_lag > columns:
        raise UserError(
            f"SAMPLE.row_lag = {row_lag}: a row of a latent frame has {columns} codes; give 1..{columns} "
            f"({columns} samples one code at a time), or 0"
        )
    alone = (rows - 1) * row_lag + columns
    if frame_lag > alone:
        raise UserError(
            f"SAMPLE.frame_lag = {frame_lag}: with row_lag = {row_lag} a latent frame of {rows}x{columns} codes takes "
            f"{alone} steps; give 1..{alone}, or 0 for frame after frame"
        )


@functools.cache
def fronts(grid: Grid, row_lag: int, frame_lag: int) -> Fronts:
    """Those of a grid (t, h, w).

    Args:
      row_lag: 1..w; w is raster order.
      frame_lag: 1 or more steps, at most those of a frame; 0 is frame after frame.

    Raises UserError: as `check`.
    """
    check(grid, row_lag, frame_lag)
    frames, rows, columns = grid
    alone = (rows - 1) * row_lag + columns
    starts = np.add.outer(np.arange(frames) * (frame_lag or alone), np.arange(rows) * row_lag)
    order = np.add.outer(starts, np.arange(columns)).reshape(-1)
    steps, last = int(order.max()) + 1, len(order)
    fed: list[list[tuple[int, bool, int]]] = [_fed(order, step, columns) for step in range(steps)]
    slots = max(map(len, fed))
    inputs, targets = np.zeros((2, steps, slots), np.int32)
    kept = np.zeros((steps, slots), bool)
    sampled = np.full((steps, slots), last, np.int32)
    sampled[0, 0] = 0
    for step, entries in enumerate(fed):
        for slot, (place, once, target) in enumerate(entries):
            inputs[step, slot], kept[step, slot], targets[step, slot] = place, once, target
            if step + 1 < steps and target < last and order[target] == step + 1:
                sampled[step + 1, slot] = target
    return Fronts(Front(sampled, inputs, targets, kept), order.astype(np.int32))


def _fed(order: np.ndarray, step: int, columns: int) -> list[tuple[int, bool, int]]:
    """(position, whether it is kept, for which one) of what is taken in after a step.

    Every code is taken in for the next position.  Where that is not sampled in the next step, but in a row that begins
    there, the last code that lies before it and is there is taken in once more for it.
    """
    new = [(int(place), True, int(place) + 1) for place in np.flatnonzero(order == step)]
    begun = [int(place) for place in np.flatnonzero(order == step + 1) if place % columns == 0]
    again = [(int(np.flatnonzero(order[:place] <= step).max()), False, place) for place in begun]
    return new + [entry for entry in again if entry[2] not in {target for *_, target in new}]
