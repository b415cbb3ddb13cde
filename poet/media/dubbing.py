"""Another sound for a film: its coded frames as they are, or, where no container takes them, the same pixels.

S samples, mono int16 or floats in [-1, 1]; the first one is heard with the first frame.
"""

from __future__ import annotations

import fractions
import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import av
import numpy as np

from poet.media.files import MediaError, PathLike, open_media, replacing
from poet.media.film import Frame, choose, open_film
from poet.media.sound import to_int16
from poet.media.writing import add_sound, write_mp4

_LOG = logging.getLogger(__name__)

# Of Matroska: ticks of its clock in a second.
_TICKS = 1000


class _Sound:
    """Sound that is written beside frames: as far as they are."""

    def __init__(self, container: Any, audio_S: np.ndarray, sample_rate_hz: int):
        self._container, self._stream = container, add_sound(container, sample_rate_hz)
        self._samples, self._rate_hz, self._place = to_int16(audio_S), sample_rate_hz, 0

    def until(self, seconds: float) -> None:
        """Writes what is heard up to a time."""
        stop = min(round(seconds * self._rate_hz), len(self._samples))
        if stop <= self._place:
            return
        frame = av.AudioFrame.from_ndarray(self._samples[None, self._place : stop], format="s16", layout="mono")
        frame.sample_rate, frame.pts = self._rate_hz, self._place
        frame.time_base = fractions.Fraction(1, self._rate_hz)
        self._place = stop
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self.until(len(self._samples) / self._rate_hz)
        self._container.mux(self._stream.encode(None))


def mux_sound(source: PathLike, path: PathLike, audio_S: np.ndarray, sample_rate_hz: int, comment: str = "") -> None:
    """Writes the film of a file with another sound: its coded frames as they are, the sound beside them as AAC.

    Args:
        path: an mp4 or a mkv: its suffix says which.
        audio_S: begins with the first frame.

    Raises:
        MediaError: no video in it, or the container does not take its codec.
    """
    format = {".mp4": "mp4", ".mkv": "matroska"}[os.path.splitext(path)[1]]
    with open_media(source) as film, replacing(path) as file:
        taken = choose(source, film)
        with av.open(os.fspath(file), "w", format=format) as container:
            if comment:
                container.metadata["comment"] = comment
            try:
                copy = container.add_stream_from_template(taken)
                sound = _Sound(container, audio_S, sample_rate_hz)
                for packet in _timed([packet for packet in film.demux(taken) if packet.size]):
                    sound.until(float(packet.pts * packet.time_base))
                    packet.stream = copy
                    container.mux(packet)
            except (av.error.FFmpegError, ValueError) as error:
                reason = f"its {taken.codec_context.name} cannot be copied into {format}: {error}"
                raise MediaError(source, reason) from None
            sound.finish()


def _timed(packets: list[av.Packet]) -> list[av.Packet]:
    """Coded frames with the first one at time 0; when each is decoded follows from when they are shown.

    Raises ValueError where a frame has no time.
    """
    displayed = [packet.dts if packet.pts is None else packet.pts for packet in packets]
    if not packets or None in displayed:
        raise ValueError("its frames have no times")
    ordered = sorted(displayed)
    late = max(due - at for due, at in zip(ordered, displayed))
    for packet, at, due in zip(packets, displayed, ordered):
        packet.pts, packet.dts = at - ordered[0], due - ordered[0] - late
    return packets


def dub(
    original: PathLike,
    path: pathlib.Path,
    video_TxHxWx3: np.ndarray,
    rate_hz: float,
    audio_S: np.ndarray,
    sample_rate_hz: int,
    comment: str = "",
) -> pathlib.Path:
    """A film with the frames of a file as they are coded, and another sound; the file that was written.

    It is `path`, an mp4; a mkv where mp4 does not take the codec; a film of `video_TxHxWx3` where neither does, such as
    for a gif.
    """
    file, reason = _copied(original, path, audio_S, sample_rate_hz, comment)
    if file is None:
        _LOG.warning("%s: its frames are encoded again: %s", original, reason)
        write_mp4(path, video_TxHxWx3, rate_hz, audio_S, sample_rate_hz, comment)
    return file or path


def dub_whole(
    original: PathLike, path: pathlib.Path, audio_S: np.ndarray, sample_rate_hz: int, comment: str = ""
) -> pathlib.Path:
    """`dub` of a film of any length, never with other pixels: a mkv of lossless frames (FFV1) where none can be copied.

    Raises MediaError: the file holds no film.
    """
    file, reason = _copied(original, path, audio_S, sample_rate_hz, comment)
    if file is not None:
        return file
    _LOG.warning("%s: its frames are encoded again, without loss: %s", original, reason)
    file = path.with_suffix(".mkv")
    with open_film(original) as film:
        _write_lossless(film.frames, file, audio_S, sample_rate_hz, comment)
    return file


def _copied(
    original: PathLike, path: pathlib.Path, audio_S: np.ndarray, sample_rate_hz: int, comment: str
) -> tuple[pathlib.Path | None, str]:
    """The file of the copied frames, an mp4 or a mkv; or None, and why there is none."""
    reason = ""
    for file in (path, path.with_suffix(".mkv")):
        try:
            mux_sound(original, file, audio_S, sample_rate_hz, comment)
        except MediaError as error:
            reason = error.reason
        else:
            return file, ""
    return None, reason


def _write_lossless(
    frames: Iterable[Frame], path: pathlib.Path, audio_S: np.ndarray, sample_rate_hz: int, comment: str
) -> None:
    """Frames at their own times, bit by bit, with a sound."""
    stream = begin_s = None
    with replacing(path) as file, av.open(os.fspath(file), "w", format="matroska") as container:
        container.metadata["comment"] = comment
        for frame in frames:
            pixels = frame.pixels()
            if stream is None:
                stream, begin_s = container.add_stream("ffv1", rate=_TICKS), frame.time_s
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "bgr0"
                sound = _Sound(container, audio_S, sample_rate_hz)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            picture.pts = round((frame.time_s - begin_s) * _TICKS)
            picture.time_base = fractions.Fraction(1, _TICKS)
            sound.until(frame.time_s - begin_s)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        sound.finish()
