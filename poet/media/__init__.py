"""Media files: clips of one format from any file that PyAV reads; mp4, gif, png and wav out.

`poet.media.sound` is what concerns sound alone, `poet.media.files` what every file has in common;
`poet.media.bitstreams` holds H.264 and H.265 streams in memory, which tokenizers are compared with.

Video is uint8 RGB (T, H, W, 3), audio is mono int16 (S,) at a sample rate in Hz.  Every file is
written beside its place and renamed into it, so that a killed process leaves no half-written file.
"""

from __future__ import annotations

import dataclasses
import fractions
import os
from typing import Any

import av
import numpy as np
from PIL import Image

from poet.media.files import MediaError, PathLike, naming_the_file, replacing, write_text
from poet.media.sound import (
    SOUND_SUFFIXES,
    Sound,
    read_sound,
    read_track,
    to_int16,
    write_wav,
)
from poet.specs import ClipSpec, UserError

# The whole house imports these from here.
__all__ = [
    "MediaError",
    "PathLike",
    "SOUND_SUFFIXES",
    "Sound",
    "read_sound",
    "replacing",
    "to_int16",
    "write_text",
    "write_wav",
]

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm")

# x264's constant rate factor: 18 is held to be visually lossless, so 16 leaves a margin.
H264_CRF = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """video: uint8 (T, H, W, 3).  audio: int16 mono (S,), or None where the file has no sound."""

    video: np.ndarray
    audio: np.ndarray | None


# ---------------------------------------------------------------------------------------- reading


def read_clip(path: PathLike, clip: ClipSpec) -> Clip:
    """Reads the first `clip.frames / clip.rate_hz` seconds of a file in the clip's format.

    Frame k is the source frame whose timestamp is nearest to k / rate_hz after the first frame's.
    Frames are rotated as the file asks, cropped about the centre to the clip's aspect and resized.
    Sound is mixed to mono, resampled, and aligned with the first frame; silence fills what the
    file does not cover.  A still image is a clip of one frame.

    Raises:
        MediaError: no such file, undecodable, no video, corrupt, truncated or too short.
    """
    with naming_the_file(path):
        frames, start_s = _read_video(path, clip)
        audio = read_track(path, clip.sample_rate_hz, clip.samples, start_s)
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


def _read_video(path: PathLike, clip: ClipSpec) -> tuple[np.ndarray, float]:
    """The clip's frames, and the time of the first one on the file's clock in seconds."""
    with av.open(os.fspath(path)) as container:
        if not container.streams.video:
            raise MediaError(path, "no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        interval_s = 1 / float(stream.average_rate or clip.rate_hz)
        chosen: list[np.ndarray] = []
        start_s = end_s = 0.0
        before: tuple[float, av.VideoFrame] | None = None
        for index, frame in enumerate(container.decode(stream)):
            time_s = index * interval_s if frame.time is None else frame.time
            if frame.is_corrupt:
                raise MediaError(path, f"corrupt frame at {time_s:.2f} s")
            if before is None:
                start_s = time_s
            else:
                middle_s = (before[0] + time_s) / 2 - start_s
                _take_until(chosen, before[1], middle_s, clip, stream)
            if len(chosen) == clip.frames:
                break
            before = (time_s, frame)
            end_s = time_s + (_duration_s(frame) or interval_s)
        if before is None:
            raise MediaError(path, "truncated: no frame could be decoded")
        # Strictly before the end of the last frame: a clip never shows a frame past its time.
        _take_until(chosen, before[1], end_s - start_s - 1e-6, clip, stream)
        if len(chosen) < clip.frames:
            raise MediaError(path, _shortage(container, clip, end_s, end_s - start_s, interval_s))
    return np.stack(chosen), start_s


def _duration_s(frame: av.VideoFrame) -> float:
    """How long the frame is shown, 0 where the file does not say."""
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0


def _take_until(
    chosen: list[np.ndarray],
    frame: av.VideoFrame,
    until_s: float,
    clip: ClipSpec,
    stream: av.VideoStream,
) -> None:
    """Appends `frame` for every instant of the clip that is due up to `until_s`."""
    due = range(len(chosen), clip.frames)
    copies = sum(k / clip.rate_hz <= until_s + 1e-9 for k in due)
    if copies:
        chosen.extend([_fit_frame(frame, clip, stream)] * copies)


def _fit_frame(frame: av.VideoFrame, clip: ClipSpec, stream: av.VideoStream) -> np.ndarray:
    pixels_HxWx3 = frame.to_ndarray(format="rgb24")
    aspect = float(stream.sample_aspect_ratio or 1)
    turns = round(frame.rotation / 90)
    if turns % 2:
        aspect = 1 / aspect
    return resize_image(np.rot90(pixels_HxWx3, turns), clip.height, clip.width, aspect)


def _shortage(
    container: av.container.InputContainer,
    clip: ClipSpec,
    end_s: float,
    decoded_s: float,
    interval_s: float,
) -> str:
    """Says whether the file ends before its own header says, or was never long enough."""
    stated_s = container.duration / av.time_base if container.duration else 0.0
    if container.start_time:
        stated_s += container.start_time / av.time_base
    if end_s + 2 * interval_s < stated_s:
        return f"truncated: {end_s:.2f} s of {stated_s:.2f} s could be decoded"
    needed_s = (clip.frames - 1) / clip.rate_hz
    return (
        f"too short: {clip.frames} frames at {clip.rate_hz:g} Hz need more than {needed_s:.3f} s, "
        f"it has {decoded_s:.3f} s"
    )


# --------------------------------------------------------------------------------------- resizing


def centre_box(
    height: int, width: int, to_height: int, to_width: int, pixel_aspect: float = 1.0
) -> tuple[float, float, float, float]:
    """The largest centred (left, top, right, bottom) with the aspect to_width / to_height.

    `pixel_aspect` is the width of a source pixel over its height.
    """
    aspect = to_width / to_height / pixel_aspect
    box_width, box_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def resize_image(
    image_HxWx3: np.ndarray, height: int, width: int, pixel_aspect: float = 1.0
) -> np.ndarray:
    """Centre-crops uint8 (H, W, 3) to the target's aspect; bicubic resize with antialiasing."""
    box = centre_box(*image_HxWx3.shape[:2], height, width, pixel_aspect)
    image = Image.fromarray(np.ascontiguousarray(image_HxWx3))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def resize_video(video_TxHxWx3: np.ndarray, height: int, width: int) -> np.ndarray:
    """`resize_image` on every frame; the array itself where nothing changes."""
    if video_TxHxWx3.shape[1:3] == (height, width):
        return video_TxHxWx3
    return np.stack([resize_image(frame, height, width) for frame in video_TxHxWx3])


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
