"""Reading a file from a later time on without decoding what is before it, where that gives the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import av

# Decoding less than that costs no more than a seek does.
SEEK_FROM_S = 10.0
# A sound decoder needs some of the sound before; the tables of containers are rounded.
LEAD_S = 1.0
# Containers that tell few times: those of the frames behind a seek are guesses, up to the next one that is told.
_GUESSED = ("mpeg", "mpegvideo")


class Timed(NamedTuple):
    """A frame, and its display time on the file's clock in seconds, if the file has it."""

    frame: av.VideoFrame
    time_s: float | None


def decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Timed]:
    """Frames in the order of the stream.  A packet without data shows the frame before once more."""
    repeats: list[float] = []
    before: av.VideoFrame | None = None
    for packet in container.demux(stream):
        if not packet.size and packet.pts is not None:
            repeats.append(float(packet.pts * packet.time_base))
            continue
        for frame in packet.decode():
            while before and repeats and frame.time is not None and repeats[0] < frame.time:
                yield Timed(before, repeats.pop(0))
            yield Timed(frame, frame.time)
            before = frame
    for time_s in repeats if before else ():
        yield Timed(before, time_s)


def seek(
    container: av.container.InputContainer, stream: av.VideoStream, from_s: float
) -> tuple[Iterator[Timed], float] | None:
    """The frames from a key frame before `from_s` seconds after the first frame, and the first one's time.

    None where the file has no times or a seek makes them guesses, or a seek does not end there; the container is
    spent then.
    """
    if container.format.name in _GUESSED:
        return None
    first = next(decode(container, stream), None)
    if first is None or first.time_s is None:
        return None
    target_s = first.time_s + from_s
    try:
        container.seek(int((target_s - LEAD_S) / stream.time_base), stream=stream)
        frames = decode(container, stream)
        landed = next(frames, None)
    except av.error.FFmpegError:  # a reader from the start reports it
        return None
    if landed is None or landed.time_s is None or landed.frame.is_corrupt:
        return None
    if not first.time_s <= landed.time_s <= target_s:
        return None
    return itertools.chain([landed], frames), first.time_s


def seek_sound(
    container: av.container.InputContainer, stream: av.AudioStream, start_s: float
) -> Iterator[av.AudioFrame] | None:
    """The frames of a sound from a bit before `start_s` on its clock; None as of `seek`."""
    try:
        container.seek(int((start_s - LEAD_S) / stream.time_base), stream=stream)
        frames = container.decode(stream)
        landed = next(frames, None)
    except av.error.FFmpegError:
        return None
    if landed is None or landed.time is None or landed.time > start_s - LEAD_S / 2:
        return None
    return itertools.chain([landed], frames)
