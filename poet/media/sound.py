"""Sound: mono int16 at one sample rate from any file that PyAV reads, or from an array; wav out.

What had to be done to a sound, and what is odd about it, stands in its notes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fractions
import itertools
import math
import os
import wave
from collections.abc import Iterable, Iterator

import av
import numpy as np

from poet.media.files import MediaError, PathLike, naming_the_file, replacing
from poet.media.seeking import SEEK_FROM_S, seek_sound

# Samples of int16 nearer to zero are silence: 8 / 32768 is -72 dB of full scale.
SILENT_BELOW = 8
# No sound is recorded at less, but a damaged header may say so: a minute of samples would then fill
# hours.
LEAST_RATE_HZ = 1000
# A share of samples at full scale that is worth a note; a peak or two are no clipping.
CLIPPED_SHARE = 0.001
# Least and greatest value of each type of samples that int16 has no greater one for.
_FULL_SCALE: dict[str, tuple[float, float]] = {
    "uint8": (0, 255),
    "int16": (-32767, 32767),
    "int32": (-32767 * 2**16, 32767 * 2**16),
    "int64": (-32767 * 2**48, 32767 * 2**48),
    "float32": (-32767 / 32768, 32767 / 32768),
    "float64": (-32767 / 32768, 32767 / 32768),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
    """samples: int16 mono (S,).  notes: what was done to it or is odd about it, such as
    'resampled from 44100 Hz', 'mixed down from 2 channels', 'silent', 'clipped 3.1 % of samples'.
    """

    samples: np.ndarray
    notes: tuple[str, ...]


# ---------------------------------------------------------------------------------------- reading


def read_sound(path: PathLike, sample_rate_hz: int, max_seconds: float = 0.0) -> Sound:
    """Reads the first sound track of a file, mixed down to mono and resampled.

    A file of S samples at another rate gives S * sample_rate_hz / rate samples, rounded.

    Args:
      max_seconds: takes no more than that from the start; 0 takes the whole file.

    Raises:
      MediaError: no such file, not a sound or media file, no audio stream, empty, shorter than a
        few milliseconds, undecodable, or with NaN or infinite samples.
    """
    _check_bytes(path)
    limit = max(round(max_seconds * sample_rate_hz), 1) if max_seconds > 0 else None
    facts = _Facts()
    with naming_the_file(path):
        with _open(path) as container:
            if not container.streams.audio:
                raise MediaError(path, "no audio stream")
            frames = facts.watch(_checked(container.decode(container.streams.audio[0]), path))
            samples = _collect(_mono(frames, sample_rate_hz), limit)
    if not facts.samples:
        raise MediaError(path, "empty: no sample could be decoded")
    if not len(samples):  # less than the resampler's filter spans
        raise MediaError(path, f"too short: {facts.samples} samples at {facts.rate_hz} Hz")
    if limit is None or len(samples) < limit:
        samples = _fit(samples, facts.seconds, sample_rate_hz)
    return Sound(samples=samples, notes=facts.notes(sample_rate_hz, samples))


def read_track(
    path: PathLike, sample_rate_hz: int, samples: int | None, start_s: float
) -> np.ndarray | None:
    """int16 (samples,) from `start_s` on the file's clock; None without an audio stream.

    Silence fills what the file does not cover; `samples` None takes all that there is.

    Raises:
      MediaError: undecodable, or with NaN or infinite samples.
    """
    with naming_the_file(path), _open_track(path, start_s) as (container, decoded):
        if not container.streams.audio:
            return None
        frames = _checked(decoded, path)
        first = next(frames, None)
        if first is None:
            return np.zeros(samples or 0, np.int16)
        first_s = start_s if first.time is None else first.time
        offset = round((first_s - start_s) * sample_rate_hz)
        pieces = _mono(itertools.chain([first], frames), sample_rate_hz)
        if samples is None:
            whole = _collect(pieces, None)
            return place(whole, offset, max(len(whole) + offset, 0))
        return place(_collect(pieces, max(samples - offset, 0)), offset, samples)


@contextlib.contextmanager
def _open_track(
    path: PathLike, start_s: float
) -> Iterator[tuple[av.container.InputContainer, Iterator[av.AudioFrame]]]:
    """A file and the frames of its sound; what is long before `start_s` may be left out."""
    with av.open(os.fspath(path)) as container:
        stream = container.streams.audio[0] if container.streams.audio else None
        begin_s = (container.start_time or 0) / av.time_base
        if stream is None or start_s - begin_s < SEEK_FROM_S:
            yield container, container.decode(stream) if stream else iter(())
            return
        sought = seek_sound(container, stream, start_s)
        if sought:
            yield container, sought
            return
    with av.open(os.fspath(path)) as container:
        yield container, container.decode(container.streams.audio[0])


def sound_seconds(path: PathLike) -> float:
    """How long the file's header says it is; 0.0 where nothing can be read or nothing is said."""
    try:
        with naming_the_file(path), av.open(os.fspath(path)) as container:
            return max(container.duration or 0, 0) / av.time_base
    except MediaError:
        return 0.0


