"""Contact sheets: rows of frames as one picture, each row with its number or a word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from poet import media
from poet.media.files import PathLike

GAP, BACK, INK = 2, (24, 24, 24), (240, 240, 240)
# Frames of a smaller side are enlarged by a whole number.
LEAST_SIDE = 96


def sheet(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str] = ()) -> Image.Image:
    """A picture of rows of frames uint8 [H, W, 3], all of one size; a row may be shorter than others.

    Args:
      labels: in front of the rows; () for none.

    Raises ValueError where no row has a frame.
    """
    height, width = next(frame.shape[:2] for row in rows for frame in row)
    scale = max(-(-LEAST_SIDE // min(height, width)), 1)
    high, wide, left = height * scale + GAP, width * scale + GAP, 8 + 8 * max(map(len, labels), default=-1)
    sheet = Image.new("RGB", (left + wide * max(map(len, rows)), high * len(rows)), BACK)
    for number, row in enumerate(rows):
        for place, frame in enumerate(row):
            picture = Image.fromarray(np.ascontiguousarray(frame)).resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (left + place * wide, number * high))
        if labels:
            ImageDraw.Draw(sheet).text((4, number * high + 4), labels[number], fill=INK)
    return sheet


def write(path: PathLike, rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str] = ()) -> None:
    """Writes `sheet` as a PNG."""
    with media.replacing(path) as file:
        sheet(rows, labels).save(file, "PNG")
