"""Spectra of waves: short-time Fourier transforms and mel bands, differentiable.

Shape legend: B batch, S samples, T frames, Q frequencies, M mel bands.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

MEL_BANDS = 64
# Windows 2^6 .. 2^11 (spec §3.3).
WINDOWS = (64, 128, 256, 512, 1024, 2048)
# Below this a band counts as silent: 1e-5 of full scale.
FLOOR = 1e-5


def stft(wave_BxS: jax.Array, window: int, hop: int) -> jax.Array:
    """Complex (B, T, window // 2 + 1) of Hann windows; T = 1 + (S - window) // hop, no padding.

    Scaled by the sum of the window, so that a sine of amplitude 1 has magnitude 1/2.
    """
    b, s = wave_BxS.shape
    count = 1 + (s - window) // hop
    # Windows of several hops: as many shifted copies, laid side by side.
    per_window = window // hop
    blocks = wave_BxS[:, : (count - 1 + per_window) * hop].reshape(b, -1, hop)
    frames = jnp.concatenate([blocks[:, i : i + count] for i in range(per_window)], axis=-1)
    shape = np.hanning(window + 1)[:-1].astype(np.float32)
    return jnp.fft.rfft(frames * (shape / shape.sum()), axis=-1)


def mel(wave_BxS: jax.Array, window: int, sample_rate_hz: int) -> jax.Array:
    """Magnitudes (B, T, 64) in mel bands, hop a quarter of the window."""
    spectrum = stft(wave_BxS, window, window // 4)
    # Below FLOOR, but enough for a gradient where there is silence.
    magnitude = jnp.sqrt(spectrum.real**2 + spectrum.imag**2 + FLOOR**2 / 100)
    return magnitude @ mel_matrix(window, sample_rate_hz)


@functools.lru_cache
def mel_matrix(window: int, sample_rate_hz: int, bands: int = MEL_BANDS) -> np.ndarray:
    """float32 (Q, M): triangles on the HTK mel scale from 0 Hz to half the sample rate, peak 1.

    A short window has fewer frequencies than bands; a band between two of them weighs none.
    """

    def to_mel(hz: np.ndarray) -> np.ndarray:
        return 2595.0 * np.log10(1.0 + hz / 700.0)

    frequencies = np.linspace(0, sample_rate_hz / 2, window // 2 + 1)
    corners = 700.0 * (10 ** (np.linspace(0, to_mel(sample_rate_hz / 2), bands + 2) / 2595.0) - 1.0)
    low, peak, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, None] - low) / (peak - low)
    falling = (high - frequencies[:, None]) / (high - peak)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def reconstruction_loss(output_BxS: jax.Array, target_BxS: jax.Array, sample_rate_hz: int) -> jax.Array:
    """L1 of mel magnitudes plus sqrt(s/2) times L2 of their logarithms, at windows s = 2^6..2^11.

    The paper sums over frames and windows; here norms are root means over bands and everything is
    a mean over frames and windows, so that the weight does not depend on the length of a sound.
    Windows longer than the sounds are skipped.
    """
    windows = [s for s in WINDOWS if s <= target_BxS.shape[1]]
    losses = [_mel_distance(output_BxS, target_BxS, s, sample_rate_hz) for s in windows]
    return sum(losses) / len(losses)


def _mel_distance(output: jax.Array, target: jax.Array, window: int, rate_hz: int) -> jax.Array:
    ours, theirs = mel(output, window, rate_hz), mel(target, window, rate_hz)
    linear = jnp.mean(jnp.abs(ours - theirs))
    logs = (jnp.log(jnp.maximum(x, FLOOR)) for x in (ours, theirs))
    difference = jnp.subtract(*logs)
    norm = jnp.sqrt(jnp.mean(difference**2, axis=-1) + 1e-12)
    return linear + (window / 2) ** 0.5 * jnp.mean(norm)
