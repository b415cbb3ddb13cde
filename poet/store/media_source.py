"""Clips of media files, which lie in a folder or in tar shards: the first of each, or all."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import logging
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from poet import media
from poet.spec import ClipSpec, IngestSpec
from poet.store import remote
from poet.store.cutting import crop_place, cut
from poet.store.raw import Part, RawClip, Skipped, frames_of, ingest_of, is_told, read_ahead, too_short

_LOG = logging.getLogger(__name__)

# Clips that are made ahead of the consumer where files give several.
CLIPS_AHEAD = 32
# A coded frame takes more than that, with its place in the index.
BYTES_A_FRAME = 16

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaSource:
    """Media files of a folder or of tar shards."""

    media: remote.Collection
    clip: ClipSpec
    ingest: IngestSpec = IngestSpec()
    has_depth: bool = False

    @property
    def fingerprint(self) -> str:
        return self.media.fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        return self.media.notes

    def __len__(self) -> int:
        return len(self.media)

    def clips(self) -> Sequence[int]:
        if not self.ingest.expands:
            return [1] * len(self)
        _LOG.info("reading the lengths of %d files", len(self))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._stated_clips, range(len(self))))

    def _stated_clips(self, index: int) -> int:
        """By the file's header, of which no more is believed than its bytes can hold."""
        stated = self.media.stated(index)
        frames = min(stated.seconds * self.clip.rate_hz, stated.size_bytes / BYTES_A_FRAME)
        most = self.ingest.clips_per_file or math.inf
        return max(int(min(frames / self.clip.frames, most)), 1)

    def read(self, start: int, stop: int, part: Part | None = None) -> Iterator[RawClip | Skipped]:
        if self.ingest.expands:
            return _made_ahead(self._read_all(start, stop, part))
        return read_ahead(self._read_item, start, stop)

    def _read_item(self, index: int) -> RawClip | Skipped:
        try:
            with self.media.fetch(index) as found:
                return self._first_clip(found)
        except remote.Unusable as error:
            return Skipped(key=error.key, reason=error.reason)

    def _first_clip(self, found: remote.Found) -> RawClip | Skipped:
        place = crop_place(found.key, self.ingest)
        try:
            clip = media.read_clip(found.video, self.clip, place, found.sound)
        except media.MediaError as error:
            return Skipped(key=found.key, reason=error.reason)
        return RawClip(key=found.key, caption=found.caption, video=clip.video, audio=clip.audio, notes=found.notes)

    def _read_all(self, start: int, stop: int, part: Part | None) -> Iterator[RawClip | Skipped]:
        for index in range(start, stop):
            try:
                with self.media.fetch(index, keep=part is not None) as found:
                    yield from self._clips(found, part)
            except remote.Unusable as error:
                yield Skipped(key=error.key, reason=error.reason)

    def _clips(self, found: remote.Found, part: Part | None) -> Iterator[RawClip | Skipped]:
        """All clips of a file or of its part; where it is damaged, those before the damage."""
        first, stop = frames_of(part, self.clip)
        read, count = first, None if stop is None else stop - first
        track = _Track(found, self.clip, first, count)

        def frames() -> Iterator[np.ndarray]:
            nonlocal read
            place = crop_place(found.key, self.ingest)
            shown = media.read_frames(found.video, self.clip, place, first)
            for frame, track.start_s in itertools.islice(shown, count):
                read += 1
                yield frame

        try:
            for piece in cut(frames(), self.clip.frames, ingest_of(part, self.ingest)):
                key = f"{found.key}#{first + piece.start}"
                if piece.video is None:
                    if is_told(first, piece, self.ingest):
                        yield too_short(key, piece.length, self.clip, self.ingest)
                    continue
                yield RawClip(
                    key=key,
                    caption=found.caption,
                    video=piece.video,
                    audio=track.sound(first + piece.start),
                    notes=found.notes,
                )
        except media.MediaError as error:
            yield Skipped(key=f"{found.key}#{read}", reason=error.reason)


class _Track:
    """The sound of a file from frame `first` on, decoded once when its first clip asks for it.

    `frames` is how many of them are asked for, None all.
    """

    def __init__(self, found: remote.Found, clip: ClipSpec, first: int, frames: int | None) -> None:
        self._found, self._clip, self._first, self._frames = found, clip, first, frames
        self.start_s = 0.0

    @functools.cached_property
    def _track(self) -> media.Track | media.MediaError | None:
        """The sound track, or the error of a damaged one."""
        frames = self._frames
        samples = None if frames is None else self._sample(frames) + self._clip.samples
        try:
            return media.read_runs(*self._at(self._first), samples)
        except media.MediaError as error:
            return error

    def sound(self, frame: int) -> np.ndarray | None:
        """int16 (clip.samples,) from a frame of the file on; None without a sound track.

        Raises:
            MediaError: it is damaged there or before.
        """
        track = self._track
        if isinstance(track, media.MediaError):
            track = media.read_runs(*self._at(frame), self._clip.samples)
            begin = self._sample(frame)
        else:
            begin = self._sample(self._first)
        if track is None:
            return None
        return track.window(self._sample(frame) - begin, self._clip.samples)

    def _at(self, frame: int) -> tuple[pathlib.Path, int, float]:
        """The file of the sound, its rate, and where it begins with a frame."""
        file, start_s = self._found.video, self.start_s
        if self._found.sound:
            file, start_s = self._found.sound, 0.0
        rate_hz = self._clip.sample_rate_hz
        return file, rate_hz, start_s + self._sample(frame) / rate_hz

    def _sample(self, frame: int) -> int:
        return round(frame / self._clip.rate_hz * self._clip.sample_rate_hz)


def _made_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, made in a thread of their own while the consumer works."""
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = collections.deque(pool.submit(next, items, end) for _ in range(CLIPS_AHEAD))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(pool.submit(next, items, end))
                yield item
        finally:
            for future in pending:
                future.cancel()
