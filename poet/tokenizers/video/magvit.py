"""MAGVIT-v2's causal 3-D encoder and decoder (2310.05737, fig. and appendix; spec §2.2-2.4).

Pixels are floats in [0, 1], channels last.  A clip has 1 + k*factor frames; its first frame is
encoded and decoded independently of the rest, and no frame depends on a later one.  So a long clip
can be taken in chunks: the first has 1 + k*factor frames, later ones k*factor, and each hands the
last inputs of its convolutions to the next, so that chunks give what the whole clip gives.

Shape legend: B batch, T H W pixels, t h w latents, K bits, C channels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from poet.models import declaration
from poet.models.declaration import Tree
from poet.spec import VideoTokenizerSpec
from poet.tokenizers.video import layers, lfq
from poet.tokenizers.video.layers import Past, causal_conv, conv, group_norm, norm

RGB = 3
Factor = tuple[int, int, int]
# Frames that a chunk hands to the next, None in front of a clip: a different tree, so that jit
# compiles the first chunk and the later ones each by themselves.
Frames = tuple[jax.Array, ...] | None


def declare(spec: VideoTokenizerSpec) -> Tree:
    """The weights of encoder and decoder, as `declaration.Weight`."""
    return {"encoder": _declare_encoder(spec), "decoder": _declare_decoder(spec)}


def init(spec: VideoTokenizerSpec, key: jax.Array) -> Tree:
    """Float32 weights."""
    return declaration.init(declare(spec), key)


def widths(spec: VideoTokenizerSpec) -> list[int]:
    """Channels of every level, finest first."""
    return [spec.base_channels * m for m in spec.multipliers]


def level_factors(spec: VideoTokenizerSpec) -> list[Factor]:
    """Downsampling (t, h, w) between each level and the next coarser one."""
    return [(2 if temporal else 1, 2, 2) for temporal in spec.temporal_downsample]


def stem_channels(spec: VideoTokenizerSpec) -> int:
    t, h, w = spec.stem
    return RGB * t * h * w


def temporal_taps(spec: VideoTokenizerSpec, kernel: int) -> int:
    """Frames that a convolution of this spatial kernel spans."""
    return kernel if spec.temporal_kernel == 3 else min(kernel, spec.temporal_kernel)


def _conv(spec: VideoTokenizerSpec, kernel: int, width: int, out: int, **options: Any) -> Tree:
    return conv(kernel, width, out, taps=temporal_taps(spec, kernel), **options)


def _declare_blocks(spec: VideoTokenizerSpec, first: int, width: int) -> Tree:
    ins = [first] + [width] * (spec.blocks - 1)
    return {f"block{i}": _declare_block(spec, w, width) for i, w in enumerate(ins)}


def _declare_block(spec: VideoTokenizerSpec, width: int, out: int) -> Tree:
    """Residual block: (norm, swish, conv) twice, unbiased; 1x1 shortcut if the width changes."""
    shortcut = {"shortcut": conv(1, width, out, bias=False)} if width != out else {}
    return shortcut | {
        "norm0": norm(width),
        "conv0": _conv(spec, 3, width, out, bias=False),
        "norm1": norm(out),
        "conv1": _conv(spec, 3, out, out, bias=False),
    }


def _declare_encoder(spec: VideoTokenizerSpec) -> Tree:
    channels = widths(spec)
    tree: dict[str, Tree] = {"in": _conv(spec, spec.stem_kernel, stem_channels(spec), channels[0])}
    for i, width in enumerate(channels):
        tree[f"level{i}"] = _declare_blocks(spec, channels[max(i - 1, 0)], width)
        if i + 1 < len(channels):
            tree[f"down{i}"] = _conv(spec, spec.down_kernel, width, width)
    tree["mid"] = _declare_blocks(spec, channels[-1], channels[-1])
    tree["norm"] = norm(channels[-1])
    return tree | {"out": conv(1, channels[-1], spec.bits, shard=False)}


def _declare_decoder(spec: VideoTokenizerSpec) -> Tree:
    tree = _declare_features(spec, spec.bits)
    tree["out"] = _conv(spec, spec.stem_kernel, widths(spec)[0], stem_channels(spec), shard=False)
    if spec.fine:
        tree["fine"] = _declare_fine(spec.fine, widths(spec)[0])
    return tree


def _declare_fine(spec: VideoTokenizerSpec, inputs: int) -> Tree:
    """It starts at zero: beside a trained first decoder, training starts at the pictures of that."""
    width, out = widths(spec)[0], stem_channels(spec)
    last = _conv(spec, spec.stem_kernel, width, out, shard=False, initializer=declaration.zeros)
    return _declare_features(spec, inputs) | {"out": last}


def _declare_features(spec: VideoTokenizerSpec, inputs: int) -> Tree:
    """A decoder of maps of `inputs` channels, up to its last norm."""
    channels, factors = widths(spec), level_factors(spec)
    tree: dict[str, Tree] = {"in": _conv(spec, 3, inputs, channels[-1])}
    tree["mid"] = _declare_blocks(spec, channels[-1], channels[-1])
    for i in reversed(range(len(channels))):
        above = channels[min(i + 1, len(channels) - 1)]
        tree[f"adagn{i}"] = declaration.dense(spec.bits, 2 * above)
        tree[f"level{i}"] = _declare_blocks(spec, above, channels[i])
        if i:
            t, h, w = factors[i - 1]
            tree[f"up{i}"] = _conv(spec, spec.up_kernel, channels[i], channels[i] * t * h * w)
    return tree | {"norm": norm(channels[0])}


# ------------------------------------------------------------------------------------- application


def encode(spec: VideoTokenizerSpec, params: Tree, x_BxTxHxWx3: jax.Array) -> jax.Array:
    """Pixels in [0, 1] -> float32 latents (B, t, h, w, K), before the quantizer."""
    return _encode(spec, params, x_BxTxHxWx3, Past())


def encode_chunk(
    spec: VideoTokenizerSpec, params: Tree, x_BxTxHxWx3: jax.Array, frames: Frames
) -> tuple[jax.Array, Frames]:
    """`encode` of the next chunk of a clip; `frames` is what the chunk before returned with it."""
    past = Past(frames)
    return _encode(spec, params, x_BxTxHxWx3, past), past.keep()


def _encode(spec: VideoTokenizerSpec, params: Tree, x_BxTxHxWx3: jax.Array, past: Past) -> jax.Array:
    weights = params["encoder"]
    x = layers.space_to_depth(x_BxTxHxWx3.astype(spec.dtype), spec.stem, past.first)
    x = causal_conv(x, weights["in"], past=past)
    for i, factor in enumerate([*level_factors(spec), None]):
        x = _blocks(spec, x, weights[f"level{i}"], past)
        if factor:
            x = causal_conv(x, weights[f"down{i}"], stride=factor, past=past)
    x = _blocks(spec, x, weights["mid"], past)
    z = causal_conv(_normed(spec, x, weights["norm"]), weights["out"], past=past)
    return z.astype(jnp.float32)


def decode_chunk(
    spec: VideoTokenizerSpec, params: Tree, q_BxtxhxwxK: jax.Array, frames: Frames
) -> tuple[jax.Array, Frames]:
    """Corner codes of the next chunk of a clip -> float32 pixels (B, T, H, W, 3), not clipped to [0, 1].

    `frames` is what the chunk before returned with them.
    """
    past = Past(frames)
    return _decode(spec, params, q_BxtxhxwxK, past), past.keep()


def _decode(spec: VideoTokenizerSpec, params: Tree, q_BxtxhxwxK: jax.Array, past: Past) -> jax.Array:
    weights, q = params["decoder"], q_BxtxhxwxK.astype(spec.dtype)
    x, enlarged = _features(spec, q, q, weights, past, (1, 1, 1))
    pixels = _pixels(spec, x, weights, past)
    if spec.fine:
        x, _ = _features(spec.fine, x, q, weights["fine"], past, enlarged)
        pixels += _pixels(spec.fine, x, weights["fine"], past)
    return pixels.astype(jnp.float32)


def _features(
    spec: VideoTokenizerSpec, x: jax.Array, q_BxtxhxwxK: jax.Array, weights: Tree, past: Past, enlarged: Factor
) -> tuple[jax.Array, Factor]:
    """A decoder from `x`, `enlarged` times the latent grid, to its last norm -> (features, their enlargement)."""
    factors = level_factors(spec)
    x = _blocks(spec, causal_conv(x, weights["in"], past=past), weights["mid"], past)
    for i in reversed(range(len(spec.multipliers))):
        gamma, beta = _affine(q_BxtxhxwxK, weights[f"adagn{i}"], enlarged, past.first)
        x = layers.standardize(x, spec.norm_groups) * (1 + gamma) + beta
        x = _blocks(spec, x, weights[f"level{i}"], past)
        if i:
            x = causal_conv(x, weights[f"up{i}"], past=past)
            x = layers.depth_to_space(x, factors[i - 1], past.first)
            enlarged = tuple(e * f for e, f in zip(enlarged, factors[i - 1]))
    return _normed(spec, x, weights["norm"]), enlarged


def _pixels(spec: VideoTokenizerSpec, features: jax.Array, weights: Tree, past: Past) -> jax.Array:
    return layers.depth_to_space(causal_conv(features, weights["out"], past=past), spec.stem, past.first)


def reconstruct(
    spec: VideoTokenizerSpec, params: Tree, x_BxTxHxWx3: jax.Array, recompute: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pixels -> (reconstruction, latents before the quantizer, ids (B, t, h, w) int32).

    `recompute` lowers the memory of a gradient for more computation; see `layers.Past`.
    """
    z = _encode(spec, params, x_BxTxHxWx3, Past(recompute=recompute))
    q, ids = lfq.quantize(z)
    return _decode(spec, params, q, Past(recompute=recompute)), z, ids


