"""Regions of in- and outpainting (COMMIT), and the filling of holes.

The conditions are those of MAGVIT (arXiv 2212.05199; spec §2.6): a region of a clip is kept, the
rest is filled in pixel space, and the filled clip is tokenized like any other.  Regions are defined
on any grid (t, h, w), pixels and latents alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from poet.conditioning.nearest import nearest, opencv

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


def fill(video: np.ndarray, hole: np.ndarray, by: str) -> np.ndarray:
    """A clip uint8 (T, H, W, 3) whose hole, bool (T, H, W) or (H, W), is filled.

    by: 'black', 'grey', 'mean' (of what each frame keeps), 'edge' (the nearest kept pixel of the frame) or 'noise'
    (uniform, the same in every clip).  A frame of which nothing is kept becomes grey.
    """
    hole = np.broadcast_to(hole, video.shape[:3])
    return np.where(hole[..., None], _FILLS[by](video, hole), video).astype(video.dtype)


def _mean(video: np.ndarray, hole: np.ndarray) -> np.ndarray:
    kept = ~hole[..., None]
    count = kept.sum((1, 2), keepdims=True)
    total = (video * kept).sum((1, 2), keepdims=True)
    return np.where(count, np.round(total / np.maximum(count, 1)), GREY)


def _edge(video: np.ndarray, hole: np.ndarray) -> np.ndarray:
    filled = np.full_like(video, GREY)
    for frame, covered, out in zip(video, hole, filled):
        if not covered.all():
            out[:] = frame.reshape(-1, frame.shape[-1])[nearest(covered)]
    return filled


def _noise(video: np.ndarray, hole: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, video.shape)


GREY = 128
_FILLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray | int]] = {
    "black": lambda video, hole: 0,
    "grey": lambda video, hole: GREY,
    "mean": _mean,
    "edge": _edge,
    "noise": _noise,
}


def keep(sampled: np.ndarray, original: np.ndarray, hole: np.ndarray, width: float = 4.0) -> np.ndarray:
    """Clips uint8 (T, H, W, 3): `original` outside the hole bit by bit, `sampled` in it, without a step at its edge.

    Inside, up to `width` pixels from the edge, sampled pixels are shifted by the difference at the nearest pixel
    outside, with a weight that falls to 0. The original pixels of the hole are not used.

    Args:
      hole: bool (T, H, W).
    """
    cv2 = opencv("keeping the given pixels of a painted clip")
    out = np.where(hole[..., None], sampled, original)
    for frame, inside, painted, outside in zip(out, hole, sampled, original):
        if inside.all() or not inside.any():
            continue
        away, labels = cv2.distanceTransformWithLabels(
            inside.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        steps = np.zeros((labels.max() + 1, 3), np.float32)
        steps[labels[~inside]] = outside[~inside].astype(np.float32) - painted[~inside]
        weight = np.clip(1 - away[inside] / (width + 1), 0, 1)[:, None]
        moved = painted[inside] + weight * cv2.blur(steps[labels], (3, 3))[inside]
        frame[inside] = np.clip(np.round(moved), 0, 255)
    return out


def latent_grid(grid: Grid, factor: Grid) -> Grid:
    """Latents (t, h, w) of pixels (T, H, W); the first latent frame holds one frame."""
    return 1 + (grid[0] - 1) // factor[0], grid[1] // factor[1], grid[2] // factor[2]


def whole_cells(kept: np.ndarray, factor: Grid) -> np.ndarray:
    """bool (t, h, w): the latents all of whose pixels are kept, bool (T, H, W)."""
    t, h, w = latent_grid(kept.shape, factor)
    frames = np.stack([kept[part].all(0) for part in _latents(t, factor[0])])
    return frames.reshape(t, h, factor[1], w, factor[2]).all((2, 4))


def _latents(t: int, frames: int) -> list[slice]:
    """The frames of each latent frame."""
    return [slice(0, 1), *(slice(1 + k * frames, 1 + (k + 1) * frames) for k in range(t - 1))]


def hold_in_latents(video: np.ndarray, kept_T: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip (T, H, W, C) in which, within each latent frame, the nearest kept frame replaces the others;
    and bool (t,): latent frames that have a kept frame."""
    t = 1 + (len(video) - 1) // frames
    source, latents = np.arange(len(video)), np.zeros(t, bool)
    for number, part in enumerate(_latents(t, frames)):
        here = source[part]
        kept = here[kept_T[part]]
        latents[number] = kept.size > 0
        if kept.size:
            source[part] = kept[np.abs(here[:, None] - kept).argmin(1)]
    return video[source], latents


def interpolate(video: np.ndarray, frames: int) -> np.ndarray:
    """Keeps `frames` at both ends of a clip (T, H, W, C), between them a linear blend of the nearest.

    The blend is rounded to the nearest integer.
    """
    between = len(video) - 2 * frames
    weight = (np.arange(1, between + 1) / (between + 1))[:, None, None, None]
    start, end = video[frames - 1].astype(np.float64), video[-frames].astype(np.float64)
    middle = np.round(start + (end - start) * weight).astype(video.dtype)
    return np.concatenate([video[:frames], middle, video[-frames:]])


def hold(video: np.ndarray, frames: int) -> np.ndarray:
    """Keeps the first `frames` of a clip (T, H, W, C); the last of them repeats."""
    return video[np.minimum(np.arange(len(video)), frames - 1)]
