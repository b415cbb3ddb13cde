"""Media files: clips of one format from any file that PyAV reads; mp4, gif, png and wav out.

`poet.media.sound` is what concerns sound alone, `poet.media.files` what every file has in common;
`poet.media.bitstreams` holds H.264 and H.265 streams in memory, which tokenizers are compared with.

Video is uint8 RGB (T, H, W, 3), audio is mono int16 (S,) at a sample rate in Hz.  Every file is
written beside its place and renamed into it, so that a killed process leaves no half-written file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import math
import os
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from PIL import Image

from poet.media.files import MediaError, PathLike, naming_the_file, replacing, stated_seconds, write_text
from poet.media.seeking import SEEK_FROM_S, seek
from poet.media.sound import (
    Sound,
    read_sound,
    read_track,
    to_int16,
    write_wav,
)
from poet.media.suffixes import SOUND_SUFFIXES, VIDEO_SUFFIXES, picture_suffixes
from poet.specs import ClipSpec, UserError

# The whole house imports these from here.
__all__ = [
    "MediaError",
    "PathLike",
    "SOUND_SUFFIXES",
    "Sound",
    "VIDEO_SUFFIXES",
    "picture_suffixes",
    "read_sound",
    "read_track",
    "replacing",
    "stated_seconds",
    "to_int16",
    "write_text",
    "write_wav",
]

# x264's constant rate factor: 18 is held to be visually lossless, so 16 leaves a margin.
H264_CRF = 16

# Where the crop of a frame lies between (0, 0), its upper left, and (1, 1), its lower right.
Place = tuple[float, float]
CENTRE: Place = (0.5, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """video: uint8 (T, H, W, 3).  audio: int16 mono (S,), or None where the file has no sound."""

    video: np.ndarray
    audio: np.ndarray | None


# ---------------------------------------------------------------------------------------- reading


def read_clip(
    path: PathLike, clip: ClipSpec, place: Place = CENTRE, sound: PathLike | None = None
) -> Clip:
    """Reads the first `clip.frames / clip.rate_hz` seconds of a file in the clip's format.

    Frame k is the source frame whose timestamp is nearest to k / rate_hz after the first frame's.
    Frames are rotated as the file asks, cropped to the clip's aspect and resized.  Sound is mixed
    to mono, resampled, and aligned with the first frame; silence fills what the file does not
    cover.  A still image is a clip of one frame.

    Args:
        place: where the crop lies, by default about the centre.
        sound: another file that holds the sound, from the first frame on.

    Raises:
        MediaError: no such file, undecodable, no video, corrupt, truncated or too short.
    """
    with naming_the_file(path):
        frames, start_s = _read_video(path, clip, place)
        if sound is None:
            audio = read_track(path, clip.sample_rate_hz, clip.samples, start_s)
        else:
            audio = read_track(sound, clip.sample_rate_hz, clip.samples, 0.0)
    return Clip(video=frames, audio=audio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """What a file shows: sides in square pixels, as rotated; seconds from its first frame's start
    to its last frame's end."""

    height: int
    width: int
    seconds: float

    def frames(self, rate_hz: float) -> int:
        """Most frames that `read_clip` can take at this rate."""
        return 1 + int((self.seconds - 1e-6) * rate_hz)


