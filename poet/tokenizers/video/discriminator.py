"""The StyleGAN-like 3-D critic of tokenizer training and its losses (MAGVIT-v2; spec §2.5).

It sees real and reconstructed clips and gives one logit each: high for real.  Nothing in it is
causal or normalised; convolutions are padded with zeros on all sides.

Shape legend: B clips, T frames, H height, W width, C channels, D output channels, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from poet.models.declaration import Tree, Weight, dense, fan_in, zeros
from poet.spec import DiscriminatorSpec, UserError
from poet.tokenizers.video import layers
from poet.tokenizers.video.layers import conv

RGB = 3
LEAK = 0.2  # StyleGAN's (spec §2.5)
Shape = tuple[int, int, int]


def declare(spec: DiscriminatorSpec, frames: int, height: int, width: int) -> Tree:
    """The weights for clips of this shape, as `declaration.Weight`; under the head 'mean' any fits."""
    channels = [spec.base_channels * m for m in (1, *spec.multipliers)]
    tree: dict[str, Tree] = {"in": conv(3, RGB, channels[0])}
    for i, (narrow, wide) in enumerate(zip(channels, channels[1:])):
        # Widening in the second convolution is the public code's order and StyleGAN2's; the
        # paper's figure widens in the first, at about twice the cost.
        tree[f"block{i}"] = {
            "conv0": conv(3, narrow, narrow),
            "conv1": conv(3, narrow, wide),
            "shortcut": conv(1, narrow, wide, bias=False),
        }
    last = channels[-1]
    features = head_features(spec, (frames, height, width))
    kernel = Weight((last, 1), ("conv_in", None), fan_in(last))
    logit = {"kernel": kernel, "bias": Weight((1,), (None,), zeros)}
    return tree | {"out": conv(3, last, last), "dense": dense(features, last), "logit": logit}


def head_features(spec: DiscriminatorSpec, shape: Shape) -> int:
    """Numbers that the head reads of a clip of (frames, height, width)."""
    last = spec.base_channels * spec.multipliers[-1]
    if spec.head == "mean":
        return last
    return last * math.prod(-(-size // 2 ** len(spec.multipliers)) for size in shape)


def apply(spec: DiscriminatorSpec, params: Tree, video_BxTxHxWx3: jax.Array) -> jax.Array:
    """Clips in [0, 1] -> float32 logits (B,), computed in `spec.dtype`.

    One frame is an image, and any size works; the paper's five blocks want 17 frames or more and
    128 pixels.

    Raises:
      UserError: the head 'flatten' was made for another clip shape.
    """
    return logits(spec, params, video_BxTxHxWx3.astype(spec.dtype))


def logits(spec: DiscriminatorSpec, params: Tree, x_BxTxHxWx3: jax.Array) -> jax.Array:
    """`apply` in the dtype of `x`; its last layer runs in float32 at least."""
    x = _leaky(_conv(x_BxTxHxWx3, params["in"]))
    for i in range(len(spec.multipliers)):
        x = _down(x, params[f"block{i}"])
    x = _conv(x, params["out"])
    x_BxF = jnp.mean(x, axis=(1, 2, 3)) if spec.head == "mean" else x.reshape(x.shape[0], -1)
    _check_features(x_BxF, params, x_BxTxHxWx3.shape)
    hidden_BxD = _leaky(_linear(x_BxF, params["dense"]))
    wide = jnp.promote_types(hidden_BxD.dtype, jnp.float32)
    return _linear(hidden_BxD.astype(wide), params["logit"])[:, 0]


def blur_pool(x_BxTxHxWxC: jax.Array) -> jax.Array:
    """Convolves frames, rows and columns with [1, 2, 1] / 4 and halves them, rounding up.

    Padding is zeros as in a SAME convolution of stride 2: even sizes are padded behind only.  A dim
    of size 1 stays as it is, so an image is blurred in space alone instead of being dimmed by the
    padding around its one frame.
    """
    for dim in (1, 2, 3):
        if x_BxTxHxWxC.shape[dim] > 1:
            x_BxTxHxWxC = _blur(x_BxTxHxWxC, dim)
    return x_BxTxHxWxC


def _blur(x: jax.Array, dim: int) -> jax.Array:
    """One dim as one banded matrix product, whose first and second derivatives are products too."""
    matrix = jnp.asarray(blur_matrix(x.shape[dim]), x.dtype)
    return jnp.moveaxis(jnp.tensordot(matrix, x, (1, dim)), 0, dim)


def blur_matrix(size: int) -> np.ndarray:
    """Float32 (ceil(size / 2), size): rows of [1, 2, 1] / 4, two apart and cut at the ends."""
    outputs = -(-size // 2)
    # Even sizes are padded behind only, so that their windows start at 0; odd ones on both sides.
    centres = 2 * np.arange(outputs) + (size + 1) % 2
    distance = np.abs(np.arange(size) - centres[:, None])
    return np.maximum(2 - distance, 0).astype(np.float32) / 4


def _down(x: jax.Array, weights: Tree) -> jax.Array:
    """Residual block that halves frames, height and width."""
    shortcut = _conv(blur_pool(x), weights["shortcut"])
    y = blur_pool(_leaky(_conv(x, weights["conv0"])))
    y = _leaky(_conv(y, weights["conv1"]))
    return (y + shortcut) * 0.5**0.5


def _conv(x_BxTxHxWxC: jax.Array, weights: Tree) -> jax.Array:
    kernel = weights["kernel"].astype(x_BxTxHxWxC.dtype)
    y_BxTxHxWxD = jax.lax.conv_general_dilated(
        x_BxTxHxWxC, kernel, (1, 1, 1), "SAME", dimension_numbers=layers.CONV_DIMS
    )
    if "bias" in weights:
        y_BxTxHxWxD += weights["bias"].astype(y_BxTxHxWxD.dtype)
    return y_BxTxHxWxD


def _linear(x_BxF: jax.Array, weights: Tree) -> jax.Array:
    return x_BxF @ weights["kernel"].astype(x_BxF.dtype) + weights["bias"].astype(x_BxF.dtype)


def _leaky(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, LEAK)


def _check_features(x_BxF: jax.Array, params: Tree, shape: tuple[int, ...]) -> None:
    expected, found = params["dense"]["kernel"].shape[0], x_BxF.shape[1]
    if expected != found:
        raise UserError(
            f"DISCRIMINATOR.head = 'flatten' was made for {expected} features, and clips of "
            f"(T, H, W) = {shape[1:4]} give {found}: train on one clip shape, or set "
            "DISCRIMINATOR.head = 'mean'"
        )


# ------------------------------------------------------------------------------------------ losses
# Each takes `mesh_axes`: manual mesh axes (inside `jax.shard_map`) over which means are taken too.


def generator_loss(fake_B: jax.Array, mesh_axes: Sequence[str] = ()) -> jax.Array:
    """Non-saturating loss of reconstructions with these logits: -log of "it is real"."""
    return _mean(jax.nn.softplus(-fake_B), mesh_axes)


def discriminator_loss(real_B: jax.Array, fake_B: jax.Array, mesh_axes: Sequence[str] = ()) -> jax.Array:
    """Cross-entropy of telling real clips from reconstructions, summed over the two kinds."""
    return _mean(jax.nn.softplus(-real_B), mesh_axes) + _mean(jax.nn.softplus(fake_B), mesh_axes)


def r1_penalty(critic: Callable[[jax.Array], jax.Array], real: jax.Array, mesh_axes: Sequence[str] = ()) -> jax.Array:
    """Mean over clips of the squared norm of d logit / d pixels at real float clips (B, ...).

    `critic` gives (B,) logits and must not mix clips.  There is no factor 1/2: the weight of 10
    multiplies the squared norm as it is (spec §2.5).
    """
    gradient = jax.grad(lambda clips: jnp.sum(critic(clips)))(real)
    return _mean(jnp.sum(gradient**2, axis=tuple(range(1, gradient.ndim))), mesh_axes)


def lecam(
    real_B: jax.Array, fake_B: jax.Array, ema_real: jax.Array, ema_fake: jax.Array, mesh_axes: Sequence[str] = ()
) -> jax.Array:
    """LeCAM (2104.03310): pulls each kind's logits towards the other kind's running mean."""
    above = _mean(jax.nn.relu(real_B - ema_fake) ** 2, mesh_axes)
    return above + _mean(jax.nn.relu(ema_real - fake_B) ** 2, mesh_axes)


def lecam_update(
    ema_real: jax.Array,
    ema_fake: jax.Array,
    real_B: jax.Array,
    fake_B: jax.Array,
    decay: float,
    mesh_axes: Sequence[str] = (),
) -> tuple[jax.Array, jax.Array]:
    """The running means (real, fake) after this batch; they carry no gradient."""
    means = _mean(real_B, mesh_axes), _mean(fake_B, mesh_axes)
    pairs = zip((ema_real, ema_fake), means)
    real, fake = (decay * ema + (1 - decay) * jax.lax.stop_gradient(mean) for ema, mean in pairs)
    return real, fake


def _mean(values: jax.Array, mesh_axes: Sequence[str]) -> jax.Array:
    mean = jnp.mean(values)
    return jax.lax.pmean(mean, tuple(mesh_axes)) if mesh_axes else mean