def _check_bytes(path: PathLike) -> None:
    if os.path.isfile(path) and not os.path.getsize(path):
        raise MediaError(path, "empty: the file has no bytes")


def _open(path: PathLike) -> av.container.InputContainer:
    try:
        return av.open(os.fspath(path))
    except av.error.InvalidDataError:
        raise MediaError(path, "not audio: no known format of sound or media") from None


def _checked(frames: Iterable[av.AudioFrame], path: PathLike) -> Iterator[av.AudioFrame]:
    """The frames; a MediaError at the first NaN or infinite sample, and for an impossible rate."""
    for frame in frames:
        if frame.sample_rate < LEAST_RATE_HZ:
            raise MediaError(path, f"not audio: a sample rate of {frame.sample_rate} Hz")
        if "flt" in frame.format.name or "dbl" in frame.format.name:
            if not np.isfinite(frame.to_ndarray()).all():
                raise MediaError(path, "NaN or infinite samples")
        yield frame


def _mono(frames: Iterable[av.AudioFrame], sample_rate_hz: int) -> Iterator[np.ndarray]:
    """int16 pieces of the frames' sound at the new rate, their channels weighted as FFmpeg does."""
    # A stream may change its format on the way; a resampler keeps to that of its first frame.
    for _, run in itertools.groupby(frames, _format):
        resampler = av.AudioResampler(format="s16", layout="mono", rate=sample_rate_hz)
        for frame in itertools.chain(run, (None,)):
            for piece in resampler.resample(frame):
                yield piece.to_ndarray()[0]


