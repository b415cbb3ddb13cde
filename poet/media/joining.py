"""A film written piece by piece: H.264 and AAC in mp4, at constant memory whatever its length."""

from __future__ import annotations

import contextlib
import fractions
import os
from collections.abc import Iterator

import av
import numpy as np

from poet.media.colour import to_yuv420p
from poet.media.files import PathLike, replacing
from poet.media.sound import to_int16
from poet.media.writing import add_sound, add_video, check_video
from poet.spec import UserError


class FilmWriter:
    """Takes the pieces of a film in order; see `open_film_writer`."""

    def __init__(self, container: av.container.OutputContainer, video: av.VideoStream, audio: av.AudioStream | None):
        self._container, self._video, self._audio, self._samples = container, video, audio, 0

    def add(self, frames_TxHxWx3: np.ndarray, samples_S: np.ndarray | None = None) -> None:
        """The next frames, uint8, and samples, int16 or floats in [-1, 1]; either may be empty."""
        if len(frames_TxHxWx3):
            check_video(frames_TxHxWx3)
        for pixels in frames_TxHxWx3:
            self._container.mux(self._video.encode(to_yuv420p(pixels)))
        if self._audio is None or samples_S is None or not len(samples_S):
            return
        frame = av.AudioFrame.from_ndarray(to_int16(samples_S)[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = self._audio.rate, fractions.Fraction(1, self._audio.rate)
        frame.pts = self._samples
        self._samples += len(samples_S)
        self._container.mux(self._audio.encode(frame))

    def finish(self) -> None:
        """Writes the packets that the encoders still hold."""
        for stream in (self._video, self._audio):
            if stream is not None:
                self._container.mux(stream.encode(None))


@contextlib.contextmanager
def open_film_writer(
    path: PathLike, height: int, width: int, rate_hz: float, sample_rate_hz: int | None = None
) -> Iterator[FilmWriter]:
    """A writer of an mp4 that takes the place of `path` when the block ends well.

    Args:
        sample_rate_hz: of its sound; None is a silent film.

    Raises:
        UserError: a side is odd.
    """
    if height % 2 or width % 2:
        raise UserError(f"H.264 needs even sides, and this film has {height}x{width}")
    with replacing(path) as file:
        with av.open(os.fspath(file), "w", format="mp4", options={"movflags": "faststart"}) as container:
            video = add_video(container, height, width, rate_hz)
            writer = FilmWriter(container, video, add_sound(container, sample_rate_hz) if sample_rate_hz else None)
            yield writer
            writer.finish()
