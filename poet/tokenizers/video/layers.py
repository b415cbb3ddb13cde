"""Causal 3-D layers: the declaration of their weights, and what they compute.

Shape legend: B batch, T frames, H height, W width, C channels, D output channels, G groups.
Kernels are (t, h, w, in, out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from poet.models.declaration import Initializer, Tree, Weight, fan_in, ones, zeros

CONV_DIMS = ("NDHWC", "DHWIO", "NDHWC")


def conv(
    kernel: int,
    width: int,
    out: int,
    *,
    bias: bool = True,
    shard: bool = True,
    taps: int = 0,
    initializer: Initializer | None = None,
) -> Tree:
    """A convolution of `taps` frames, 0 for a cubic kernel; variance 1 / fan-in unless another `initializer` is given.

    `shard` puts its output channels on the logical axis `conv_out`.
    """
    axes = (None, None, None, "conv_in", "conv_out" if shard else None)
    shape = (taps or kernel, kernel, kernel, width, out)
    tree = {"kernel": Weight(shape, axes, initializer or fan_in(math.prod(shape[:4])))}
    return tree | ({"bias": Weight((out,), (None,), zeros)} if bias else {})


def norm(width: int) -> Tree:
    """Scale and bias of a GroupNorm."""
    return {"scale": Weight((width,), (None,), ones), "bias": Weight((width,), (None,), zeros)}


# ------------------------------------------------------------------------------------- application


class Past:
    """The inputs of causal layers before a clip, or before a later chunk of it, during a trace.

    In front of a clip the first frame is repeated.  In front of a later chunk stand the frames that
    the chunk before left in the same layer, so that chunks give what the whole clip gives.  Layers
    ask in the same order in every chunk.
    """

    def __init__(self, frames: Sequence[jax.Array] | None = None, recompute: bool = False) -> None:
        """`frames` is what `keep` of the chunk before returned; None in front of a clip.

        `recompute` is for training on whole clips: the inside of every residual block is computed
        again in the backward pass instead of being stored, and `keep` is not complete.
        """
        self.first, self.recompute = frames is None, recompute
        self._stored = list(frames or ())
        self._kept: list[jax.Array] = []

    def in_front(self, x_BxTxHxWxC: jax.Array, kernel: int, stride: int) -> jax.Array:
        """The frames that a convolution over time with no padding reads."""
        left = max(kernel - stride, 0)
        if self.first:
            x = _repeat_first(x_BxTxHxWxC, kernel - 1)
        elif left:
            x = jnp.concatenate([self._stored.pop(0), x_BxTxHxWxC], axis=1)
        else:
            x = x_BxTxHxWxC[:, stride - kernel :]
        if left:
            self._kept.append(x[:, x.shape[1] - left :])
        return x

    def keep(self) -> tuple[jax.Array, ...]:
        """The frames that the next chunk needs, after the last layer of this one."""
        if self._stored:
            raise ValueError(f"{len(self._stored)} stored frames were not read: another network's")
        return tuple(self._kept)


def _repeat_first(x_BxTxHxWxC: jax.Array, times: int) -> jax.Array:
    pads = ((0, 0), (times, 0), (0, 0), (0, 0), (0, 0))
    return jnp.pad(x_BxTxHxWxC, pads, mode="edge") if times else x_BxTxHxWxC


def edge_pad(x_BxTxHxWxC: jax.Array, height: int, width: int) -> jax.Array:
    """Replicates edges in space for a kernel of this size: (k-1)//2 before and k//2 behind."""
    rows, columns = (((k - 1) // 2, k // 2) for k in (height, width))
    pads = ((0, 0), (0, 0), rows, columns, (0, 0))
    return jnp.pad(x_BxTxHxWxC, pads, mode="edge") if (height, width) != (1, 1) else x_BxTxHxWxC


def causal_conv(
    x_BxTxHxWxC: jax.Array,
    weights: Tree,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    implementation: str = "",
    past: Past | None = None,
) -> jax.Array:
    """Causal convolution with edge padding; computes and returns in the dtype of `x`.

    Args:
      implementation: "native" (one XLA convolution), "taps" (one matmul per spatial tap, time
        folded into channels) or "" for the choice of `conv_implementation`.
      past: what stands in front of `x`; None: `x` is a whole clip.
    """
    kernel = weights["kernel"].astype(x_BxTxHxWxC.dtype)
    x = (past or Past()).in_front(x_BxTxHxWxC, kernel.shape[0], stride[0])
    padded = edge_pad(x, *kernel.shape[1:3])
    implementation = implementation or conv_implementation(kernel.shape, jax.default_backend())
    run = {"native": _native_conv, "taps": _tap_conv}[implementation]
    y_BxTxHxWxD = run(padded, kernel, stride)
    if "bias" in weights:
        y_BxTxHxWxD += weights["bias"].astype(y_BxTxHxWxD.dtype)
    return y_BxTxHxWxD


def conv_implementation(kernel_shape: tuple[int, ...], backend: str) -> str:
    """Taps on a CPU, 1.4 to 2.5 times as fast there (tests/benchmarks/bench_conv.py); else native.

    Taps compile slowly, which only networks of a few channels would feel.  The choice must not
    depend on the number of frames: codes of a prefix are to be equal bit for bit.
    """
    wide = max(kernel_shape[3:]) >= 32 and kernel_shape[:3] != (1, 1, 1)
    return "taps" if backend == "cpu" and wide else "native"


def _native_conv(padded: jax.Array, kernel: jax.Array, stride: tuple[int, int, int]) -> jax.Array:
    return jax.lax.conv_general_dilated(padded, kernel, stride, "VALID", dimension_numbers=CONV_DIMS)


def _tap_conv(padded: jax.Array, kernel: jax.Array, stride: tuple[int, int, int]) -> jax.Array:
    (kt, kh, kw, _, _), (st, sh, sw) = kernel.shape, stride
    frames, height, width = ((size - k) // s + 1 for size, k, s in zip(padded.shape[1:4], kernel.shape, stride))
    steps = [padded[:, i : i + (frames - 1) * st + 1 : st] for i in range(kt)]
    folded = jnp.concatenate(steps, axis=-1)
    out = 0.0
    for i in range(kh):
        rows = folded[:, :, i : i + (height - 1) * sh + 1 : sh]
        for j in range(kw):
            tap = rows[:, :, :, j : j + (width - 1) * sw + 1 : sw]
            out = out + tap @ kernel[:, i, j].reshape(-1, kernel.shape[-1])
    return out


def standardize(x_BxTxHxWxC: jax.Array, groups: int, epsilon: float = 1e-6) -> jax.Array:
    """GroupNorm without its affine map, statistics per frame (spec §2.4), computed in float32."""
    b, t, h, w, c = x_BxTxHxWxC.shape
    x = x_BxTxHxWxC.astype(jnp.float32).reshape(b, t, h * w, groups, c // groups)
    mean = jnp.mean(x, axis=(2, 4), keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred**2, axis=(2, 4), keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + epsilon)
    return normed.reshape(x_BxTxHxWxC.shape).astype(x_BxTxHxWxC.dtype)


def group_norm(x: jax.Array, weights: Tree, groups: int) -> jax.Array:
    """Per-frame GroupNorm with scale and bias."""
    scale, bias = (weights[name].astype(x.dtype) for name in ("scale", "bias"))
    return standardize(x, groups) * scale + bias


def space_to_depth(x_BxTxHxWxC: jax.Array, factor: tuple[int, int, int], first: bool = True) -> jax.Array:
    """Causal: the first frame is repeated in front, so that 1 + s*k frames become 1 + k.

    A chunk that is not the `first` of its clip has s*k frames, which become k.
    """
    st, sh, sw = factor
    x = _repeat_first(x_BxTxHxWxC, st - 1) if first else x_BxTxHxWxC
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // st, st, h // sh, sh, w // sw, sw, c)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, t // st, h // sh, w // sw, st * sh * sw * c)


def depth_to_space(x_BxTxHxWxC: jax.Array, factor: tuple[int, int, int], first: bool = True) -> jax.Array:
    """Inverse of `space_to_depth`: drops a clip's first s-1 frames: 1 + k become 1 + s*k."""
    st, sh, sw = factor
    b, t, h, w, c = x_BxTxHxWxC.shape
    x = x_BxTxHxWxC.reshape(b, t, h, w, st, sh, sw, c // (st * sh * sw))
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    x = x.reshape(b, t * st, h * sh, w * sw, -1)
    return x[:, st - 1 :] if first else x


def repeat_nearest(x_BxTxHxWxC: jax.Array, factor: tuple[int, int, int], first: bool = True) -> jax.Array:
    """Nearest-neighbour enlargement with the same frame rule as `depth_to_space`."""
    st, sh, sw = factor
    b, t, h, w, c = x_BxTxHxWxC.shape
    x = jnp.broadcast_to(x_BxTxHxWxC[:, :, None, :, None, :, None], (b, t, st, h, sh, w, sw, c))
    x = x.reshape(b, t * st, h * sh, w * sw, c)
    return x[:, st - 1 :] if first else x
