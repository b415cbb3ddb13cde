"""What a painting task keeps of a clip, and how the rest is filled: the regions of COMMIT.

The conditions are those of MAGVIT (arXiv 2212.05199; spec §2.6): a region of a clip is kept, the
rest is filled in pixel space, and the filled clip is tokenized like any other.  Regions are defined
on any grid (t, h, w), pixels and latents alike.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

Grid = tuple[int, int, int]


def _rows(grid: Grid) -> np.ndarray:
    """Middle half of the height, bool (1, h, 1)."""
    index = np.arange(grid[1])
    return ((index >= grid[1] // 4) & (index < grid[1] * 3 // 4))[None, :, None]


def _columns(grid: Grid) -> np.ndarray:
    """Middle half of the width, bool (1, 1, w)."""
    index = np.arange(grid[2])
    return ((index >= grid[2] // 4) & (index < grid[2] * 3 // 4))[None, None, :]


def _window(grid: Grid) -> np.ndarray:
    """A window of half the width that slides from left to right over the clip, bool (t, 1, w)."""
    t, _, w = grid
    start = np.round(np.linspace(0, w // 2, t)).astype(int)[:, None]
    index = np.arange(w)[None]
    return ((index >= start) & (index < start + w // 2))[:, None, :]


def _corner(grid: Grid) -> np.ndarray:
    """The upper left quarter, bool (1, h, w)."""
    rows, columns = np.arange(grid[1]) < grid[1] // 2, np.arange(grid[2]) < grid[2] // 2
    return rows[None, :, None] & columns[None, None, :]


# Name -> which pixels or latents of a grid lie in the region.  "horizontal" is a horizontal band.
_AREAS: dict[str, Callable[[Grid], np.ndarray]] = {
    "horizontal": _rows,
    "vertical": _columns,
    "central": lambda grid: _rows(grid) & _columns(grid),
    "top_left": _corner,
    "dynamic_vertical": _window,
    "dynamic_central": lambda grid: _rows(grid) & _window(grid),
}


def area(region: str, grid: Grid) -> np.ndarray:
    """bool (t, h, w): the named region of a grid.  Outpainting keeps it, inpainting hides it."""
    return np.broadcast_to(_AREAS[region](grid), grid)


def outpaint(video: np.ndarray, region: str) -> np.ndarray:
    """Keeps a region of a clip (T, H, W, C); around it, its edge repeats, or 0 where it moves."""
    kept = area(region, video.shape[:3])
    if region.startswith("dynamic"):
        return np.where(kept[..., None], video, 0).astype(video.dtype)
    rows, columns = np.flatnonzero(kept[0].any(1)), np.flatnonzero(kept[0].any(0))
    nearest_H = np.clip(np.arange(video.shape[1]), rows[0], rows[-1])
    nearest_W = np.clip(np.arange(video.shape[2]), columns[0], columns[-1])
    return video[:, nearest_H][:, :, nearest_W]


def inpaint(video: np.ndarray, region: str) -> np.ndarray:
    """Sets a region of a clip (T, H, W, C) to 0."""
    return np.where(area(region, video.shape[:3])[..., None], 0, video).astype(video.dtype)


def hide(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sets what a mask marks, bool (T, H, W) or (H, W), to 0: inpainting of a region of one's own."""
    return np.where(np.broadcast_to(mask, video.shape[:3])[..., None], 0, video).astype(video.dtype)


def interpolate(video: np.ndarray, frames: int) -> np.ndarray:
    """Keeps `frames` at both ends of a clip (T, H, W, C), between them a linear blend of the nearest.

    The blend is rounded to the nearest integer.
    """
    between = len(video) - 2 * frames
    share = (np.arange(1, between + 1) / (between + 1))[:, None, None, None]
    start, end = video[frames - 1].astype(np.float64), video[-frames].astype(np.float64)
    middle = np.round(start + (end - start) * share).astype(video.dtype)
    return np.concatenate([video[:frames], middle, video[-frames:]])


def hold(video: np.ndarray, frames: int) -> np.ndarray:
    """Keeps the first `frames` of a clip (T, H, W, C); the last of them repeats."""
    return video[np.minimum(np.arange(len(video)), frames - 1)]
