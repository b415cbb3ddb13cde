"""The structure of a clip, as a picture that a video tokenizer takes like any other.

The papers give no constants (VideoPoet, spec §1.4; A16).  A tokenizer keeps lightness best, coarse hues less and
fine hues not at all, so this visualisation follows it:

*   lightness is the depth: near is bright, stretched over each clip, middle grey where it is flat;
*   hue is the optical flow, motion to a frame from the one before it, none at the first: red against blue is
    motion in x, green against purple motion in y; `flow_scale` times the width of a clip and more is the
    strongest hue.  Slow motion counts: hue goes with the square root of the speed;
*   flow has no more detail than the latent grid, depth no more than twice that.
"""

from __future__ import annotations

import numpy as np

from poet.conditioning import networks
from poet.conditioning.nearest import opencv
from poet.spec import ConditioningSpec, UserError
from poet.streams.structure import NO_DEPTH

# Lightness of the farthest and the nearest, and the strongest hue: no channel leaves 0..255.
FAR, NEAR, HUE = 56.0, 200.0, 36.0


def compose(
    video_TxHxWx3: np.ndarray, depth_Txhxw: np.ndarray | None, spec: ConditioningSpec, grid: tuple[int, int, int]
) -> np.ndarray:
    """uint8 (T, H, W, 3) of a clip uint8 (T, H, W, 3).

    Args:
        depth_Txhxw: distances, any size, type and scale; None where the source has none.
        grid: latents (t, h, w) of the clip.

    Raises:
        UserError: `spec.depth` is 'dataset' and there is none, or a network does not fit.
    """
    _, height, width, _ = video_TxHxWx3.shape
    motion = motion_channels(flow(video_TxHxWx3, spec), spec.flow_scale)
    near = depth_channel(_nearness(video_TxHxWx3, depth_Txhxw, spec), (height, width))
    fine = min(2 * grid[1], height), min(2 * grid[2], width)
    coarse = np.stack([_smooth(frame, grid[1:]) for frame in motion])
    lightness = FAR + (NEAR - FAR) * np.stack([_smooth(frame, fine) for frame in near])
    return visualise(lightness, HUE * coarse)


def visualise(lightness_TxHxW: np.ndarray, hues_TxHxWx2: np.ndarray) -> np.ndarray:
    """uint8 (T, H, W, 3): two hues, red against blue and green against purple, that leave lightness alone."""
    x, y = hues_TxHxWx2[..., 0], hues_TxHxWx2[..., 1]
    channels = [lightness_TxHxW + x - y / 2, lightness_TxHxW + y, lightness_TxHxW - x - y / 2]
    return np.clip(np.round(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)


def read(picture_TxHxWx3: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `visualise`: motion in pixels (T, H, W, 2), and nearness (T, H, W), 0 to 1 in each clip."""
    red, green, blue = np.moveaxis(picture_TxHxWx3.astype(np.float64), -1, 0)
    hues = np.stack([(red - blue) / 2, (green - (red + blue) / 2) * 2 / 3], axis=-1) / HUE
    lightness = (red + green + blue) / 3
    motion = np.sign(hues) * hues**2 * scale * picture_TxHxWx3.shape[2]
    return motion, (lightness - FAR) / (NEAR - FAR)


def _smooth(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame (H, W) or (H, W, C) with no more detail than one of `size` (h, w) has."""
    cv2 = opencv("the flow of a clip")
    height, width = frame.shape[:2]
    small = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def flow(video_TxHxWx3: np.ndarray, spec: ConditioningSpec) -> np.ndarray:
    """float32 (T - 1, H, W, 2): motion (x, y) in pixels from each frame to the next.

    OpenCV's DIS in its medium setting (T. Kroeger and others, arXiv 1603.03590), or a network.
    """
    if len(video_TxHxWx3) == 1:
        return np.zeros((0, *video_TxHxWx3.shape[1:3], 2), np.float32)
    if spec.flow != "dis":
        return networks.flow(spec.flow, video_TxHxWx3)
    cv2 = opencv("the flow of a clip")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video_TxHxWx3]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.stack([dis.calc(a, b, None) for a, b in zip(grey, grey[1:])])


def followed(frame_HxWx3: np.ndarray, motion_HxWx2: np.ndarray) -> np.ndarray:
    """float64 [H, W, 3]: the frame where each pixel has moved to, bilinear, its edges repeated."""
    frame, (height, width) = frame_HxWx3.astype(np.float64), frame_HxWx3.shape[:2]
    rows, columns = np.indices((height, width))
    y = np.clip(rows + motion_HxWx2[..., 1], 0, height - 1)
    x = np.clip(columns + motion_HxWx2[..., 0], 0, width - 1)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (y - top)[..., None], (x - left)[..., None]
    upper = frame[top, left] * (1 - across) + frame[top, right] * across
    lower = frame[below, left] * (1 - across) + frame[below, right] * across
    return upper * (1 - down) + lower * down


def motion_channels(flow_NxHxWx2: np.ndarray, scale: float) -> np.ndarray:
    """float32 (N + 1, H, W, 2), still at first: +-1 is `scale` times the width or more, and roots of what is less."""
    still = np.zeros((1, *flow_NxHxWx2.shape[1:]), np.float32)
    whole = np.concatenate([still, flow_NxHxWx2]) / (scale * flow_NxHxWx2.shape[2])
    return (np.sign(whole) * np.sqrt(np.minimum(np.abs(whole), 1))).astype(np.float32)


def depth_channel(nearness_Txhxw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 (T, H, W): stretched to 0..1 over the clip and brought to (H, W), nearest sample."""
    low, high = float(nearness_Txhxw.min()), float(nearness_Txhxw.max())
    if high > low:
        stretched = (nearness_Txhxw - low) / (high - low)
    else:
        stretched = np.full(nearness_Txhxw.shape, 0.5)
    _, h, w = nearness_Txhxw.shape
    rows, columns = (np.arange(n) * own // n for n, own in zip(size, (h, w)))
    return stretched.astype(np.float32)[:, rows][:, :, columns]


def _nearness(video_TxHxWx3: np.ndarray, depth_Txhxw: np.ndarray | None, spec: ConditioningSpec) -> np.ndarray:
    """float32 (T, h, w), larger is nearer."""
    if spec.depth == "flat":
        return np.zeros((len(video_TxHxWx3), 1, 1), np.float32)
    if spec.depth != "dataset":
        return networks.inverse_depth(spec.depth, video_TxHxWx3)
    if depth_Txhxw is None:
        raise UserError(f"this clip comes {NO_DEPTH}")
    return -np.asarray(depth_Txhxw, np.float32)
