"""Films kept as they are: every frame at its time, without loss, the sound beside them as PCM."""

from __future__ import annotations

import fractions
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import av
import numpy as np

from poet.media.files import PathLike, replacing

# Times of frames are kept to this fraction of a second, which is exact for 24, 25, 30 and 60 Hz.
_TICKS = 90_000


class TimedFrame(NamedTuple):
    """A frame: uint8 [H, W, 3], when it is displayed, for how long, and the width of a pixel over its height."""

    pixels: np.ndarray
    at_s: float
    duration_s: float
    aspect: float = 1.0


def write_mov(
    path: PathLike, frames: Iterable[TimedFrame], audio_S: np.ndarray | None = None, sample_rate_hz: int = 16_000
) -> float:
    """Writes a mov of PNG frames of one size, and int16 samples; returns the seconds of its frames.

    Args:
      frames: at least one, by rising times, the first one at 0.
      audio_S: begins with the first frame; what is longer than the frames is cut.
    """
    with replacing(path) as file, av.open(os.fspath(file), "w", format="mov") as container:
        film, sound, end_s = None, None, 0.0
        for frame in frames:
            if film is None:
                film, sound = _film(container, frame), _sound(container, audio_S, sample_rate_hz)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.pixels), format="rgb24")
            picture.pts, picture.time_base = round(frame.at_s * _TICKS), fractions.Fraction(1, _TICKS)
            picture.duration = max(round(frame.duration_s * _TICKS), 1)
            container.mux(film.encode(picture))
            end_s = frame.at_s + frame.duration_s
        container.mux(film.encode(None))
        if sound is not None:
            _add(container, sound, audio_S[: round(end_s * sample_rate_hz)], sample_rate_hz)
    return end_s


def _film(container: Any, first: TimedFrame) -> Any:
    stream = container.add_stream("png", rate=30, options={"compression_level": "1"})
    stream.height, stream.width = first.pixels.shape[:2]
    stream.pix_fmt = "rgb24"
    stream.codec_context.time_base = stream.time_base = fractions.Fraction(1, _TICKS)
    stream.codec_context.sample_aspect_ratio = fractions.Fraction(first.aspect).limit_denominator(1000)
    stream.thread_count = 1
    return stream


def _sound(container: Any, audio_S: np.ndarray | None, sample_rate_hz: int) -> Any:
    if audio_S is None:
        return None
    stream = container.add_stream("pcm_s16le", rate=sample_rate_hz)
    stream.layout = "mono"
    return stream


def _add(container: Any, stream: Any, audio_S: np.ndarray, sample_rate_hz: int) -> None:
    if len(audio_S):
        frame = av.AudioFrame.from_ndarray(audio_S[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = sample_rate_hz, 0
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
