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
from collections.abc import Iterable, Iterator, Sequence

import av
import numpy as np
from av.stream import Disposition

from poet.media.files import MOST_BACK_S, MOST_GAP_S, MediaError, PathLike, jump, open_media
from poet.media.seeking import SEEK_FROM_S, seek_sound

# Samples of int16 nearer to zero are silence: 8 / 32768 is -72 dB of full scale.
SILENT_BELOW = 8
# No sound is recorded at less, but a damaged header may say so: a minute of samples would then fill
# hours.
LEAST_RATE_HZ = 1000
# A share of samples at full scale that is worth a note; a peak or two are no clipping.
CLIPPED_SHARE = 0.001
# Sound that comes so much earlier or later than the samples before it end is noticed (ITU-R BT.1359 says
# 45 ms beside a picture): it begins a run of its own.  Less is the coarse clock of its container.
SLIP_S = 0.045
# Tracks for some listeners, or about the film.
_NOT_MAIN = (
    Disposition.comment
    | Disposition.karaoke
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.clean_effects
    | Disposition.non_diegetic
    | Disposition.descriptions
    | Disposition.dependent
)
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
    """Reads the main sound track of a file, mixed down to mono and resampled.

    A file of S samples at another rate gives S * sample_rate_hz / rate samples, rounded, and silence
    where its timestamps leave gaps.

    Args:
      max_seconds: takes no more than that from the start; 0 takes the whole file.

    Raises:
      MediaError: no such file, not a sound or media file, no audio stream, empty, shorter than a
        few milliseconds, undecodable, with NaN or infinite samples, or with a gap beyond MOST_GAP_S.
    """
    limit = max(round(max_seconds * sample_rate_hz), 1) if max_seconds > 0 else None
    facts = _Facts()
    with open_media(path, "not audio") as container:
        stream = _choose(path, container)
        if stream is None:
            raise MediaError(path, "no audio stream")
        frames = facts.watch(_checked(container.decode(stream), path))
        track = _collect_track(_no_jumps(_timed(frames, None), path), sample_rate_hz, 0.0, limit)
    if not facts.samples:
        raise MediaError(path, "empty: no sample could be decoded")
    if not track.runs:  # less than the resampler's filter spans
        raise MediaError(path, f"too short: {facts.samples} samples at {facts.rate_hz} Hz")
    begin = track.runs[0][0]
    length = track.end - begin
    if limit is None or length < limit:
        # Resamplers give a sample more or fewer than a sound without gaps holds.
        exact = max(round(facts.seconds * sample_rate_hz), 1)
        length = exact if len(track.runs) == 1 else length
    samples = track.window(begin, length if limit is None else min(length, limit))
    return Sound(samples=samples, notes=facts.notes(sample_rate_hz, samples))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """The sound beside a film: int16 mono samples, in runs that each begin at a sample number."""

    runs: Sequence[tuple[int, np.ndarray]]

    @property
    def end(self) -> int:
        """Number of the sample after the last one."""
        return max((begin + len(samples) for begin, samples in self.runs), default=0)

    def window(self, start: int, length: int) -> np.ndarray:
        """int16 (length,) from sample `start` on; silence where no run is."""
        heard = np.zeros(length, np.int16)
        for begin, samples in self.runs:
            first, stop = max(begin, start), min(begin + len(samples), start + length)
            if first < stop:
                heard[first - start : stop - start] = samples[first - begin : stop - begin]
        return heard


def read_track(path: PathLike, sample_rate_hz: int, samples: int, start_s: float) -> np.ndarray | None:
    """int16 (samples,) from `start_s` on the file's clock; None without an audio stream.

    Silence fills what the file does not cover.

    Raises:
      MediaError: as `read_runs`.
    """
    track = read_runs(path, sample_rate_hz, start_s, samples)
    return None if track is None else track.window(0, samples)


def read_runs(path: PathLike, sample_rate_hz: int, start_s: float, samples: int | None = None) -> Track | None:
    """The main sound track from `start_s` on the file's clock on, which is sample 0; None without one.

    Args:
      samples: no more are needed; None takes all that there is.

    Raises:
      MediaError: undecodable, or with NaN or infinite samples.
    """
    with _open_track(path, start_s) as decoded:
        if decoded is None:
            return None
        frames = _timed(_checked(decoded, path), start_s)
        return _collect_track(frames, sample_rate_hz, start_s, samples)


