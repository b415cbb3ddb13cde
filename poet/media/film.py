"""The video of a file: choice of stream, orientation, and display times of frames."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from poet.media import pictures
from poet.media.colour import ToRGB, UnknownColour
from poet.media.files import MOST_BACK_S, MOST_GAP_S, MOST_PIXELS, MediaError, PathLike, jump, open_media
from poet.media.seeking import SEEK_FROM_S, Timed, decode, seek

# Streams of pictures that are no film: covers, thumbnails, layers of another stream.
_NO_FILM = (
    Disposition.attached_pic
    | Disposition.timed_thumbnails
    | Disposition.dependent
    | Disposition.metadata
    | Disposition.multilayer
)
# Width of a pixel over its height beyond which a file is taken to be damaged, either way.
_MOST_ASPECT = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame.  time_s: on the file's clock.  height, width: upright, in its own pixels.  aspect: the
    width of an upright pixel over its height.  pixels: gives uint8 (height, width, 3)."""

    time_s: float
    duration_s: float
    height: int
    width: int
    aspect: float
    pixels: Callable[[], np.ndarray]


@dataclasses.dataclass(kw_only=True)
class Film:
    """The video of a file.  `start_s` and `end_s` bound what was decoded so far, on the file's clock;
    `stated_s` is the end by the header, 0 if it has none.  `frames` are all of them, or those
    from a bit before some time on; then `sought_s` is the time of the file's first frame."""

    path: PathLike
    frames: Iterator[Frame]
    interval_s: float
    stated_s: float
    sought_s: float | None = None
    start_s: float = 0.0
    end_s: float = 0.0

    def timed(self) -> Iterator[tuple[Frame, float]]:
        """Every frame with the time until which it is the nearest one, in seconds after the first frame.

        Raises:
            MediaError: no frame, or timestamps that leave MOST_GAP_S between two frames or go back.
        """
        before: Frame | None = None
        for frame in self.frames:
            if before is None:
                self.start_s = frame.time_s if self.sought_s is None else self.sought_s
            else:
                if not -MOST_BACK_S <= frame.time_s - before.time_s <= MOST_GAP_S:
                    raise jump(self.path, before.time_s, frame.time_s)
                yield before, (before.time_s + frame.time_s) / 2 - self.start_s
            before, self.end_s = frame, frame.time_s + frame.duration_s
        if before is None:
            raise MediaError(self.path, "truncated: no frame could be decoded")
        if before.duration_s > MOST_GAP_S:
            raise jump(self.path, before.time_s, self.end_s)
        # Strictly before the end of the last frame: a clip never shows a frame past its time.
        yield before, self.end_s - self.start_s - 1e-6


@contextlib.contextmanager
def open_film(path: PathLike, rate_hz: float = 1.0, from_s: float = 0.0) -> Iterator[Film]:
    """The video of a file.

    Args:
        rate_hz: of the frames if the file does not have it.
        from_s: frames before so many seconds after the first one may be skipped.

    Raises:
        MediaError: as `open_media`, or no video; while frames are taken: undecodable, corrupt, colours
            that are not known.
    """
    with open_media(path) as container:
        if container.format.name in pictures.FORMATS:
            with open(path, "rb") as file:
                if (images := pictures.read_pictures(file)) is not None:
                    yield Film(path=path, frames=_images(path, images), interval_s=0.1, stated_s=0.0)
                    return
        stream = choose(path, container)
        found = seek(container, stream, from_s) if from_s >= SEEK_FROM_S else None
        if found or from_s < SEEK_FROM_S:
            frames, sought_s = found or (decode(container, stream), None)
            yield _film(path, container, stream, frames, sought_s, rate_hz)
            return
    with open_film(path, rate_hz) as film:
        yield film


def _film(
    path: PathLike,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    frames: Iterator[Timed],
    sought_s: float | None,
    rate_hz: float,
) -> Film:
    rate = float(stream.average_rate or rate_hz)
    interval_s = min(1 / rate, MOST_GAP_S) if rate > 0 else 1 / rate_hz
    stated = (container.duration or 0) and container.duration + (container.start_time or 0)
    return Film(
        path=path,
        frames=_upright(path, frames, stream, interval_s),
        interval_s=interval_s,
        stated_s=stated / av.time_base,
        sought_s=sought_s,
    )


