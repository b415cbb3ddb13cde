"""Reading a file from a later time on without decoding what is before it, where that gives the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import av

# Decoding less than that costs no more than a seek does.
SEEK_FROM_S = 10.0
# A sound decoder needs some of the sound before; the tables of containers are rounded.
LEAD_S = 1.0


def seek(
    container: av.container.InputContainer, stream: av.VideoStream, from_s: float
) -> tuple[Iterator[av.VideoFrame], float] | None:
    """The frames from a key frame before `from_s` seconds after the first frame, and the first one's time.

    None where the file does not tell times, or a seek does not end there; the container is spent then.
    """
    first = next(container.decode(stream), None)
    if first is None or first.time is None:
        return None
    target_s = first.time + from_s
    try:
        container.seek(int((target_s - LEAD_S) / stream.time_base), stream=stream)
        frames = container.decode(stream)
        landed = next(frames, None)
    except av.error.FFmpegError:  # which a reader from the start would tell of in its place
        return None
    if landed is None or landed.time is None or landed.is_corrupt:
        return None
    if not first.time <= landed.time <= target_s:
        return None
    return itertools.chain([landed], frames), first.time


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