def _normed(spec: VideoTokenizerSpec, x: jax.Array, weights: Tree) -> jax.Array:
    return jax.nn.silu(group_norm(x, weights, spec.norm_groups))


def _blocks(spec: VideoTokenizerSpec, x: jax.Array, weights: Tree, past: Past) -> jax.Array:
    for i in range(spec.blocks):
        block = weights[f"block{i}"]
        if past.recompute:
            x = jax.checkpoint(lambda x, block: _block(spec, x, block, Past()))(x, block)
        else:
            x = _block(spec, x, block, past)
    return x


def _block(spec: VideoTokenizerSpec, x: jax.Array, weights: Tree, past: Past) -> jax.Array:
    y = causal_conv(_normed(spec, x, weights["norm0"]), weights["conv0"], past=past)
    y = causal_conv(_normed(spec, y, weights["norm1"]), weights["conv1"], past=past)
    return y + (causal_conv(x, weights["shortcut"], past=past) if "shortcut" in weights else x)


def _affine(q: jax.Array, weights: Tree, enlarged: Factor, first: bool) -> tuple[jax.Array, jax.Array]:
    """Gamma and beta of AdaGN, both linear in the nearest latent's code.

    The linear map runs on the latent grid and its result is enlarged, which is the same thing.
    """
    affine = q @ weights["kernel"].astype(q.dtype) + weights["bias"].astype(q.dtype)
    gamma, beta = jnp.split(layers.repeat_nearest(affine, enlarged, first), 2, axis=-1)
    return gamma, beta
