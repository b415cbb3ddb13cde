"""What a tokenizer keeps of the pictures that are made of clips (`poet.conditioning`): a model hears no more of a
condition than its codes hold.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels; t h w latents.
"""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from poet import conditioning
from poet.conditioning import CONDITIONS, Made, structure
from poet.evaluation.image_metrics import clip_psnr, mean_and_error
from poet.spec import ConditioningSpec
from poet.tokenizers.video.base import VideoTokenizer

# Motion in pixels and depth in shares of its range that are not there: hues are drawn in whole levels.
LEAST = 0.02
DERIVED_NOTE = (
    "Conditions: PSNR is of what is made of the clips, before and after the tokenizer. Given cells are the latents "
    "that hold nothing filled in; of their codes, given codes kept is the share that are the clip's own. Flow and "
    "depth error are root mean squares of what the tokenizer does to them, as shares of the motion and of the "
    "depth's deviation that are drawn: at 1 nothing is left."
)


def derived_scores(
    tokenizer: VideoTokenizer,
    clips_NxTxHxWx3: np.ndarray,
    spec: ConditioningSpec,
    depths: Sequence[np.ndarray | None] = (),
    names: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """A row for each condition that can be made of these uint8 clips.

    Args:
      depths: distances (T, h, w) of each clip; with () or a clip that has none, structure is made where
        `spec.depth` needs none.
      names: of the conditions, () for all; what is drawn for a clip depends on its place in the set.
    """
    whole = len(depths) == len(clips_NxTxHxWx3) and all(depth is not None for depth in depths)
    possible = conditioning.possible(spec, clips_NxTxHxWx3.shape[1], has_depth=whole)
    ids = tokenizer.encode(clips_NxTxHxWx3)
    rows = []
    for name in (name for name in possible if name in (names or possible)):
        made = [
            conditioning.make(
                name, clip, spec, key=str(n), depth=depths[n] if whole else None, factor=tokenizer.spec.factor
            )
            for n, clip in enumerate(clips_NxTxHxWx3)
        ]
        rows.append({"condition": name, **_row(name, tokenizer, ids, made, spec)})
    return rows


def _row(
    name: str, tokenizer: VideoTokenizer, ids_Nxtxhxw: np.ndarray, made: Sequence[Made], spec: ConditioningSpec
) -> dict[str, Any]:
    shown = np.stack([m.video for m in made])
    codes = tokenizer.encode(shown)
    rebuilt = tokenizer.decode(codes)
    psnr, error = mean_and_error(np.array([clip_psnr(*pair) for pair in zip(shown, rebuilt, strict=True)]))
    row = {"psnr_db": psnr, "psnr_db_error": error, "given_cells": None, "given_codes_kept": None}
    if CONDITIONS[name].masks:
        cells = np.stack([m.cells for m in made])
        kept = float((codes == ids_Nxtxhxw)[cells].mean()) if cells.any() else None
        row |= {"given_cells": float(cells.mean()), "given_codes_kept": kept}
    errors = structure_errors(shown, rebuilt, spec.flow_scale) if name == "structure" else (None, None)
    return row | dict(zip(("flow_error", "depth_error"), errors))


def structure_errors(
    drawn_NxTxHxWx3: np.ndarray, rebuilt_NxTxHxWx3: np.ndarray, flow_scale: float
) -> tuple[float | None, float | None]:
    """Relative errors (flow, depth) of structures as they are read back; None of what is not there to be lost."""
    pairs = [
        tuple(np.stack(parts) for parts in zip(*(structure.read(picture, flow_scale) for picture in video)))
        for video in (drawn_NxTxHxWx3, rebuilt_NxTxHxWx3)
    ]
    (motion, near), (motion_after, near_after) = pairs
    return (
        _ratio(motion_after - motion, float(np.sqrt(np.mean(motion**2)))),
        _ratio(near_after - near, float(near.std())),
    )


def _ratio(difference: np.ndarray, size: float) -> float | None:
    return float(np.sqrt(np.mean(difference**2))) / size if size > LEAST else None
