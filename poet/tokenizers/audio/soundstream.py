"""SoundStream's causal encoder and decoder (2107.03312; spec §3.1).

Waves are floats in [-1, 1], mono.  Nothing depends on later input and nothing is normalised, so a
sound can be taken in chunks of whole frames that hand the last inputs of every layer to the next
one.  Read from figures and from the parameter counts, not from the text: kernels of 7 in front of
both halves and behind the decoder, 3 behind the encoder; ELU before every convolution but the first.

Shape legend: B batch, S samples, F frames of codes, D latent width, C channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from poet.models import declaration
from poet.models.declaration import Tree
from poet.spec import AudioTokenizerSpec
from poet.tokenizers.audio import layers
from poet.tokenizers.audio.layers import Past

EDGE_TAPS, LATENT_TAPS = 7, 3
# What a chunk hands to the next one; None in front of a sound.
Stored = tuple[jax.Array, ...] | None


def declare(spec: AudioTokenizerSpec) -> Tree:
    """The weights of encoder and decoder (and of the switch), as `declaration.Weight`."""
    tree = {"encoder": _declare_encoder(spec), "decoder": _declare_decoder(spec)}
    return tree | ({"film": layers.film(spec.dim)} if spec.denoise else {})


def init(spec: AudioTokenizerSpec, key: jax.Array) -> Tree:
    """Float32 weights."""
    return declaration.init(declare(spec), key)


def _declare_encoder(spec: AudioTokenizerSpec) -> Tree:
    width, blocks = spec.encoder_channels, []
    tree = {"in": layers.conv(EDGE_TAPS, 1, width)}
    for stride in spec.strides:
        down = layers.conv(2 * stride, width, 2 * width)
        blocks.append({**_declare_units(spec, width), "down": down})
        width *= 2
    return tree | _numbered(blocks) | {"out": layers.conv(LATENT_TAPS, width, spec.dim)}


def _declare_decoder(spec: AudioTokenizerSpec) -> Tree:
    width, blocks = spec.decoder_channels * 2 ** len(spec.strides), []
    tree = {"in": layers.conv(EDGE_TAPS, spec.dim, width)}
    for stride in reversed(spec.strides):
        up = layers.transposed(stride, width, width // 2)
        width //= 2
        blocks.append({"up": up, **_declare_units(spec, width)})
    return tree | _numbered(blocks) | {"out": layers.conv(EDGE_TAPS, width, 1)}


def _numbered(blocks: list[Tree]) -> Tree:
    return {f"block{i}": block for i, block in enumerate(blocks)}


def _declare_units(spec: AudioTokenizerSpec, width: int) -> Tree:
    return {f"unit{i}": layers.residual_unit(width) for i in range(len(spec.dilations))}


def _units(spec: AudioTokenizerSpec, x: jax.Array, block: Tree, past: Past) -> jax.Array:
    for i, dilation in enumerate(spec.dilations):
        x = layers.apply_residual_unit(x, block[f"unit{i}"], past, dilation)
    return x


def encode(
    spec: AudioTokenizerSpec,
    params: Tree,
    wave_BxS: jax.Array,
    condition: jax.Array | None = None,
    stored: Stored = None,
) -> tuple[jax.Array, Stored]:
    """Waves of whole frames -> float32 latents (B, F, D), and what the next chunk needs.

    Args:
      condition: 1 where the network shall take noise away, (B,) or (B, F); read when
        `spec.denoise` is 'encoder'.
    """
    past, weights = Past(stored), params["encoder"]
    x = wave_BxS[..., None].astype(spec.dtype)
    x = layers.causal_conv(x, weights["in"], past)
    for i, stride in enumerate(spec.strides):
        block = weights[f"block{i}"]
        x = _units(spec, x, block, past)
        x = layers.downsample(jax.nn.elu(x), block["down"], past, stride)
    x = layers.causal_conv(jax.nn.elu(x), weights["out"], past).astype(jnp.float32)
    if spec.denoise == "encoder" and condition is not None:
        x = layers.apply_film(x, params["film"], condition)
    return x, past.keep()


def decode(
    spec: AudioTokenizerSpec,
    params: Tree,
    z_BxFxD: jax.Array,
    condition: jax.Array | None = None,
    stored: Stored = None,
) -> tuple[jax.Array, Stored]:
    """Quantized latents -> float32 waves (B, F * hop), not clipped, and what the next chunk needs.

    Args:
      condition: as for `encode`, read when `spec.denoise` is 'decoder'.
    """
    past, weights = Past(stored), params["decoder"]
    x = z_BxFxD
    if spec.denoise == "decoder" and condition is not None:
        x = layers.apply_film(x, params["film"], condition)
    x = layers.causal_conv(x.astype(spec.dtype), weights["in"], past)
    for i, stride in enumerate(reversed(spec.strides)):
        block = weights[f"block{i}"]
        x = layers.upsample(jax.nn.elu(x), block["up"], past, stride)
        x = _units(spec, x, block, past)
    x = layers.causal_conv(jax.nn.elu(x), weights["out"], past)
    return x[..., 0].astype(jnp.float32), past.keep()
