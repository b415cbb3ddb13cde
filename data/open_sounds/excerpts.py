"""From recordings to excerpts of 2 to 6 seconds: read, cut, join, and drop what is silent.

Sound is int16 mono at 16 kHz.  Shape legend: S samples.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Protocol

import av
import numpy as np

from poet.media import MediaError
from poet.media.sound import read_sound

RATE_HZ = 16_000
LEAST_SAMPLES, MOST_SAMPLES = 2 * RATE_HZ, 6 * RATE_HZ
SPREAD_SAMPLES = 5 * RATE_HZ  # an excerpt of a recording of which only a part is used
PAUSE_SAMPLES = RATE_HZ // 10  # between short recordings that are joined
# Root mean square, in dB of full scale, below which an excerpt is the noise of its recording.
LEAST_DBFS = -50.0


class _Recording(Protocol):
    name: str
    path: pathlib.Path
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A stretch of one recording, or several short ones after each other.

    Attributes:
      key: name of the first recording, with /number of a part of it or +further recordings.
      audio: int16 (S,).
      text: what the recordings give; '' for a part of a spoken line, which has no transcript.
      recordings: their names.
      rate_hz: the lowest sample rate of their files.
    """

    key: str
    audio: np.ndarray
    text: str
    recordings: tuple[str, ...]
    rate_hz: int


def excerpts(
    recordings: Iterable[_Recording], *, most_seconds: float, spoken: bool, workers: int, dropped: Counter[str]
) -> Iterator[Excerpt]:
    """Yields the excerpts of recordings of one collection and one split.

    Args:
      most_seconds: how much of one recording is used.
      spoken: texts are transcripts, so that a part of a recording has none.
      workers: threads that decode; what is yielded does not depend on it.
      dropped: counts what is left out, under "silent" and "unreadable".
    """
    waiting: list[Excerpt] = []
    for recording, sound in _read_ahead(recordings, workers):
        if sound is None:
            dropped["unreadable"] += 1
            continue
        parts = list(_parts(recording, *sound, most_seconds, spoken))
        loud = [part for part in parts if not is_silent(part.audio)]
        dropped["silent"] += len(parts) - len(loud)
        for part in loud:
            if len(part.audio) >= LEAST_SAMPLES:
                yield part
                continue
            waiting.append(part)
            if sum(len(short.audio) for short in waiting) >= LEAST_SAMPLES:
                yield join(waiting)
                waiting = []
    if waiting:
        last = join(waiting)
        if is_silent(last.audio):
            dropped["silent"] += 1
        else:
            yield last


def is_silent(samples_S: np.ndarray) -> bool:
    """Whether the root mean square lies below LEAST_DBFS."""
    power = np.mean(np.square(samples_S, dtype=np.float64)) / 2**30
    return bool(power < 10 ** (LEAST_DBFS / 10))


def cut(length: int, most: int) -> list[slice]:
    """Stretches of a recording of `length` samples of which at most `most` are to be used.

    A whole recording is cut into the fewest equal parts that are short enough.  Where only some of
    it is used, excerpts of SPREAD_SAMPLES are spread from its beginning to its end.
    """
    if length <= most:
        count = math.ceil(length / MOST_SAMPLES)
        size, starts = length // count, np.arange(count) * (length // count)
    else:
        size, count = SPREAD_SAMPLES, max(1, most // SPREAD_SAMPLES)
        starts = np.linspace(0, length - size, count).astype(int)
    return [slice(int(start), int(start) + size) for start in starts]


def join(parts: list[Excerpt]) -> Excerpt:
    """Puts short recordings after each other, with pauses; silence fills what 2 seconds lack."""
    pause = np.zeros(PAUSE_SAMPLES, np.int16)
    audio = np.concatenate([piece for part in parts for piece in (part.audio, pause)][:-1])
    more = f"+{len(parts) - 1}" if len(parts) > 1 else ""
    return Excerpt(
        key=parts[0].key + more,
        audio=np.pad(audio, (0, max(0, LEAST_SAMPLES - len(audio)))),
        text=" ".join(part.text for part in parts if part.text),
        recordings=tuple(name for part in parts for name in part.recordings),
        rate_hz=min(part.rate_hz for part in parts),
    )


def _parts(
    recording: _Recording, samples_S: np.ndarray, rate_hz: int, most_seconds: float, spoken: bool
) -> Iterator[Excerpt]:
    most = len(samples_S) if math.isinf(most_seconds) else round(most_seconds * RATE_HZ)
    stretches = cut(len(samples_S), most)
    whole = len(stretches) == 1
    for number, stretch in enumerate(stretches):
        yield Excerpt(
            key=recording.name if whole else f"{recording.name}/{number:03d}",
            audio=samples_S[stretch],
            recordings=(recording.name,),
            rate_hz=rate_hz,
            text=recording.text if whole or not spoken else "",
        )


def _read_ahead(
    recordings: Iterable[_Recording], workers: int
) -> Iterator[tuple[_Recording, tuple[np.ndarray, int] | None]]:
    """Decodes in threads, a few files ahead, and yields in the given order."""
    with futures.ThreadPoolExecutor(workers) as pool:
        started: deque = deque()
        for recording in recordings:
            started.append((recording, pool.submit(_read, recording.path)))
            if len(started) > 2 * workers:
                first, sound = started.popleft()
                yield first, sound.result()
        for first, sound in started:
            yield first, sound.result()


def _read(path: pathlib.Path) -> tuple[np.ndarray, int] | None:
    """int16 (S,) and the sample rate of the file, or None where it is no sound."""
    try:
        samples = read_sound(path, RATE_HZ).samples
    except MediaError:
        return None
    with av.open(os.fspath(path)) as container:
        return samples, container.streams.audio[0].rate