def choose(path: PathLike, container: av.container.InputContainer) -> av.VideoStream:
    """The container's default, else the one with the most pixels, then frames a second, then the first."""
    films = [s for s in container.streams.video if not s.disposition & _NO_FILM]
    if not films:
        raise MediaError(path, "no video stream")
    known = [s for s in films if s.codec_context is not None]
    if not known:
        raise MediaError(path, "undecodable: no decoder for its video")
    stream = max(known, key=_worth)
    stream.thread_type = "AUTO"
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    return stream


def _worth(stream: av.VideoStream) -> tuple[bool, int, float, int]:
    default = bool(stream.disposition & Disposition.default)
    return default, stream.width * stream.height, float(stream.average_rate or 0), -stream.index


# ----------------------------------------------------------------------------------------- frames


def _upright(path: PathLike, frames: Iterator[Timed], stream: av.VideoStream, interval_s: float) -> Iterator[Frame]:
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT:
        raise MediaError(path, f"damaged: pixels {aspect:.6g} times as wide as high")
    to_rgb, due_s = ToRGB(), 0.0
    for frame, told_s in frames:
        time_s = due_s if told_s is None else told_s
        if frame.is_corrupt:
            raise MediaError(path, f"corrupt frame at {time_s:.2f} s")
        yield _frame(path, frame, time_s, interval_s, aspect, to_rgb)
        due_s = time_s + interval_s


def _frame(
    path: PathLike, frame: av.VideoFrame, time_s: float, interval_s: float, aspect: float, to_rgb: ToRGB
) -> Frame:
    duration_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
    turn = Turn.of(frame)
    sides = frame.height, frame.width
    height, width = sides[::-1] if turn.swaps else sides
    return Frame(
        time_s=time_s,
        duration_s=duration_s or interval_s,
        height=height,
        width=width,
        aspect=1 / aspect if turn.swaps else aspect,
        pixels=functools.partial(_pixels, path, frame, turn, to_rgb),
    )


def _pixels(path: PathLike, frame: av.VideoFrame, turn: Turn, to_rgb: ToRGB) -> np.ndarray:
    try:
        return turn.apply(to_rgb(frame))
    except UnknownColour as error:
        raise MediaError(path, str(error)) from None


def _images(path: PathLike, images: Iterator[tuple[np.ndarray, float]]) -> Iterator[Frame]:
    time_s = 0.0
    try:
        for pixels, duration_s in images:
            height, width = pixels.shape[:2]
            yield Frame(
                time_s=time_s,
                duration_s=duration_s,
                height=height,
                width=width,
                aspect=1.0,
                pixels=lambda pixels=pixels: pixels,
            )
            time_s += duration_s
    except pictures.UnreadablePicture as error:
        raise MediaError(path, str(error)) from None


# -------------------------------------------------------------------------------------------- turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One of the eight ways to lay a picture: sides swapped first, then mirrored."""

    swaps: bool = False
    mirrors_x: bool = False
    mirrors_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Turn:
        """The orientation by the frame's display matrix, to the nearest quarter turn."""
        return cls.by(_display_matrix(frame))

    @classmethod
    def by(cls, matrix: tuple[int, int, int, int]) -> Turn:
        """(a, b, c, d): the pixel (x, y) is shown at (a x + c y, b x + d y), y downwards."""
        a, b, c, d = matrix
        swaps = abs(b) + abs(c) > abs(a) + abs(d)
        to_x, to_y = (c, b) if swaps else (a, d)
        return cls(swaps=swaps, mirrors_x=to_x < 0, mirrors_y=to_y < 0)

    def apply(self, pixels_HxWx3: np.ndarray) -> np.ndarray:
        turned = pixels_HxWx3.swapaxes(0, 1) if self.swaps else pixels_HxWx3
        return turned[:: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except (KeyError, ValueError):  # PyAV does not know all types of side data that FFmpeg has
        quarters = round(frame.rotation / 90) % 4
        return ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[quarters]
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d