def probe(path: PathLike) -> Picture:
    """Decodes the video of a file to measure it.

    Raises:
        MediaError: no such file, undecodable, or no video.
    """
    with naming_the_file(path), av.open(os.fspath(path)) as container:
        if not container.streams.video:
            raise MediaError(path, "no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        interval_s = 1 / float(stream.average_rate or 1)
        start_s = end_s = None
        for index, frame in enumerate(container.decode(stream)):
            time_s = index * interval_s if frame.time is None else frame.time
            start_s = time_s if start_s is None else start_s
            end_s = time_s + (_duration_s(frame) or interval_s)
        if end_s is None:
            raise MediaError(path, "truncated: no frame could be decoded")
        sides = frame.height, round(frame.width * float(stream.sample_aspect_ratio or 1))
        height, width = sides[::-1] if round(frame.rotation / 90) % 2 else sides
    return Picture(height=height, width=width, seconds=end_s - start_s)


def read_frames(
    path: PathLike, clip: ClipSpec, place: Place = CENTRE, first: int = 0
) -> Iterator[tuple[np.ndarray, float]]:
    """The frames of a file in the clip's format, from number `first` on, as `read_clip` takes them.

    Yields:
        uint8 (H, W, 3), and the time of the file's first frame on its own clock in seconds.

    Raises:
        MediaError: as `read_clip`, of what was decoded so far; never for being too short.
    """
    with naming_the_file(path), _Decoder.open(path, clip, first / clip.rate_hz) as decoder:
        taken = first
        for frame, until_s in decoder.shown():
            copies = _due(taken, until_s, clip)
            if copies:
                pixels = _fit_frame(frame, clip, decoder.stream, place)
            for _ in range(copies):
                yield pixels, decoder.start_s
            taken += copies


def _read_video(path: PathLike, clip: ClipSpec, place: Place) -> tuple[np.ndarray, float]:
    """The clip's frames, and the time of the first one on the file's clock in seconds."""
    with _Decoder.open(path, clip) as decoder:
        chosen: list[np.ndarray] = []
        for frame, until_s in decoder.shown():
            copies = min(_due(len(chosen), until_s, clip), clip.frames - len(chosen))
            if copies:
                chosen.extend([_fit_frame(frame, clip, decoder.stream, place)] * copies)
            if len(chosen) == clip.frames:
                return np.stack(chosen), decoder.start_s
        raise MediaError(path, _shortage(decoder, clip))


def _due(taken: int, until_s: float, clip: ClipSpec) -> int:
    """Instants k / rate_hz of a clip up to `until_s`, without the first `taken` of them."""
    copies = 0
    while (taken + copies) / clip.rate_hz <= until_s + 1e-9:
        copies += 1
    return copies


@dataclasses.dataclass(kw_only=True)
class _Decoder:
    """The video of a file.  `end_s` is the end of the last frame that was decoded so far.

    `frames` are all of them, or those from a bit before some time on; then `sought_s` is the time of
    the file's first frame.
    """

    path: PathLike
    container: av.container.InputContainer
    stream: av.VideoStream
    interval_s: float
    frames: Iterator[av.VideoFrame]
    sought_s: float | None = None
    start_s: float = 0.0
    end_s: float = 0.0

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: PathLike, clip: ClipSpec, from_s: float = 0.0) -> Iterator[_Decoder]:
        """What is before `from_s` seconds after the first frame may be left out."""
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise MediaError(path, "no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            found = seek(container, stream, from_s) if from_s >= SEEK_FROM_S else None
            if found or from_s < SEEK_FROM_S:
                interval_s = 1 / float(stream.average_rate or clip.rate_hz)
                frames, sought_s = found or (container.decode(stream), None)
                yield cls(
                    path=path,
                    container=container,
                    stream=stream,
                    interval_s=interval_s,
                    frames=frames,
                    sought_s=sought_s,
                )
                return
        with cls.open(path, clip) as decoder:
            yield decoder

    def shown(self) -> Iterator[tuple[av.VideoFrame, float]]:
        """Every frame, and until when it is the nearest one, in seconds after the first frame."""
        before: tuple[float, av.VideoFrame] | None = None
        for index, frame in enumerate(self.frames):
            time_s = index * self.interval_s if frame.time is None else frame.time
            if frame.is_corrupt:
                raise MediaError(self.path, f"corrupt frame at {time_s:.2f} s")
            if before is None:
                self.start_s = time_s if self.sought_s is None else self.sought_s
            else:
                yield before[1], (before[0] + time_s) / 2 - self.start_s
            before = (time_s, frame)
            self.end_s = time_s + (_duration_s(frame) or self.interval_s)
        if before is None:
            raise MediaError(self.path, "truncated: no frame could be decoded")
        # Strictly before the end of the last frame: a clip never shows a frame past its time.
        yield before[1], self.end_s - self.start_s - 1e-6


def _duration_s(frame: av.VideoFrame) -> float:
    """How long the frame is shown, 0 where the file does not say."""
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0


def _fit_frame(
    frame: av.VideoFrame, clip: ClipSpec, stream: av.VideoStream, place: Place
) -> np.ndarray:
    pixels_HxWx3 = frame.to_ndarray(format="rgb24")
    aspect = float(stream.sample_aspect_ratio or 1)
    turns = round(frame.rotation / 90)
    if turns % 2:
        aspect = 1 / aspect
    return resize_image(np.rot90(pixels_HxWx3, turns), clip.height, clip.width, aspect, place)


def _shortage(decoder: _Decoder, clip: ClipSpec) -> str:
    """Says whether the file ends before its own header says, or was never long enough."""
    container, end_s = decoder.container, decoder.end_s
    stated_s = container.duration / av.time_base if container.duration else 0.0
    if container.start_time:
        stated_s += container.start_time / av.time_base
    if end_s + 2 * decoder.interval_s < stated_s:
        return f"truncated: {end_s:.2f} s of {stated_s:.2f} s could be decoded"
    # Frame i is taken at i / rate, before the end.
    have = math.ceil(round((end_s - decoder.start_s) * clip.rate_hz, 6))
    return (
        f"too short: it gives {have} frames at {clip.rate_hz:g} Hz ({end_s - decoder.start_s:.3f} s), "
        f"{clip.frames} are needed"
    )


# --------------------------------------------------------------------------------------- resizing


def centre_box(
    height: int,
    width: int,
    to_height: int,
    to_width: int,
    pixel_aspect: float = 1.0,
    place: Place = CENTRE,
) -> tuple[float, float, float, float]:
    """The largest (left, top, right, bottom) with the aspect to_width / to_height, centred or at
    another place.

    `pixel_aspect` is the width of a source pixel over its height.
    """
    aspect = to_width / to_height / pixel_aspect
    box_width, box_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - box_width) * place[0], (height - box_height) * place[1]
    return left, top, left + box_width, top + box_height


