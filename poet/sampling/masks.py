"""Masks of a user's own: a picture, a video, a box or a box that moves, in the format of the clip that they mark.

T frames, H height, W width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from poet import media
from poet.sampling.requests import is_box
from poet.spec import ClipSpec, UserError

FORMS = (
    "a picture or video (white is marked), a box x0,y0,x1,y1 in pixels of the clip, or two such boxes with a colon "
    "between them: where it is in the first and in the last frame"
)


def read_masks(texts: Sequence[str], clips: Sequence[str], clip: ClipSpec) -> np.ndarray:
    """bool [1 or n, T, H, W] of n clips' files: what is marked in them once they are fitted as `media.read_clip` does.

    Args:
      texts: one for all clips or one each, of `FORMS`.

    Raises:
      UserError: outside the frame, empty, everything, or a file of another shape than its clip.
    """
    # One box for clips of several sizes lies elsewhere in each of them.
    each = len(clips) if any(map(is_box, texts)) else len(texts)
    pairs = list(zip(np.resize(texts, each), np.resize(clips, each)))
    return np.stack([_read(str(text), str(path), clip) for text, path in pairs])


def _read(text: str, path: str, clip: ClipSpec) -> np.ndarray:
    size = media.display_size(path)
    mask = _boxes(text, size, clip) if is_box(text) else _frames(text, path, size, clip)
    if not mask.any():
        raise UserError(f"mask {text} marks no pixel of {path} as it is fitted to {clip.width}x{clip.height}: {FORMS}")
    if mask.all():
        raise UserError(f"mask {text} marks everything of {path}, so that no condition is left: mark a part of it")
    return mask


def _boxes(text: str, size: tuple[int, int], clip: ClipSpec) -> np.ndarray:
    ends = [[float(number) for number in box.split(",")] for box in text.split(":")]
    height, width = size
    for x0, y0, x1, y1 in ends:
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise UserError(
                f"mask {text}: the box must lie in the clip's {width}x{height} pixels, 0 <= x0 < x1 <= {width} and "
                f"0 <= y0 < y1 <= {height}"
            )
    left, top, right, bottom = media.centre_box(height, width, clip.height, clip.width)
    moving_Tx4 = np.linspace(ends[0], ends[-1], clip.frames)
    x0, y0, x1, y1 = ((moving_Tx4 - [left, top, left, top]) / ([right - left, bottom - top] * 2)).T[:, :, None]
    columns, rows = (np.arange(clip.width) + 0.5) / clip.width, (np.arange(clip.height) + 0.5) / clip.height
    return ((rows >= y0) & (rows < y1))[:, :, None] & ((columns >= x0) & (columns < x1))[:, None, :]


def _frames(text: str, path: str, size: tuple[int, int], clip: ClipSpec) -> np.ndarray:
    try:
        height, width = media.display_size(text)
    except media.MediaError as error:
        raise UserError(f"mask {text} cannot be read ({error.reason}); a mask is {FORMS}") from None
    if abs(width * size[0] - height * size[1]) > max(width, height, *size):
        raise UserError(
            f"mask {text} has {width}x{height} pixels, {path} {size[1]}x{size[0]}: give one of the same shape"
        )
    frames = [frame for frame, _ in itertools.islice(media.read_frames(text, clip), clip.frames)]
    frames += frames[-1:] * (clip.frames - len(frames))
    return np.stack(frames).mean(-1) >= 128
