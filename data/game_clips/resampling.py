"""Exact resampling: the 8 Hz clock over 35 tics a second, area-resized frames, 16 kHz sound.

Frames and sound are filtered with integer weights held in floating-point matrices. Every partial
sum is an integer that the type holds exactly, so results do not depend on BLAS, on its threads or
on the machine, and a data set is reproducible to the bit.

Shape legend: T frames, H/W source rows/columns, M resized side, C colours, N samples.
"""

from __future__ import annotations

import functools
import math

import numpy as np

TIC_RATE_HZ = 35  # Doom's game clock
FRAME_RATE_HZ = 8
ENGINE_SAMPLE_RATE_HZ = 22_050
SAMPLE_RATE_HZ = 16_000
SAMPLES_PER_TIC = ENGINE_SAMPLE_RATE_HZ // TIC_RATE_HZ

_UP, _DOWN = 320, 441  # 16,000 / 22,050 in lowest terms
_HALF_TAPS = 32  # one-sided filter length in source samples
_COEFFICIENT_SCALE = 1 << 20


def tics_of_step(step: int) -> int:
    """Game tics that step number `step` lasts, so that n steps last floor(n * 35 / 8) tics."""
    return (step + 1) * TIC_RATE_HZ // FRAME_RATE_HZ - step * TIC_RATE_HZ // FRAME_RATE_HZ


@functools.cache
def _area_weights_MxH(target: int, source: int) -> tuple[np.ndarray, int]:
    """Integer overlaps of target and source pixels, and the sum of each row."""
    unit = math.gcd(target, source)
    edges_out = np.arange(target + 1) * (source // unit)
    edges_in = np.arange(source + 1) * (target // unit)
    low = np.maximum(edges_out[:-1, None], edges_in[None, :-1])
    high = np.minimum(edges_out[1:, None], edges_in[None, 1:])
    return np.maximum(high - low, 0).astype(np.float32), source // unit


def area_resize(frame_HxHxC: np.ndarray, size: int) -> np.ndarray:
    """Resizes a square uint8 frame to `size` x `size` by averaging the area of each pixel."""
    side, _, channels = frame_HxHxC.shape
    weights_MxH, total = _area_weights_MxH(size, side)
    rows_MxWxC = (weights_MxH @ frame_HxHxC.reshape(side, -1).astype(np.float32)).reshape(size, side, channels)
    rows_CMxW = rows_MxWxC.transpose(2, 0, 1).reshape(channels * size, side)
    sums_CxMxM = (rows_CMxW @ weights_MxH.T).reshape(channels, size, size)
    # Half a unit before truncation rounds to nearest; quotients lie far enough from integers.
    mean_CxMxM = (sums_CxMxM + total * total // 2 + 0.25) * np.float32(1 / (total * total))
    return np.ascontiguousarray(mean_CxMxM.transpose(1, 2, 0).astype(np.uint8))


def point_resize(image_HxH: np.ndarray, size: int) -> np.ndarray:
    """Takes the centre sample of each target pixel: a depth of the scene, never a mix of two."""
    side = image_HxH.shape[0]
    centres = (2 * np.arange(size) + 1) * side // (2 * size)
    return image_HxH[np.ix_(centres, centres)]


@functools.cache
def _polyphase_weights() -> np.ndarray:
    """Filter bank of shape (441 + 2 * half, 320): a block of sources to a block of outputs.

    A Hann-windowed sinc with its cut-off at 0.92 of the lower Nyquist rate. Each output's
    coefficients are integers that sum to `_COEFFICIENT_SCALE`, so a constant stays a constant.
    """
    taps = np.arange(_DOWN + 2 * _HALF_TAPS)[:, None] - _HALF_TAPS
    distance = taps - np.arange(_UP)[None, :] * (_DOWN / _UP)
    cutoff = 0.92 * _UP / _DOWN
    window = np.where(np.abs(distance) < _HALF_TAPS, np.cos(np.pi * distance / (2 * _HALF_TAPS)) ** 2, 0.0)
    taper = np.sinc(cutoff * distance) * window
    bank = np.round(taper / taper.sum(0) * _COEFFICIENT_SCALE)
    nearest = np.abs(distance).argmin(0), np.arange(_UP)
    bank[nearest] += _COEFFICIENT_SCALE - bank.sum(0)
    return bank


def resample_audio(audio_N: np.ndarray) -> np.ndarray:
    """Converts mono integer sound from 22,050 Hz to 16,000 Hz int16, without delay.

    Returns ceil(N * 320 / 441) samples; output n is the sound at time n / 16,000 s.
    """
    if not len(audio_N):
        return np.zeros(0, np.int16)
    outputs = -(-len(audio_N) * _UP // _DOWN)
    blocks = -(-outputs // _UP)
    padded = np.zeros(blocks * _DOWN + 2 * _HALF_TAPS)
    padded[_HALF_TAPS : _HALF_TAPS + len(audio_N)] = audio_N
    windows = np.lib.stride_tricks.sliding_window_view(padded, _DOWN + 2 * _HALF_TAPS)[::_DOWN]
    sums = (windows @ _polyphase_weights()).reshape(-1)[:outputs]
    samples = (sums + _COEFFICIENT_SCALE // 2) // _COEFFICIENT_SCALE
    return np.clip(samples, -32_768, 32_767).astype(np.int16)
