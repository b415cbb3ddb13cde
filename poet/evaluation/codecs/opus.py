"""Opus at a bit rate, on the sounds that an audio tokenizer is scored on.

Shape suffixes: N sounds, S samples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from poet.media.sound_streams import OPUS_BIT_RATES, OpusStream, decode_opus, encode_opus

# How far a stream may be shifted to meet its original: the phase of the codec's filters is less
# than a fifth of a millisecond.
MOST_LAG_S = 0.0005
TOLERANCE = 0.01
ATTEMPTS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpusCoding:
    """Sounds encoded and decoded by Opus.

    Attributes:
      sounds_NxS: int16, decoded, each shifted by what is left of the codec's delay.
      bits_per_second: of all packets together.
      asked_for: bits per second that the encoder was told.
      lags: samples that each sound was shifted by.
    """

    sounds_NxS: np.ndarray
    bits_per_second: float
    asked_for: int
    lags: tuple[int, ...]


def code_opus(sounds_NxS: np.ndarray, rate_hz: int, bit_rate: int) -> OpusCoding:
    """Codes int16 sounds, each a stream of its own, at `bit_rate` together, or a little above.

    An encoder of variable rate spends less than it is told on sounds that are easy: it is told more
    until it spends the bit rate, so that it is not scored below the rate in its name.

    Raises:
      UserError: a sample rate or bit rate that Opus does not take.
    """
    streams, asked_for = at_rate(sounds_NxS, rate_hz, bit_rate)
    samples = sounds_NxS.shape[1]
    decoded = [decode_opus(stream, samples) for stream in streams]
    most = round(MOST_LAG_S * rate_hz)
    lags = [lag(*pair, most) for pair in zip(sounds_NxS, decoded)]
    return OpusCoding(
        sounds_NxS=np.stack([shifted(*pair) for pair in zip(decoded, lags)]),
        bits_per_second=spent(streams, samples, rate_hz),
        asked_for=asked_for,
        lags=tuple(lags),
    )


def at_rate(sounds_NxS: np.ndarray, rate_hz: int, bit_rate: int) -> tuple[list[OpusStream], int]:
    """The streams of the fewest bits, among those tried, that have at least `bit_rate`, and what
    was asked for.  Where twice the bit rate is not enough, as on silence, what nearly that gives.
    """
    low = max(bit_rate // 2, OPUS_BIT_RATES.start)
    high = min(2 * bit_rate, OPUS_BIT_RATES.stop - 1)
    ask, least = bit_rate, math.inf
    enough: tuple[list[OpusStream], int] | None = None
    for _ in range(ATTEMPTS):
        tried = [encode_opus(sound, rate_hz, ask) for sound in sounds_NxS], ask
        rate = spent(tried[0], sounds_NxS.shape[1], rate_hz)
        if rate < bit_rate:
            low, short = ask, tried
        else:
            high = ask
            if rate < least:
                enough, least = tried, rate
            if rate <= bit_rate * (1 + TOLERANCE):
                break
        ask = (low + high) // 2
    return enough or short


def spent(streams: Sequence[OpusStream], samples: int, rate_hz: int) -> float:
    """Bits per second of sound."""
    return 8 * sum(stream.size_bytes for stream in streams) * rate_hz / (samples * len(streams))


def lag(truth_S: np.ndarray, other_S: np.ndarray, most: int) -> int:
    """By how many samples `other` is late, within +-most: where their correlation is greatest."""
    most = min(most, len(truth_S) - 1)
    truth, other = truth_S.astype(np.float64), other_S.astype(np.float64)
    span = len(truth) - most
    found = {
        late: truth[max(-late, 0) :][:span] @ other[max(late, 0) :][:span]
        for late in sorted(range(-most, most + 1), key=abs)
    }
    return max(found, key=found.__getitem__)


def shifted(sound_S: np.ndarray, late: int) -> np.ndarray:
    """The sound `late` samples earlier, silence at the end that is laid bare."""
    earlier = np.roll(sound_S, -late)
    if late > 0:
        earlier[-late:] = 0
    elif late < 0:
        earlier[:-late] = 0
    return earlier
