"""Causal 1-D layers: the declaration of their weights, and what they compute.

All padding lies in front and is silence, so that a layer's output never depends on later input.

Weights are equal on all devices of a mesh, which share the batch alone: the paper's network has 8 M.

Shape legend: B batch, T steps, C channels, D output channels.  Kernels are (taps, in, out).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from poet.models.declaration import Tree, Weight, fan_in, ones, zeros


def conv(taps: int, width: int, out: int) -> Tree:
    """A convolution, plain, dilated or strided."""
    return {
        "kernel": Weight((taps, width, out), (None, None, None), fan_in(taps * width)),
        "bias": Weight((out,), (None,), zeros),
    }


def transposed(stride: int, width: int, out: int) -> Tree:
    """A transposed convolution of 2 * stride taps: every output hears two inputs."""
    return {
        "kernel": Weight((2 * stride, width, out), (None, None, None), fan_in(2 * width)),
        "bias": Weight((out,), (None,), zeros),
    }


class Past:
    """The inputs of causal layers before a sound, or before a later chunk of it, during a trace.

    In front of a sound there is silence; in front of a later chunk stand the inputs that the chunk
    before left in the same layer.  Layers ask in the same order in every chunk.
    """

    def __init__(self, stored: Sequence[jax.Array] | None = None) -> None:
        """`stored` is what `keep` of the chunk before returned; None in front of a sound."""
        self._stored = None if stored is None else list(stored)
        self._kept: list[jax.Array] = []

    def in_front(self, x_BxTxC: jax.Array, count: int) -> jax.Array:
        """`x` with `count` steps of the past in front of it."""
        if not count:
            return x_BxTxC
        b, _, c = x_BxTxC.shape
        silence = jnp.zeros((b, count, c), x_BxTxC.dtype)
        before = silence if self._stored is None else self._stored.pop(0)
        x = jnp.concatenate([before, x_BxTxC], axis=1)
        self._kept.append(x[:, x.shape[1] - count :])
        return x

    def keep(self) -> tuple[jax.Array, ...]:
        """The inputs that the next chunk needs, after the last layer of this one."""
        if self._stored:
            raise ValueError(f"{len(self._stored)} stored inputs were not read: another network's")
        return tuple(self._kept)


def _convolve(x_BxTxC: jax.Array, kernel: jax.Array, **options: tuple[int, ...]) -> jax.Array:
    # XLA's own convolution: on a CPU two to four times as fast as matmuls of shifted inputs.
    strides = options.pop("strides", (1,))
    return jax.lax.conv_general_dilated(
        x_BxTxC, kernel, strides, "VALID", dimension_numbers=("NWC", "WIO", "NWC"), **options
    )


def causal_conv(x_BxTxC: jax.Array, weights: Tree, past: Past, dilation: int = 1) -> jax.Array:
    """A convolution of stride 1: (B, T, D)."""
    kernel = weights["kernel"].astype(x_BxTxC.dtype)
    x = past.in_front(x_BxTxC, (kernel.shape[0] - 1) * dilation)
    return _convolve(x, kernel, rhs_dilation=(dilation,)) + weights["bias"].astype(x.dtype)


def downsample(x_BxTxC: jax.Array, weights: Tree, past: Past, stride: int) -> jax.Array:
    """A convolution of 2 * stride taps and this stride; T a multiple of it: (B, T / stride, D)."""
    kernel = weights["kernel"].astype(x_BxTxC.dtype)
    x = past.in_front(x_BxTxC, stride)
    return _convolve(x, kernel, strides=(stride,)) + weights["bias"].astype(x.dtype)


def upsample(x_BxTxC: jax.Array, weights: Tree, past: Past, stride: int) -> jax.Array:
    """A transposed convolution of 2 * stride taps: (B, T * stride, D).

    Taps 0..stride-1 meet the step itself, the others the one before.
    """
    kernel = weights["kernel"].astype(x_BxTxC.dtype)
    x = past.in_front(x_BxTxC, 1)
    width, out = kernel.shape[1:]
    now_last = kernel.reshape(2, stride, width, out)[::-1]
    blocks = _convolve(x, now_last.transpose(0, 2, 1, 3).reshape(2, width, stride * out))
    b, t, _ = blocks.shape
    return blocks.reshape(b, t * stride, out) + weights["bias"].astype(x.dtype)


def residual_unit(width: int) -> Tree:
    """Three taps, then one, both at full width: the reading that gives the paper's sizes (spec §3.1).

    It starts as the identity: without normalisation, 24 units of unit gain would make the first
    output thousands of times as loud as the input.
    """
    pointwise = conv(1, width, width)
    kernel = dataclasses.replace(pointwise["kernel"], initializer=zeros)
    return {"dilated": conv(3, width, width), "pointwise": {**pointwise, "kernel": kernel}}


def apply_residual_unit(x_BxTxC: jax.Array, weights: Tree, past: Past, dilation: int) -> jax.Array:
    """x + pointwise(ELU(dilated(ELU(x))))."""
    h = causal_conv(jax.nn.elu(x_BxTxC), weights["dilated"], past, dilation)
    return x_BxTxC + causal_conv(jax.nn.elu(h), weights["pointwise"], past)


def film(width: int) -> Tree:
    """A scale and a bias for each of two conditions, identity at the start (FiLM, 1709.07871)."""
    return {"scale": Weight((2, width), (None, None), ones), "bias": Weight((2, width), (None, None), zeros)}


def apply_film(x_BxTxC: jax.Array, weights: Tree, condition: jax.Array) -> jax.Array:
    """`condition`: 0 or 1, of shape (B,) or, changing in time, (B, T)."""
    choose = functools.partial(jnp.take, indices=condition.astype(jnp.int32), axis=0)
    scale, bias = (choose(weights[name].astype(x_BxTxC.dtype)) for name in ("scale", "bias"))
    if condition.ndim == 1:
        scale, bias = scale[:, None], bias[:, None]
    return x_BxTxC * scale + bias