@contextlib.contextmanager
def _open_track(path: PathLike, start_s: float) -> Iterator[Iterator[av.AudioFrame] | None]:
    """The frames of a file's sound; those long before `start_s` may be skipped."""
    with open_media(path) as container:
        stream = _choose(path, container)
        begin_s = (container.start_time or 0) / av.time_base
        if stream is None or start_s - begin_s < SEEK_FROM_S:
            yield container.decode(stream) if stream else None
            return
        sought = seek_sound(container, stream, start_s)
        if sought:
            yield sought
            return
    with open_media(path) as container:
        yield container.decode(_choose(path, container))


def sound_seconds(path: PathLike) -> float:
    """How long the file's header says it is; 0.0 where nothing can be read or nothing is said."""
    try:
        with open_media(path) as container:
            return max(container.duration or 0, 0) / av.time_base
    except MediaError:
        return 0.0


def _choose(path: PathLike, container: av.container.InputContainer) -> av.AudioStream | None:
    """The container's default, else the one with most channels, then samples a second, then the first."""
    known = [s for s in container.streams.audio if s.codec_context is not None]
    if container.streams.audio and not known:
        raise MediaError(path, "undecodable: no decoder for its sound")
    return max(known, key=_worth, default=None)


def _worth(stream: av.AudioStream) -> tuple[bool, bool, int, int, int]:
    default = bool(stream.disposition & Disposition.default)
    main = not stream.disposition & _NOT_MAIN
    context = stream.codec_context
    return default, main, context.channels, context.sample_rate or 0, -stream.index


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Timed:
    """A frame that begins at `begin_s` on the file's clock, in the run of frames number `run`."""

    frame: av.AudioFrame
    run: int
    begin_s: float


def _timed(frames: Iterable[av.AudioFrame], start_s: float | None) -> Iterator[_Timed]:
    """The frames, each after the one before but where its timestamp leaves a gap.

    A clock that was set back goes on from where it was.  `start_s` is where frames without timestamps
    begin; None lets the first one begin at 0 whatever it says.
    """
    run, shift_s, due_s = 0, 0.0, None
    for frame in frames:
        if due_s is None:
            begin_s = frame.time if frame.time is not None else start_s or 0.0
            if start_s is None:
                shift_s, begin_s = -begin_s, 0.0
        else:
            begin_s = due_s if frame.time is None else frame.time + shift_s
            if begin_s < due_s - MOST_BACK_S:
                shift_s, begin_s = shift_s + due_s - begin_s, due_s
            elif abs(begin_s - due_s) > SLIP_S:
                run += 1
            else:
                begin_s = due_s
        frame.pts = None  # a resampler counts samples itself
        yield _Timed(frame=frame, run=run, begin_s=begin_s)
        due_s = begin_s + frame.samples / frame.sample_rate


def _no_jumps(frames: Iterable[_Timed], path: PathLike) -> Iterator[_Timed]:
    """The frames; a MediaError at a gap that is longer than MOST_GAP_S."""
    due_s = 0.0
    for timed in frames:
        if timed.begin_s - due_s > MOST_GAP_S:
            raise jump(path, due_s, timed.begin_s)
        yield timed
        due_s = timed.begin_s + timed.frame.samples / timed.frame.sample_rate


def _collect_track(frames: Iterator[_Timed], sample_rate_hz: int, start_s: float, limit: int | None) -> Track:
    """Its runs, as far as sample `limit`."""
    runs: list[tuple[int, np.ndarray]] = []
    for _, group in itertools.groupby(frames, lambda timed: timed.run):
        first = next(group)
        begin = round((first.begin_s - start_s) * sample_rate_hz)
        if limit is not None and begin >= limit:
            break
        whole = itertools.chain([first.frame], (timed.frame for timed in group))  # noqa: B031  its rest
        samples = _collect(_mono(whole, sample_rate_hz), limit and limit - begin)
        if len(samples):
            runs.append((begin, samples))
        if limit is not None and begin + len(samples) >= limit:
            break
    return Track(runs=runs)


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
    """Notes on the frames of a sound before conversion."""

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
