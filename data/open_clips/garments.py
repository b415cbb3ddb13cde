"""Moving Fashion-MNIST: tinted garments drift over a coloured ground and bounce off its border.

Everything is drawn on a canvas a few times finer than the clip and averaged, so that motion is not
tied to whole pixels.

Shape legend: N images, T frames, S side of the fine canvas, M side of a clip.
"""

from __future__ import annotations

import colorsys
import gzip
import pathlib

import numpy as np
from PIL import Image

CLIP_FRAMES = 17
FINENESS = 4
IMAGES_FILE, LABELS_FILE = (
    f"usr/share/datasets/fashion-mnist/train-{kind}.gz" for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)
# Garments and their speed in parts of the clip's side: 28-40 and 0.5-4 pixels of 64.
SIDES, SPEEDS = (28 / 64, 40 / 64), (0.5 / 64, 4 / 64)
KINDS = ("T-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
HUES = ("red", "orange", "yellow", "green", "turquoise", "blue", "violet", "pink")
# Middle of each named hue on the circle of hues.
_HUE_VALUES = (0.0, 0.08, 0.15, 0.34, 0.48, 0.62, 0.76, 0.9)


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file (MNIST's format).

    Raises:
      ValueError: it holds another type, or not as many bytes as its head says.
    """
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, offset=4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path} holds {len(values)} bytes for an array of {tuple(shape)}")
    return values.reshape(shape)


def garment_clip(
    images_Nx28x28: np.ndarray, labels_N: np.ndarray, size: int, seed: tuple[int, int]
) -> tuple[np.ndarray, str]:
    """uint8 (17, size, size, 3) of two or three garments, and its caption."""
    draw = np.random.default_rng(seed)
    canvas = size * FINENESS
    ground_hue = int(draw.integers(len(HUES)))
    ground_SxSx3 = _ground(ground_hue, canvas, draw)
    frames_TxSxSx3 = np.repeat(ground_SxSx3[None], CLIP_FRAMES, axis=0)
    words = []
    for index in draw.choice(len(labels_N), draw.integers(2, 4), replace=False):
        hue = int(draw.integers(len(HUES)))
        _paint(frames_TxSxSx3, images_Nx28x28[index], _color(hue, 0.5, 1.0, draw), draw)
        words.append(f"a {HUES[hue]} {KINDS[labels_N[index]]}")
    video = frames_TxSxSx3.reshape(CLIP_FRAMES, size, FINENESS, size, FINENESS, 3).mean((2, 4))
    caption = f"{', '.join(words[:-1])} and {words[-1]} drift over a {HUES[ground_hue]} ground"
    return np.round(video).astype(np.uint8), caption.replace("a orange", "an orange")


def bouncing(start: float, speed: float, span: float, frames: int) -> np.ndarray:
    """Places in [0, span] of a point that starts there and is reflected at both ends."""
    way = start + speed * np.arange(frames)
    return span - np.abs(way % (2 * span) - span)


def _color(hue: int, low: float, high: float, draw: np.random.Generator) -> np.ndarray:
    """RGB in 0..255 of a named hue; its value is drawn from [low, high)."""
    value, saturation = draw.uniform(low, high), draw.uniform(0.3, 0.9)
    return 255 * np.array(colorsys.hsv_to_rgb(_HUE_VALUES[hue], saturation, value), np.float32)


def _ground(hue: int, canvas: int, draw: np.random.Generator) -> np.ndarray:
    """float32 (canvas, canvas, 3): a slope between two colours of a hue, with soft patches."""
    dark, light = _color(hue, 0.1, 0.5, draw), _color(hue, 0.3, 0.8, draw)
    patches = Image.fromarray(draw.random((6, 6), np.float32))
    patches = np.asarray(patches.resize((canvas, canvas), Image.Resampling.BICUBIC))
    angle, line = draw.uniform(0, 2 * np.pi), np.linspace(-0.5, 0.5, canvas, dtype=np.float32)
    slope = 0.5 + np.cos(angle) * line[:, None] + np.sin(angle) * line[None]
    share = np.clip(0.6 * slope + 0.4 * patches, 0, 1)[..., None]
    return (dark + share * (light - dark)).astype(np.float32)


def _paint(frames_TxSxSx3: np.ndarray, image_28x28: np.ndarray, color: np.ndarray, draw: np.random.Generator) -> None:
    """Draws a garment into every frame, over what is there; its brightness is its opacity too."""
    frames, canvas = frames_TxSxSx3.shape[:2]
    side = round(canvas * draw.uniform(*SIDES))
    image = Image.fromarray(image_28x28).resize((side, side), Image.Resampling.BICUBIC)
    shade = np.asarray(image, np.float32)[..., None] / 255
    # Bright parts cover what is behind them; dark ones, the ground of the photograph, do not.
    cover = np.clip(3 * shade, 0, 1)
    angle, speed = draw.uniform(0, 2 * np.pi), canvas * draw.uniform(*SPEEDS)
    span = canvas - side
    starts = draw.uniform(0, span, 2)
    tops, lefts = (
        np.round(bouncing(start, speed * part, span, frames)).astype(int)
        for start, part in zip(starts, (np.sin(angle), np.cos(angle)))
    )
    for frame_SxSx3, top, left in zip(frames_TxSxSx3, tops, lefts):
        part = frame_SxSx3[top : top + side, left : left + side]
        part += cover * (shade * color - part)
