"""ResNet-50 (1512.03385, in torchvision's arrangement) and the distance of its ImageNet logits.

The distance is the tokenizer papers' perceptual loss (spec §2.5): L2 between the logits of two
images, each resized to 224 x 224.  Nobody's weights come with this project; the user brings them.
A norm at rest is an affine map, so it is folded into the convolution before it.

Shape legend: N images, H height, W width, C channels, K classes.  Kernels are (h, w, in, out).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from poet.checkpoints.weights import check_arrays
from poet.spec import UserError

SIDE = 224
CLASSES = 1000
BLOCKS = (3, 4, 6, 3)
# Of the training images in [0, 1], with which torchvision's weights were trained.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORM_EPSILON = 1e-5
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
HOW_TO_CONVERT = (
    "where torchvision is installed: from safetensors.torch import save_file; "
    'save_file(torchvision.models.resnet50(weights="IMAGENET1K_V1").state_dict(), '
    '"resnet50.safetensors")'
)

Params = Mapping[str, Mapping[str, jax.Array]]


def load(path: str) -> Params:
    """Reads a safetensors file with torchvision's tensor names.

    Raises:
      UserError: no path, no such file, or the tensors of another network.
    """
    if not path:
        raise UserError(
            "the perceptual network resnet50 comes without weights: set "
            f"TOKENIZER_TRAIN.perceptual_path to a safetensors file, made {HOW_TO_CONVERT}"
        )
    return jax.tree.map(jnp.asarray, fold(read(Path(path).expanduser(), tensor_shapes())))


def read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The named tensors in float32; UserError where one is missing, has another shape or is not finite."""
    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            names = set(stored.keys())
            tensors = {name: stored.get_tensor(name) for name in shapes if name in names}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; make it {HOW_TO_CONVERT}") from error
    for name, shape in shapes.items():
        found = tensors[name].shape if name in tensors else "no such tensor"
        if found != shape:
            raise UserError(
                f"{path} is not torchvision's ResNet-50: {name} should be {shape}, found {found}; "
                f"make it {HOW_TO_CONVERT}"
            )
    check_arrays(tensors, tensors, str(path))
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def tensor_shapes(blocks: tuple[int, ...] = BLOCKS, classes: int = CLASSES) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the network uses; kernels are (out, in, h, w)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for conv, norm, shape in _convolutions(blocks):
        shapes[f"{conv}.weight"] = shape
        shapes |= {f"{norm}.{part}": shape[:1] for part in NORM_PARTS}
    width = 256 * 2 ** (len(blocks) - 1)
    return shapes | {"fc.weight": (classes, width), "fc.bias": (classes,)}


def _convolutions(blocks: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(convolution, the norm after it, kernel shape) of the stem and of every bottleneck block."""
    yield "conv1", "bn1", (64, 3, 7, 7)
    width = 64
    for stage, count in enumerate(blocks):
        inner, out = 64 * 2**stage, 256 * 2**stage
        for i in range(count):
            block = f"layer{stage + 1}.{i}"
            yield f"{block}.conv1", f"{block}.bn1", (inner, width, 1, 1)
            yield f"{block}.conv2", f"{block}.bn2", (inner, inner, 3, 3)
            yield f"{block}.conv3", f"{block}.bn3", (out, inner, 1, 1)
            if i == 0:
                yield f"{block}.downsample.0", f"{block}.downsample.1", (out, width, 1, 1)
            width = out


def fold(tensors: Mapping[str, np.ndarray], blocks: tuple[int, ...] = BLOCKS) -> dict[str, dict[str, np.ndarray]]:
    """Torchvision's tensors -> {layer: {kernel (h, w, in, out), bias}}, norms folded in."""
    params = {}
    for conv, norm, _ in _convolutions(blocks):
        gain, bias, mean, variance = (tensors[f"{norm}.{part}"] for part in NORM_PARTS)
        scale = gain / np.sqrt(variance + NORM_EPSILON)
        kernel = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale
        params[conv] = {"kernel": kernel, "bias": bias - mean * scale}
    return params | {"fc": {"kernel": tensors["fc.weight"].T, "bias": tensors["fc.bias"]}}


def distance(params: Params, a_NxHxWx3: jax.Array, b_NxHxWx3: jax.Array, blocks: tuple[int, ...] = BLOCKS) -> jax.Array:
    """Mean squared difference of logits, float32 (N,), of images in [0, 1]."""
    a_NxK, b_NxK = (logits(params, prepare(images), blocks) for images in (a_NxHxWx3, b_NxHxWx3))
    return jnp.mean((a_NxK - b_NxK) ** 2, axis=-1)


def prepare(images_NxHxWx3: jax.Array) -> jax.Array:
    """Images in [0, 1] of any size -> the network's input, 224 x 224, bilinear."""
    shape = (images_NxHxWx3.shape[0], SIDE, SIDE, 3)
    resized = jax.image.resize(images_NxHxWx3.astype(jnp.float32), shape, "bilinear")
    return (resized - jnp.array(MEAN)) / jnp.array(DEVIATION)


def logits(params: Params, x_NxHxWx3: jax.Array, blocks: tuple[int, ...] = BLOCKS) -> jax.Array:
    """Normalised images -> (N, K)."""
    x = _max_pool(jax.nn.relu(_conv(x_NxHxWx3, params["conv1"], 2)))
    for stage, count in enumerate(blocks):
        for i in range(count):
            x = _block(x, params, f"layer{stage + 1}.{i}", 2 if stage and not i else 1)
    return jnp.mean(x, axis=(1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]


def _block(x: jax.Array, params: Params, name: str, stride: int) -> jax.Array:
    """Bottleneck; its 3 x 3 convolution strides (not the first 1 x 1, as in the paper)."""
    y = jax.nn.relu(_conv(x, params[f"{name}.conv1"]))
    y = jax.nn.relu(_conv(y, params[f"{name}.conv2"], stride))
    y = _conv(y, params[f"{name}.conv3"])
    if f"{name}.downsample.0" in params:
        x = _conv(x, params[f"{name}.downsample.0"], stride)
    return jax.nn.relu(x + y)


def _conv(x: jax.Array, weights: Mapping[str, jax.Array], stride: int = 1) -> jax.Array:
    pad = weights["kernel"].shape[0] // 2
    y = jax.lax.conv_general_dilated(
        x, weights["kernel"], (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + weights["bias"]


def _max_pool(x: jax.Array) -> jax.Array:
    """3 x 3, stride 2, padded by one."""
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)