def resize_image(
    image_HxWx3: np.ndarray,
    height: int,
    width: int,
    pixel_aspect: float = 1.0,
    place: Place = CENTRE,
) -> np.ndarray:
    """Crops uint8 (H, W, 3) to the target's aspect; bicubic resize with antialiasing."""
    box = centre_box(*image_HxWx3.shape[:2], height, width, pixel_aspect, place)
    image = Image.fromarray(np.ascontiguousarray(image_HxWx3))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def resize_video(
    video_TxHxWx3: np.ndarray, height: int, width: int, place: Place = CENTRE
) -> np.ndarray:
    """`resize_image` on every frame; the array itself where nothing changes."""
    if video_TxHxWx3.shape[1:3] == (height, width):
        return video_TxHxWx3
    return np.stack([resize_image(f, height, width, place=place) for f in video_TxHxWx3])


# ---------------------------------------------------------------------------------------- writing


def check_video(video_TxHxWx3: np.ndarray) -> None:
    shape, dtype = video_TxHxWx3.shape, video_TxHxWx3.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
        raise ValueError(f"video must be uint8 (T, H, W, 3) with T > 0, got {dtype} {shape}")


def write_mp4(
    path: PathLike,
    video_TxHxWx3: np.ndarray,
    rate_hz: float,
    audio_S: np.ndarray | None = None,
    sample_rate_hz: int | None = None,
) -> None:
    """Writes H.264 (yuv420p, even sides only) and, with audio, AAC.

    Raises:
        UserError: a side is odd.
        ValueError: a wrong shape or dtype, or audio without a sample rate.
    """
    check_video(video_TxHxWx3)
    height, width = video_TxHxWx3.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(f"H.264 needs even sides, got {height}x{width}; resize, or write a gif")
    if audio_S is not None and not sample_rate_hz:
        raise ValueError("audio needs sample_rate_hz")
    with replacing(path) as file:
        # faststart puts the index first: a browser plays the file while it loads.
        options = {"movflags": "faststart"}
        with av.open(os.fspath(file), "w", format="mp4", options=options) as container:
            video_stream = _add_h264(container, height, width, rate_hz)
            audio_stream = None if audio_S is None else _add_aac(container, sample_rate_hz)
            _encode_video(container, video_stream, video_TxHxWx3)
            if audio_S is not None:
                _encode_audio(container, audio_stream, to_int16(audio_S))


def _add_h264(container: Any, height: int, width: int, rate_hz: float) -> av.VideoStream:
    rate = fractions.Fraction(rate_hz).limit_denominator(1001)
    stream = container.add_stream("libx264", rate=rate, options={"crf": str(H264_CRF)})
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    return stream


def _add_aac(container: Any, sample_rate_hz: int) -> av.AudioStream:
    return container.add_stream("aac", rate=sample_rate_hz, layout="mono")


def _encode_video(container: Any, stream: av.VideoStream, video_TxHxWx3: np.ndarray) -> None:
    for pixels_HxWx3 in video_TxHxWx3:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HxWx3), format="rgb24")
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _encode_audio(container: Any, stream: av.AudioStream, audio_S: np.ndarray) -> None:
    frame = av.AudioFrame.from_ndarray(audio_S[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = stream.rate, 0
    frame.time_base = fractions.Fraction(1, stream.rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_gif(path: PathLike, video_TxHxWx3: np.ndarray, rate_hz: float) -> None:
    """Writes an endless GIF; its clock counts hundredths of a second, so 8 Hz becomes 8.33 Hz."""
    check_video(video_TxHxWx3)
    first, *rest = [Image.fromarray(frame) for frame in video_TxHxWx3]
    duration_ms = max(round(100 / rate_hz) * 10, 20)
    with replacing(path) as file:
        first.save(
            file, "GIF", save_all=True, append_images=rest, duration=duration_ms, loop=0, disposal=1
        )


def frame_strip(video_TxHxWx3: np.ndarray, every: int = 1) -> np.ndarray:
    """Every n-th frame side by side: uint8 (H, frames * W, 3)."""
    check_video(video_TxHxWx3)
    return np.concatenate(list(video_TxHxWx3[::every]), axis=1)


def write_png_strip(path: PathLike, video_TxHxWx3: np.ndarray, every: int = 1) -> None:
    """Writes `frame_strip` as a PNG."""
    with replacing(path) as file:
        Image.fromarray(frame_strip(video_TxHxWx3, every)).save(file, "PNG")
