"""SoundStream's discriminators (2107.03312; spec §3.3): three that hear the wave, one its spectrum.

A discriminator maps float waves (B, S) to a list of feature maps, the last of which are its logits;
logits are kept per step, so that sounds of any length can be judged.  Not stated by the paper and
taken from MelGAN (1910.06711), whose wave discriminator it is: kernels 15, 41, 5 and 3, leaky ReLU
of 0.2, average pooling of 4 by 2 between scales; widths of the spectral blocks from public readings.

Shape legend: B batch, S samples, T steps or frames, Q frequencies, C channels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from poet.models.declaration import Tree, Weight, fan_in, zeros
from poet.spec import AudioTrainSpec, UserError
from poet.tokenizers.audio import spectra

LEAK = 0.2
WAVE_EDGE_TAPS, WAVE_TAPS, WAVE_LATE_TAPS, WAVE_LOGIT_TAPS = 15, 41, 5, 3
WAVE_STRIDE, WAVE_GROUP, WAVE_LAYERS = 4, 4, 4
STFT_WINDOW, STFT_HOP, STFT_EDGE = 1024, 256, 7
# (time stride, frequency stride) and width over `stft_channels` of every block.
STFT_BLOCKS = (((1, 2), 1), ((2, 2), 2), ((1, 2), 4), ((2, 2), 4), ((1, 2), 8), ((2, 2), 8))

Features = list[jax.Array]


def declare(spec: AudioTrainSpec) -> Tree:
    """The weights of all discriminators by name: 'wave1', 'wave2', 'wave4' and 'stft'."""
    waves = {name: _declare_wave(spec) for name in _wave_names(spec)}
    return waves | {"stft": _declare_stft(spec)}


def _wave_names(spec: AudioTrainSpec) -> list[str]:
    return [f"wave{2**i}" for i in range(spec.wave_scales)]


def apply(spec: AudioTrainSpec, params: Tree, wave_BxS: jax.Array) -> dict[str, Features]:
    """The activations of every discriminator on the waves, by name; logits last."""
    heard, scale = {}, wave_BxS[..., None]
    for name in _wave_names(spec):
        heard[name] = _apply_wave(params[name], scale)
        scale = _half_rate(scale)
    return heard | {"stft": _apply_stft(params["stft"], wave_BxS)}


def check_samples(samples: int) -> None:
    """Raises UserError for sounds shorter than the window of the spectral discriminator."""
    if samples < STFT_WINDOW:
        raise UserError(
            f"AUDIO_TRAIN.samples = {samples}: the discriminators use windows of {STFT_WINDOW} "
            "samples; take that many or more, or set AUDIO_TRAIN.adversarial_weight = 0"
        )


# -------------------------------------------------------------------------------------------- wave


def _wave_widths(spec: AudioTrainSpec) -> list[int]:
    widths = [spec.wave_channels]
    for _ in range(WAVE_LAYERS):
        widths.append(min(widths[-1] * WAVE_STRIDE, max(spec.wave_channels_max, widths[0])))
    return widths


def _declare_wave(spec: AudioTrainSpec) -> Tree:
    widths = _wave_widths(spec)
    layers = [_conv((WAVE_EDGE_TAPS,), 1, widths[0])]
    for width, out in zip(widths, widths[1:]):
        layers.append(_conv((WAVE_TAPS,), width // _groups(width), out))
    layers.append(_conv((WAVE_LATE_TAPS,), widths[-1], widths[-1]))
    layers.append(_conv((WAVE_LOGIT_TAPS,), widths[-1], 1))
    return {f"layer{i}": layer for i, layer in enumerate(layers)}


def _groups(width: int) -> int:
    return max(width // WAVE_GROUP, 1)


def _apply_wave(params: Tree, x_BxTxC: jax.Array) -> Features:
    features, last = [], len(params) - 1
    for i in range(len(params)):
        weights = params[f"layer{i}"]
        grouped = 1 <= i <= WAVE_LAYERS
        groups = _groups(x_BxTxC.shape[-1]) if grouped else 1
        x_BxTxC = _convolve(x_BxTxC, weights, (WAVE_STRIDE if grouped else 1,), groups)
        x_BxTxC = x_BxTxC if i == last else jax.nn.leaky_relu(x_BxTxC, LEAK)
        features.append(x_BxTxC)
    return features


def _half_rate(x_BxTxC: jax.Array) -> jax.Array:
    """Means of 4 steps, every second one."""
    x = jnp.pad(x_BxTxC, ((0, 0), (1, 2), (0, 0)))
    steps = (x_BxTxC.shape[1] + 1) // 2
    return sum(x[:, i : i + 2 * steps - 1 : 2] for i in range(4)) / 4


# ------------------------------------------------------------------------------------------ spectrum


def _declare_stft(spec: AudioTrainSpec) -> Tree:
    width = spec.stft_channels
    tree = {"in": _conv((STFT_EDGE, STFT_EDGE), 2, width)}
    for i, ((time, frequency), multiple) in enumerate(STFT_BLOCKS):
        out = multiple * spec.stft_channels
        tree[f"block{i}"] = {
            "plain": _conv((3, 3), width, width),
            "strided": _conv((time + 2, frequency + 2), width, out),
            "skip": _conv((1, 1), width, out),
        }
        width = out
    rest = STFT_WINDOW // 2 // math.prod(frequency for (_, frequency), _ in STFT_BLOCKS)
    return tree | {"out": _conv((1, rest), width, 1)}


def _apply_stft(params: Tree, wave_BxS: jax.Array) -> Features:
    spectrum = spectra.stft(wave_BxS, STFT_WINDOW, STFT_HOP)[..., : STFT_WINDOW // 2]
    x = jnp.stack([spectrum.real, spectrum.imag], axis=-1)
    x = jax.nn.leaky_relu(_convolve(x, params["in"]), LEAK)
    features = [x]
    for i, (stride, _) in enumerate(STFT_BLOCKS):
        block = params[f"block{i}"]
        h = jax.nn.leaky_relu(_convolve(x, block["plain"]), LEAK)
        h = _convolve(h, block["strided"], stride)
        x = jax.nn.leaky_relu(h + _convolve(x, block["skip"], stride), LEAK)
        features.append(x)
    return [*features, _convolve(x, params["out"], padding="VALID")]


# ---------------------------------------------------------------------------------------- convolution


def _conv(taps: tuple[int, ...], width: int, out: int) -> Tree:
    shape = (*taps, width, out)
    return {
        "kernel": Weight(shape, (None,) * len(shape), fan_in(math.prod(taps) * width)),
        "bias": Weight((out,), (None,), zeros),
    }


def _convolve(
    x: jax.Array, weights: Tree, stride: tuple[int, ...] = (), groups: int = 1, padding: str = "SAME"
) -> jax.Array:
    """A convolution in one or two dims, channels last."""
    kernel, dims = weights["kernel"].astype(x.dtype), x.ndim - 2
    stride = stride or (1,) * dims
    if groups > 1 and jax.default_backend() == "cpu":
        y = _grouped_matmul(x, kernel, stride[0], groups)
    else:
        names = ("NWC", "WIO", "NWC") if dims == 1 else ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, stride, padding, dimension_numbers=names, feature_group_count=groups
        )
    return y + weights["bias"].astype(x.dtype)


def _grouped_matmul(x_BxTxC: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """The same as a batch of matmuls: on a CPU its gradient is several times as fast as XLA's."""
    (b, t, _), (taps, width, out) = x_BxTxC.shape, kernel.shape
    steps = -(-t // stride)
    missing = max((steps - 1) * stride + taps - t, 0)
    x = jnp.pad(x_BxTxC, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))
    heard = jnp.stack([x[:, i : i + (steps - 1) * stride + 1 : stride] for i in range(taps)], axis=2)
    columns = heard.reshape(b * steps, taps, groups, width).transpose(2, 0, 1, 3)
    weights = kernel.reshape(taps, width, groups, -1).transpose(2, 0, 1, 3)
    y = jnp.einsum(
        "gpk,gko->gpo", columns.reshape(groups, b * steps, taps * width), weights.reshape(groups, taps * width, -1)
    )
    return y.transpose(1, 0, 2).reshape(b, steps, out)


# -------------------------------------------------------------------------------------------- losses


def generator_loss(fake: dict[str, Features]) -> jax.Array:
    """Hinge loss of reconstructions, averaged over steps and discriminators."""
    return _average([jnp.mean(jax.nn.relu(1 - f[-1])) for f in fake.values()])


def critic_loss(real: dict[str, Features], fake: dict[str, Features]) -> jax.Array:
    """Hinge loss of telling sounds from reconstructions, averaged likewise."""
    return _average(
        [jnp.mean(jax.nn.relu(1 - real[name][-1])) + jnp.mean(jax.nn.relu(1 + fake[name][-1])) for name in real]
    )


def feature_loss(real: dict[str, Features], fake: dict[str, Features]) -> jax.Array:
    """Mean absolute difference of all feature maps but the logits, over layers and discriminators."""
    return _average(
        [
            _average([jnp.mean(jnp.abs(f - jax.lax.stop_gradient(r))) for r, f in pairs])
            for pairs in (list(zip(real[name][:-1], fake[name][:-1])) for name in real)
        ]
    )


def _average(values: list[jax.Array]) -> jax.Array:
    return sum(values) / len(values)