def _format(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _collect(pieces: Iterator[np.ndarray], limit: int | None) -> np.ndarray:
    """The pieces end to end, int16, at most `limit` samples of them."""
    taken: list[np.ndarray] = [np.zeros(0, np.int16)]
    missing = math.inf if limit is None else limit
    while missing > 0 and (piece := next(pieces, None)) is not None:
        taken.append(piece)
        missing -= len(piece)
    return np.concatenate(taken)[:limit]


def _fit(samples: np.ndarray, seconds: fractions.Fraction, sample_rate_hz: int) -> np.ndarray:
    """Exactly as many samples as `seconds` hold: resamplers give one more or fewer."""
    return place(samples, 0, max(round(seconds * sample_rate_hz), 1))


def place(samples: np.ndarray, offset: int, length: int) -> np.ndarray:
    """int16 samples moved by `offset` onto silence of the given length."""
    placed = np.zeros(length, np.int16)
    samples = samples[max(-offset, 0) :][: max(length - max(offset, 0), 0)]
    placed[max(offset, 0) :][: len(samples)] = samples
    return placed


# ------------------------------------------------------------------------------------------ notes


class _Facts:
    """What the frames of a sound were before they were converted."""

    def __init__(self) -> None:
        self.rate_hz = self.channels = 0
        self._lengths: collections.Counter[int] = collections.Counter()
        self._values = self._full_scale = 0

    def watch(self, frames: Iterable[av.AudioFrame]) -> Iterator[av.AudioFrame]:
        for frame in frames:
            channels = len(frame.layout.channels)
            self.add(frame.to_ndarray(), frame.samples, frame.sample_rate, channels)
            yield frame

    def add(self, values: np.ndarray, samples: int, rate_hz: int, channels: int) -> None:
        """Takes up `samples` samples in each of `channels` channels, whose values are `values`."""
        self.rate_hz, self.channels = self.rate_hz or rate_hz, self.channels or channels
        self._lengths[rate_hz] += samples
        low, high = _FULL_SCALE[values.dtype.name]
        self._values += values.size
        self._full_scale += int(np.count_nonzero((values <= low) | (values >= high)))

    @property
    def samples(self) -> int:
        return self._lengths.total()

    @property
    def seconds(self) -> fractions.Fraction:
        lengths = (fractions.Fraction(samples, rate) for rate, samples in self._lengths.items())
        return sum(lengths, fractions.Fraction())

    def notes(self, sample_rate_hz: int, samples: np.ndarray) -> tuple[str, ...]:
        share = self._full_scale / self._values
        notes = {
            f"resampled from {self.rate_hz} Hz": self.rate_hz != sample_rate_hz,
            f"mixed down from {self.channels} channels": self.channels != 1,
            "silent": is_silent(samples),
            f"clipped {100 * share:.1f} % of samples": share >= CLIPPED_SHARE,
        }
        return tuple(note for note, holds in notes.items() if holds)


def is_silent(samples: np.ndarray) -> bool:
    """Whether no sample of int16 reaches SILENT_BELOW."""
    # Not np.abs: -32768 has no positive int16.
    return not np.any((samples >= SILENT_BELOW) | (samples <= -SILENT_BELOW))


# ----------------------------------------------------------------------------------------- arrays


def to_sound(audio: np.ndarray, rate_hz: int, sample_rate_hz: int) -> Sound:
    """A sound from an array, as `read_sound` makes one from a file.

    Args:
      audio: (S,) or (S, channels); integers in the range of int16, or floats in [-1, 1].
      rate_hz: of the array.  sample_rate_hz: of the result.

    Raises:
      ValueError: empty, too short to be resampled, NaN or infinite samples, integers beyond int16,
        or another shape or dtype.
    """
    channels = audio.shape[1] if audio.ndim == 2 else 1
    if audio.ndim not in (1, 2) or not channels:
        raise ValueError(f"not sound: an array of shape {audio.shape}")
    if not audio.size:
        raise ValueError("empty: 0 samples")
    facts = _Facts()
    audio = _unified(audio)
    facts.add(audio, len(audio), rate_hz, channels)
    mono = audio if audio.ndim == 1 else audio.mean(axis=1)
    if audio.dtype == np.int16:
        mono = np.rint(mono).astype(np.int16)
    samples = resample(to_int16(mono), rate_hz, sample_rate_hz)
    return Sound(samples=samples, notes=facts.notes(sample_rate_hz, samples))


def _unified(audio: np.ndarray) -> np.ndarray:
    """int16 or float32 of the same shape."""
    if np.issubdtype(audio.dtype, np.floating):
        if not np.isfinite(audio).all():
            raise ValueError("NaN or infinite samples")
        return audio.astype(np.float32)
    if not np.issubdtype(audio.dtype, np.integer):
        raise ValueError(f"not sound: an array of {audio.dtype}")
    if audio.min() < -32768 or audio.max() > 32767:
        raise ValueError("not sound: integers beyond 16 bits")
    return audio.astype(np.int16)


def resample(samples: np.ndarray, rate_hz: int, sample_rate_hz: int) -> np.ndarray:
    """int16 (S,) at another rate: S * sample_rate_hz / rate_hz samples, rounded, at least one.

    Raises:
      ValueError: shorter than the resampler's filter, a few milliseconds.
    """
    if rate_hz == sample_rate_hz:
        return samples
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = rate_hz, 0
    frame.time_base = fractions.Fraction(1, rate_hz)
    resampled = _collect(_mono([frame], sample_rate_hz), None)
    if not len(resampled):
        raise ValueError(f"too short: {len(samples)} samples at {rate_hz} Hz")
    return _fit(resampled, fractions.Fraction(len(samples), rate_hz), sample_rate_hz)


def to_int16(audio_S: np.ndarray) -> np.ndarray:
    """int16 as it is; float in [-1, 1] scaled and clipped."""
    if audio_S.ndim != 1:
        raise ValueError(f"audio must be mono (samples,), got {audio_S.shape}")
    if audio_S.dtype == np.int16:
        return audio_S
    if not np.issubdtype(audio_S.dtype, np.floating):
        raise ValueError(f"audio must be int16 or float in [-1, 1], got {audio_S.dtype}")
    return np.round(np.clip(audio_S, -1, 1) * 32767).astype(np.int16)


# ---------------------------------------------------------------------------------------- writing


def write_wav(path: PathLike, audio_S: np.ndarray, sample_rate_hz: int) -> None:
    """Writes mono 16-bit PCM."""
    sound = to_int16(audio_S)
    with replacing(path) as file, wave.open(os.fspath(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate_hz)
        out.writeframes(sound.astype("<i2").tobytes())
