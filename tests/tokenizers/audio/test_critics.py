"""Spectra and discriminators: direct transforms in float64, widths of the paper, losses by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.models import declaration
from poet.spec import AudioTrainSpec, UserError
from poet.tokenizers.audio import critics, spectra

TINY = AudioTrainSpec(wave_scales=2, wave_channels=4, wave_channels_max=16, stft_channels=2)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.float32(0.1 * np.random.default_rng(seed).normal(size=shape))


@functools.cache
def params() -> declaration.Tree:
    with jax.ensure_compile_time_eval():
        return jax.jit(functools.partial(declaration.init, critics.declare(TINY)))(jax.random.key(0))


loss_of_reconstruction = jax.jit(functools.partial(spectra.reconstruction_loss, sample_rate_hz=16_000))


# ------------------------------------------------------------------------------------------ spectra


@pytest.mark.parametrize("window, hop", [(64, 16), (1024, 256)])
def test_stft_is_the_transform_of_every_window(window: int, hop: int) -> None:
    x = noise(2, 2000)
    found = np.asarray(spectra.stft(x, window, hop))
    assert found.shape == (2, 1 + (2000 - window) // hop, window // 2 + 1)
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    basis = np.exp(-2j * np.pi * np.outer(n, np.arange(window // 2 + 1)) / window)
    for t in (0, 1, found.shape[1] - 1):
        frame = np.float64(x[:, t * hop : t * hop + window]) * hann / hann.sum()
        np.testing.assert_allclose(found[:, t], frame @ basis, atol=1e-6)


def test_a_sine_has_half_its_amplitude_in_its_band() -> None:
    t = np.arange(8000) / 16_000
    x = np.float32(0.5 * np.sin(2 * np.pi * 1000 * t))[None]
    spectrum = np.abs(np.asarray(spectra.stft(x, 1024, 256)))[0]
    assert np.all(spectrum.argmax(-1) == 64)
    np.testing.assert_allclose(spectrum.max(-1), 0.25, rtol=1e-3)


def test_mel_bands_overlap_to_one_between_the_outermost_peaks() -> None:
    matrix = spectra.mel_matrix(2048, 16_000)
    assert matrix.shape == (1025, 64)
    inside = matrix[matrix.argmax(0)[0] : matrix.argmax(0)[-1] + 1].sum(1)
    np.testing.assert_allclose(inside, 1.0, atol=0.05)
    peaks = np.linspace(0, 8000, 1025)[matrix.argmax(0)]
    assert np.all(np.diff(peaks) > 0) and 20 < peaks[0] < 40 and 7300 < peaks[-1] < 7900


def test_reconstruction_loss_is_zero_for_equals_and_grows_with_the_difference() -> None:
    x, other = noise(2, 4096), noise(2, 4096, seed=1)
    losses = [float(loss_of_reconstruction(x + a * other, x)) for a in (0, 0.1, 1)]
    assert losses[0] < 1e-3 and losses[0] < losses[1] < losses[2]


def test_reconstruction_loss_has_a_gradient_in_silence() -> None:
    silent = jnp.zeros((1, 4096))
    gradient = jax.jit(jax.grad(loss_of_reconstruction))(silent, noise(1, 4096))
    assert np.isfinite(gradient).all()


def test_reconstruction_loss_by_its_formula() -> None:
    ours, theirs = noise(1, 64), noise(1, 64, seed=2)
    # 64 samples: one window of 64, s / 2 = 32.
    mels = [np.float64(spectra.mel(x, 64, 16_000))[0, 0] for x in (ours, theirs)]
    logs = [np.log(np.maximum(m, 1e-5)) for m in mels]
    expected = np.abs(mels[0] - mels[1]).mean() + 32**0.5 * np.sqrt(((logs[0] - logs[1]) ** 2).mean())
    found = loss_of_reconstruction(ours, theirs)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# ----------------------------------------------------------------------------------- discriminators


def test_the_papers_wave_discriminator_counted_by_hand() -> None:
    declared = critics.declare(AudioTrainSpec())
    assert sorted(declared) == ["stft", "wave1", "wave2", "wave4"]
    # Widths 16, 64, 256, 1024, 1024; groups of 4 inputs; kernels 15, 41, 5 and 3.
    expected = (15 * 16 + 16) + sum(41 * 4 * out + out for out in (64, 256, 1024, 1024))
    expected += (5 * 1024 * 1024 + 1024) + (3 * 1024 + 1)
    assert declaration.count(declared["wave1"]) == expected
    assert declared["stft"]["out"]["kernel"].shape == (1, 8, 256, 1)


def test_feature_maps_have_the_strides_of_the_paper() -> None:
    made = declaration.shapes(critics.declare(TINY))
    heard = jax.eval_shape(functools.partial(critics.apply, TINY), made, noise(2, 4096))
    assert [f.shape[1] for f in heard["wave1"]] == [4096, 1024, 256, 64, 16, 16, 16]
    assert [f.shape[1] for f in heard["wave2"]][:3] == [2048, 512, 128]
    frames = 1 + (4096 - 1024) // 256
    assert heard["stft"][0].shape == (2, frames, 512, 2)
    assert heard["stft"][-2].shape[2:] == (8, 16) and heard["stft"][-1].shape[2:] == (1, 1)


def test_grouped_convolution_equals_xlas() -> None:
    x, kernel = noise(2, 50, 8), noise(41, 4, 32, seed=1)
    found = critics._grouped_matmul(x, kernel, 4, 2)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (4,), "SAME", feature_group_count=2, dimension_numbers=("NWC", "WIO", "NWC")
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_losses_by_hand() -> None:
    real = {"a": [np.array([1.0, 3.0]), np.array([2.0, -1.0])], "b": [np.zeros(4), np.array([0.5])]}
    fake = {"a": [np.array([0.0, 1.0]), np.array([0.5, -3.0])], "b": [np.ones(4), np.array([-2.0])]}
    # Hinge: a: mean(0, 2) + mean(1.5, 0); b: 0.5 + 0.
    np.testing.assert_allclose(critics.critic_loss(real, fake), ((1 + 0.75) + 0.5) / 2)
    np.testing.assert_allclose(critics.generator_loss(fake), ((0.5 + 4) / 2 + 3) / 2)
    np.testing.assert_allclose(critics.feature_loss(real, fake), (1.5 + 1.0) / 2)


def test_feature_matching_teaches_the_generator_alone() -> None:
    def loss(wave: jax.Array) -> jax.Array:
        real = critics.apply(TINY, params(), wave)
        return critics.feature_loss(real, critics.apply(TINY, params(), jnp.asarray(noise(1, 2048))))

    assert float(jnp.abs(jax.jit(jax.grad(loss))(jnp.asarray(noise(1, 2048, seed=1)))).max()) == 0.0


def test_excerpts_shorter_than_a_window_are_refused() -> None:
    with pytest.raises(UserError, match="AUDIO_TRAIN.samples = 640.*1024"):
        critics.check_samples(640)
