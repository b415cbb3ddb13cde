"""SoundStream's network: the paper's sizes, causality, and layers against float64 oracles."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from poet.models import declaration
from poet.spec import AudioTokenizerSpec, ClipSpec, config
from poet.tokenizers.audio import layers, soundstream
from poet.tokenizers.audio.layers import Past

TINY = AudioTokenizerSpec(strides=(2, 3), encoder_channels=4, decoder_channels=4, dim=6, levels=3, codes=8)


@functools.cache
def params(spec: AudioTokenizerSpec = TINY) -> declaration.Tree:
    with jax.ensure_compile_time_eval():
        return jax.jit(functools.partial(soundstream.init, spec))(jax.random.key(0))


encode = jax.jit(soundstream.encode, static_argnums=0)
decode = jax.jit(soundstream.decode, static_argnums=0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "encoder, decoder, millions",
    [(32, 32, 8.4), (16, 16, 2.4), (16, 32, 5.5), (8, 32, 4.8), (32, 16, 5.3), (32, 8, 4.4)],
)
def test_parameter_counts_are_those_of_the_papers_table(encoder: int, decoder: int, millions: float) -> None:
    spec = AudioTokenizerSpec(encoder_channels=encoder, decoder_channels=decoder)
    assert round(declaration.count(soundstream.declare(spec)) / 1e6, 1) == millions


def test_shipped_sizes_resolve() -> None:
    full = config.load(["gin/models/soundstream.gin"], []).audio_tokenizer
    assert full.hop == 320 and full.sample_rate_hz // full.hop == 50
    wide = config.load(["gin/models/soundstream_24k.gin"], []).audio_tokenizer
    assert wide.hop == 480 and wide.sample_rate_hz // wide.hop == 50


def test_a_clip_of_17_frames_has_106_frames_of_codes() -> None:
    assert ClipSpec().samples == 34_000
    assert AudioTokenizerSpec().frames(34_000) == 106
    assert AudioTokenizerSpec().frames(1) == 1


# ---------------------------------------------------------------------------------------- causality


def test_latents_and_samples_never_change_with_what_comes_later() -> None:
    wave = noise(1, 60)
    changed = wave.copy()
    changed[:, 36:] = noise(1, 24, seed=1)
    encode = jax.jit(lambda x: soundstream.encode(TINY, params(), x)[0])
    before, after = np.asarray(encode(wave)), np.asarray(encode(changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 1e-3

    latents = noise(1, 10, 6)
    other = latents.copy()
    other[:, 7:] += 1
    decode = jax.jit(lambda z: soundstream.decode(TINY, params(), z)[0])
    before, after = np.asarray(decode(latents)), np.asarray(decode(other))
    np.testing.assert_array_equal(before[:, : 7 * TINY.hop], after[:, : 7 * TINY.hop])
    assert np.abs(before - after)[:, 7 * TINY.hop :].max() > 1e-3


@pytest.mark.parametrize("cut", (*(pytest.param(cut, marks=pytest.mark.slow) for cut in (1, 9)), 4))
def test_two_chunks_give_what_the_whole_gives(cut: int) -> None:
    wave = noise(2, 10 * TINY.hop)
    whole, _ = encode(TINY, params(), wave)
    first, stored = encode(TINY, params(), wave[:, : cut * TINY.hop])
    second, _ = encode(TINY, params(), wave[:, cut * TINY.hop :], stored=stored)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, atol=2e-6)

    sound, _ = decode(TINY, params(), whole)
    first, stored = decode(TINY, params(), whole[:, :cut])
    second, _ = decode(TINY, params(), whole[:, cut:], stored=stored)
    np.testing.assert_allclose(np.concatenate([first, second], 1), sound, atol=2e-6)


# ------------------------------------------------------------------------------------------- layers


def arrays(tree: declaration.Tree) -> dict[str, np.ndarray]:
    drawn = declaration.init(tree, jax.random.key(1))
    return {k: np.asarray(v) + noise(*v.shape, seed=2) * 0.1 for k, v in drawn.items()}


@pytest.mark.parametrize("dilation", [1, 3])
def test_causal_convolution_by_definition(dilation: int) -> None:
    weights, x = arrays(layers.conv(3, 4, 5)), noise(2, 11, 4)
    found = layers.causal_conv(x, weights, Past(), dilation)
    expected = np.zeros((2, 11, 5)) + np.float64(weights["bias"])
    for t in range(11):
        for tap in range(3):
            source = t - (2 - tap) * dilation
            if source >= 0:
                expected[:, t] += np.float64(x[:, source]) @ np.float64(weights["kernel"][tap])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_downsampling_by_definition() -> None:
    weights, x, stride = arrays(layers.conv(6, 4, 5)), noise(2, 12, 4), 3
    found = layers.downsample(x, weights, Past(), stride)
    padded = np.pad(np.float64(x), ((0, 0), (stride, 0), (0, 0)))
    expected = np.stack([np.einsum("btc,tcd->bd", padded[:, i : i + 6], weights["kernel"]) for i in (0, 3, 6, 9)], 1)
    np.testing.assert_allclose(found, expected + weights["bias"], rtol=1e-4, atol=1e-5)


def test_upsampling_adds_every_inputs_taps_where_they_fall() -> None:
    weights, x, stride = arrays(layers.transposed(3, 4, 5)), noise(2, 4, 4), 3
    found = layers.upsample(x, weights, Past(), stride)
    expected = np.zeros((2, 18, 5))
    for t in range(4):
        for tap in range(6):
            expected[:, t * stride + tap] += np.float64(x[:, t]) @ weights["kernel"][tap]
    np.testing.assert_allclose(found, expected[:, :12] + weights["bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_the_switch_changes_nothing_at_first_and_only_where_it_is_set(side: str) -> None:
    spec = TINY.replace(denoise=side)
    weights = dict(params(spec))
    off, on = np.zeros(2, np.int32), np.array([0, 1])

    def run(switch: np.ndarray | None, weights: declaration.Tree) -> np.ndarray:
        z, _ = encode(spec, weights, noise(2, 60), switch)
        return np.asarray(decode(spec, weights, z, switch)[0])

    np.testing.assert_array_equal(run(off, weights), run(on, weights))
    film = {"scale": np.array(weights["film"]["scale"]), "bias": weights["film"]["bias"]}
    film["scale"][1] *= 2
    weights["film"] = film
    np.testing.assert_array_equal(run(on, weights)[0], run(off, weights)[0])
    assert np.abs(run(on, weights)[1] - run(off, weights)[1]).max() > 1e-4
    in_time = np.stack([np.zeros(10, np.int32), np.ones(10, np.int32)])
    np.testing.assert_allclose(run(in_time, weights), run(on, weights), atol=1e-6)
