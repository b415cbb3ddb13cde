"""The structure of a clip, as three channels that a video tokenizer takes like any picture.

Red and green are the optical flow in x and y, blue is the depth (VideoPoet, spec §1.4; A16).  The
papers give no constants; ours are

*   flow: motion to a frame from the one before it, zero at the first; `flow_scale` times the width
    of a clip and more is white, as much in the other direction black, no motion 128;
*   depth: inverse, so that near is bright, stretched to 0..255 over each clip, 128 where it is flat.
"""

from __future__ import annotations

import numpy as np

from poet.conditioning import networks
from poet.specs import ConditioningSpec, UserError

CENTRE = 128


def compose(
    video_TxHxWx3: np.ndarray, depth_Txhxw: np.ndarray | None, spec: ConditioningSpec
) -> np.ndarray:
    """uint8 (T, H, W, 3) of a clip uint8 (T, H, W, 3).

    Args:
        depth_Txhxw: distances, any size, type and scale; None where the source has none.

    Raises:
        UserError: `spec.depth` is 'dataset' and there is none, or a network does not fit.
    """
    motion = motion_channels(flow(video_TxHxWx3, spec), spec.flow_scale)
    depth = depth_channel(_nearness(video_TxHxWx3, depth_Txhxw, spec), video_TxHxWx3.shape[1:3])
    return np.concatenate([motion, depth[..., None]], axis=-1)


def flow(video_TxHxWx3: np.ndarray, spec: ConditioningSpec) -> np.ndarray:
    """float32 (T - 1, H, W, 2): motion (x, y) in pixels from each frame to the next.

    OpenCV's DIS in its medium setting (T. Kroeger and others, arXiv 1603.03590), or a network.
    """
    if spec.flow != "dis":
        return networks.flow(spec.flow, video_TxHxWx3)
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video_TxHxWx3]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.stack([dis.calc(a, b, None) for a, b in zip(grey, grey[1:])])


def motion_channels(flow_NxHxWx2: np.ndarray, scale: float) -> np.ndarray:
    """uint8 (N + 1, H, W, 2): 128 is no motion, 128 +- 127 is `scale` times the width or more."""
    still = np.zeros_like(flow_NxHxWx2[:1])
    whole = np.concatenate([still, flow_NxHxWx2]) / (scale * flow_NxHxWx2.shape[2])
    return np.round(CENTRE + 127 * np.clip(whole, -1, 1)).astype(np.uint8)


def depth_channel(nearness_Txhxw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (T, H, W): stretched to 0..255 over the clip and brought to (H, W), nearest sample."""
    low, high = float(nearness_Txhxw.min()), float(nearness_Txhxw.max())
    if high > low:
        stretched = np.round((nearness_Txhxw - low) * (255 / (high - low)))
    else:
        stretched = np.full(nearness_Txhxw.shape, CENTRE)
    _, h, w = nearness_Txhxw.shape
    rows, columns = (np.arange(n) * own // n for n, own in zip(size, (h, w)))
    return stretched.astype(np.uint8)[:, rows][:, :, columns]


def _nearness(
    video_TxHxWx3: np.ndarray, depth_Txhxw: np.ndarray | None, spec: ConditioningSpec
) -> np.ndarray:
    """float32 (T, h, w), larger is nearer."""
    if spec.depth == "flat":
        return np.zeros((len(video_TxHxWx3), 1, 1), np.float32)
    if spec.depth != "dataset":
        return networks.inverse_depth(spec.depth, video_TxHxWx3)
    if depth_Txhxw is None:
        raise UserError(NO_DEPTH)
    return -np.asarray(depth_Txhxw, np.float32)


NO_DEPTH = (
    "this clip comes without depth, which stylization takes: set CONDITIONING.depth to the ONNX file "
    "of a depth network (MiDaS, Depth-Anything), or to 'flat' to go without"
)
