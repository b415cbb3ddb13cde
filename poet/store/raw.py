"""Items of sources: clips as they were read, or the reason that an item has none."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from poet.spec import ClipSpec, IngestSpec
from poet.store.cutting import Cut

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawClip:
    """video: uint8 (T, H, W, 3) of the clip's format.  audio: int16 (samples,) or None.

    depth: distances (T, h, w) of the same field of view, of any size and scale, or None.
    notes: what was done to it, the kind before a colon.
    """

    key: str
    caption: str
    video: np.ndarray
    audio: np.ndarray | None
    depth: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """An item that gives no clip."""

    key: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a long file: its clips first..stop-1, counted from its start; `stop` None is its end."""

    first: int
    stop: int | None


class Source(Protocol):
    """One split of a collection.  `fingerprint` changes when its items change; `has_depth` says
    whether its clips come with distances; `notes` are lines on what is not read, for the user."""

    fingerprint: str
    has_depth: bool
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """Items, those that will be skipped included."""

    def clips(self) -> Sequence[int]:
        """About how many clips each item gives, at least 1: work is shared out by it."""

    def read(self, start: int, stop: int, part: Part | None = None) -> Iterator[RawClip | Skipped]:
        """Yields exactly the items start..stop-1 in their order.

        Where `IngestSpec.expands`, an item gives one or several in a row, with keys 'item#frame'; of
        a single item a part may be read.
        """


def read_ahead(read_item: Callable[[int], T], start: int, stop: int) -> Iterator[T]:
    """Decodes a few files ahead of the consumer, in threads: PyAV releases the GIL."""
    workers = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for index in range(start, stop):
                pending.append(pool.submit(read_item, index))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def frames_of(part: Part | None, clip: ClipSpec) -> tuple[int, int | None]:
    """Number of the first frame of a part, and of the one after its last; None is the end."""
    if part is None:
        return 0, None
    return part.first * clip.frames, None if part.stop is None else part.stop * clip.frames


def ingest_of(part: Part | None, ingest: IngestSpec) -> IngestSpec:
    """A part ends where the next one begins, not after a number of clips."""
    return ingest.replace(clips_per_file=0) if part else ingest


def is_told(first: int, piece: Cut, ingest: IngestSpec) -> bool:
    """Whether a part without a clip is reported: the remainder of a later part is not."""
    return not first or (ingest.shots and piece.length > 0)


def too_short(key: str, frames: int, clip: ClipSpec, ingest: IngestSpec) -> Skipped:
    """The reason that a shot or a whole file has no clip."""
    what = "short shot" if ingest.shots else "too short"
    return Skipped(key=key, reason=f"{what}: {frames} frames, {clip.frames} needed")


def origin(key: str) -> str:
    """The origin of a clip: a video, a map, an episode.  Clips of one origin are not independent.

    >>> origin("films/a.mp4#17"), origin("validation/doom1-E1M1/00003"), origin("a/b.mp4")
    ('films/a.mp4', 'validation/doom1-E1M1', 'a/b.mp4')
    """
    item = key.partition("#")[0]
    folder, _, name = item.rpartition("/")
    return folder if folder and name.partition(".")[0].isdigit() else item


def usable(items: Iterable[RawClip | Skipped]) -> Iterator[RawClip]:
    """The clips among the items.  What gives none is logged, once in a process."""
    for item in items:
        if isinstance(item, RawClip):
            yield item
        else:
            say_once(f"{item.key} is skipped: {item.reason}")


@functools.lru_cache(maxsize=100_000)
def say_once(message: str) -> None:
    _LOG.info("%s", message)


def fit_samples(sound: np.ndarray, samples: int) -> np.ndarray:
    """Cut at the end, or filled with silence."""
    return np.pad(sound[:samples], (0, max(samples - len(sound), 0)))
