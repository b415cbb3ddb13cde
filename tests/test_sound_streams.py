"""Opus in memory: aligned with what was encoded, near the rate that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from poet.evaluation.codecs import opus
from poet.media.sound_streams import OPUS_RATES_HZ, OpusStream, decode_opus, encode_opus
from poet.spec import UserError

RATE_HZ = 16_000


def voice(samples: int = 34_000, rate_hz: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    """int16: noise in the band of a voice, in syllables."""
    rng = np.random.default_rng(seed)
    band = scipy.signal.butter(2, [200, 2500], "band", fs=rate_hz, output="sos")
    noise = scipy.signal.sosfilt(band, rng.normal(size=samples))
    syllables = np.maximum(0, np.sin(2 * np.pi * 3 * np.arange(samples) / rate_hz)) + 0.05
    return np.round(9000 * noise * syllables).astype(np.int16)


def delay(truth: np.ndarray, other: np.ndarray) -> int:
    """Samples by which `other` is late, where the whole cross-correlation is greatest."""
    correlation = scipy.signal.correlate(other.astype(float), truth.astype(float), method="fft")
    return int(scipy.signal.correlation_lags(len(other), len(truth))[np.argmax(correlation)])


@pytest.mark.parametrize("rate_hz", OPUS_RATES_HZ)
@pytest.mark.parametrize("bit_rate", (6_000, 12_000, 32_000))
def test_decoded_sound_is_aligned(rate_hz: int, bit_rate: int) -> None:
    sound = voice(2 * rate_hz, rate_hz)
    decoded = decode_opus(encode_opus(sound, rate_hz, bit_rate), len(sound))
    assert decoded.dtype == np.int16 and decoded.shape == sound.shape
    assert abs(delay(sound, decoded)) / rate_hz < 2e-4


def test_last_samples_come_through() -> None:
    """A click in the last 2 ms, behind the encoder's look-ahead of 6.5 ms, is heard in its place."""
    sound = np.zeros(RATE_HZ, np.int16)
    sound[-32:] = 12_000
    decoded = decode_opus(encode_opus(sound, RATE_HZ, 64_000), len(sound)).astype(float)
    assert np.abs(decoded[-32:]).max() > 4_000 > 100 > np.abs(decoded[:-800]).max()


@pytest.mark.parametrize("samples", (1, 319, 320, 321, 34_000))
def test_any_length_comes_back(samples: int) -> None:
    stream = encode_opus(voice(samples), RATE_HZ, 12_000)
    # Frames of 20 ms over the sound and the look-ahead (104 samples at 16 kHz).
    assert len(stream.packets) == -(-(samples + 104) // 320) and stream.skip == 312
    assert len(decode_opus(stream, samples)) == samples


def test_floats_are_the_same_sound() -> None:
    sound = voice()
    floats = sound.astype(np.float64) / 32767
    assert encode_opus(floats, RATE_HZ, 12_000) == encode_opus(sound, RATE_HZ, 12_000)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="22050 Hz.*8000, 12000, 16000, 24000, 48000"):
        encode_opus(voice(), 22_050, 6_000)
    with pytest.raises(UserError, match="100 bits per second; give 500"):
        encode_opus(voice(), RATE_HZ, 100)
    with pytest.raises(UserError, match="without samples"):
        encode_opus(np.zeros(0, np.int16), RATE_HZ, 6_000)


# ------------------------------------------------------------------------------- at a bit rate


@pytest.mark.parametrize("bit_rate", (6_000, 12_000))
def test_sounds_get_the_bit_rate_and_little_more(bit_rate: int) -> None:
    sounds = np.stack([voice(seed=seed) for seed in range(3)])
    coded = opus.code_opus(sounds, RATE_HZ, bit_rate)
    streams = [encode_opus(sound, RATE_HZ, coded.asked_for) for sound in sounds]
    bits = 8 * sum(len(packet) for stream in streams for packet in stream.packets)
    assert coded.bits_per_second == pytest.approx(bits / (3 * 34_000 / RATE_HZ))
    assert 1 <= coded.bits_per_second / bit_rate < 1.05
    assert all(delay(*pair) == 0 for pair in zip(sounds, coded.sounds_NxS))


def test_silence_is_coded_below_the_rate() -> None:
    coded = opus.code_opus(np.zeros((1, 34_000), np.int16), RATE_HZ, 12_000)
    assert coded.bits_per_second < 12_000 and not coded.sounds_NxS.any()


def test_more_bits_are_nearer() -> None:
    sounds = voice()[None]
    errors = [
        np.std(opus.code_opus(sounds, RATE_HZ, rate).sounds_NxS - sounds.astype(float))
        for rate in (6_000, 12_000, 32_000)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("late", (-3, 0, 5))
def test_lag_is_found_and_taken_out(late: int) -> None:
    sound = voice(4000)
    moved = opus.shifted(sound, -late)
    assert opus.lag(sound, moved, 8) == late
    back = opus.shifted(moved, late)
    assert np.array_equal(back[8:-8], sound[8:-8])


def test_size_counts_packets_alone() -> None:
    stream = OpusStream(packets=(b"abc", b"de"), header=b"\0" * 19, sample_rate_hz=RATE_HZ)
    assert stream.size_bytes == 5
