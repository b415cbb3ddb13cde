"""Opus streams in memory: the codec that audio tokenizers are compared with.

Sound is mono, int16 or floats in [-1, 1], (S,) at a sample rate in Hz.  Packets stand without a
container, so that their bytes are the codec's own.
"""

from __future__ import annotations

import dataclasses
import fractions
import struct
from collections.abc import Iterator

import av
import numpy as np

from poet.media.sound import place, resample, to_int16
from poet.spec import UserError

# Sample rates that an Opus encoder takes, and the one that its decoders write (RFC 6716, 2.1.3).
OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)
DECODED_RATE_HZ = 48_000
# Bits per second that libopus takes for one channel.
OPUS_BIT_RATES = range(500, 256_001)
# The encoder's own defaults, written out so that they are known: variable bit rate, the highest
# effort, and frames as long as those of a tokenizer at 50 Hz.
OPUS_OPTIONS = {"application": "audio", "vbr": "on", "compression_level": "10", "frame_duration": "20"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpusStream:
    """Packets of one sound, and what a decoder must know.

    Attributes:
      header: identification header (RFC 7845, 5.1); holds the samples to skip at the start.
      sample_rate_hz: of the sound that was encoded.
    """

    packets: tuple[bytes, ...]
    header: bytes
    sample_rate_hz: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the packets: no container and no header."""
        return sum(map(len, self.packets))

    @property
    def skip(self) -> int:
        """Samples at 48 kHz that the decoder drops: how long the encoder looks ahead."""
        return struct.unpack_from("<H", self.header, 10)[0]


def encode_opus(samples_S: np.ndarray, sample_rate_hz: int, bit_rate: int) -> OpusStream:
    """Encodes a sound at about `bit_rate` bits per second; the rate varies with the sound.

    Raises:
      UserError: a sample rate or bit rate that Opus does not take, or no samples.
      ValueError: a wrong shape or dtype.
    """
    sound = to_int16(samples_S)
    _check(len(sound), sample_rate_hz, bit_rate)
    context = av.CodecContext.create("libopus", "w")
    context.sample_rate, context.layout, context.format = sample_rate_hz, "mono", "s16"
    context.bit_rate, context.options = int(bit_rate), dict(OPUS_OPTIONS)
    context.open()
    header = bytes(context.extradata)
    stream = OpusStream(packets=(), header=header, sample_rate_hz=sample_rate_hz)
    # Silence after the end pushes the last samples through the encoder's look-ahead.
    ahead = -(-stream.skip * sample_rate_hz // DECODED_RATE_HZ)
    frame = context.frame_size
    padded = np.pad(sound, (0, ahead + -(len(sound) + ahead) % frame))
    packets = [bytes(p) for f in _frames(padded, frame, sample_rate_hz) for p in context.encode(f)]
    packets += [bytes(packet) for packet in context.encode(None)]
    # Flushing may add a packet of nothing but silence.
    return dataclasses.replace(stream, packets=tuple(packets[: len(padded) // frame]))


def decode_opus(stream: OpusStream, samples: int) -> np.ndarray:
    """int16 (samples,) at the stream's sample rate, aligned with what was encoded.

    The look-ahead is skipped, as the header asks; what remains, the phase of the codec's own
    filters, is less than a fifth of a millisecond.
    """
    # FFmpeg's own decoder: its output lies nearer in time to the input than libopus's.
    context = av.CodecContext.create("opus", "r")
    context.sample_rate, context.layout = DECODED_RATE_HZ, "mono"
    context.extradata = stream.header
    frames = [f for packet in stream.packets for f in context.decode(av.Packet(packet))]
    frames += context.decode(None)
    decoded = to_int16(np.concatenate([frame.to_ndarray()[0] for frame in frames]))
    return place(resample(decoded, DECODED_RATE_HZ, stream.sample_rate_hz), 0, samples)


def _frames(sound_S: np.ndarray, size: int, rate_hz: int) -> Iterator[av.AudioFrame]:
    """Mono frames of `size` samples, the last one shorter where they do not divide the sound."""
    for start in range(0, len(sound_S), max(size, 1)):
        piece = np.ascontiguousarray(sound_S[None, start : start + size])
        frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate_hz, start
        frame.time_base = fractions.Fraction(1, rate_hz)
        yield frame


def _check(samples: int, sample_rate_hz: int, bit_rate: int) -> None:
    if sample_rate_hz not in OPUS_RATES_HZ:
        raise UserError(
            f"Opus does not take sound at {sample_rate_hz} Hz; it takes "
            f"{', '.join(map(str, OPUS_RATES_HZ))} Hz: convert the rate first"
        )
    if int(bit_rate) not in OPUS_BIT_RATES:
        raise UserError(
            f"Opus does not take {bit_rate} bits per second; give {OPUS_BIT_RATES.start} to {OPUS_BIT_RATES.stop - 1}"
        )
    if not samples:
        raise UserError("a sound without samples cannot be encoded: give one sample at least")
