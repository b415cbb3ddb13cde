"""Media files out: mp4, webm, gif, apng, strips of png.  Each may carry a comment, which `read_comment` finds again.

Video is uint8 RGB (T, H, W, 3), audio mono int16 (S,) or floats in [-1, 1].
"""

from __future__ import annotations

import fractions
import os
import pathlib
import struct
import wave
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, PngImagePlugin

from poet.media.colour import tag, to_yuv420p
from poet.media.files import PathLike, open_media, replacing
from poet.media.sound import to_int16
from poet.spec import UserError

# x264's constant rate factor: 18 is held to be visually lossless, so 16 leaves a margin.
H264_CRF = 16
# VP9's: its scale goes to 63, and about 12 is as good.
_VP9_CRF = 12
# Rates that Opus takes.
_OPUS_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)
# Key of a text chunk in a PNG.
_COMMENT = "Comment"


class Container(NamedTuple):
    """How a file that holds a film and its sound is written."""

    format: str
    video: str
    video_options: dict[str, str]
    audio: str
    options: dict[str, str]


# x264's macroblock tree reads unset memory beside narrow pictures: with it a file differs from run to run.
_X264 = {"crf": str(H264_CRF), "x264-params": "mbtree=0"}
# faststart puts the index first: a browser plays the file while it loads.
MP4 = Container("mp4", "libx264", _X264, "aac", {"movflags": "faststart"})
_WEBM = Container("webm", "libvpx-vp9", {"crf": str(_VP9_CRF), "b": "0", "cpu-used": "4"}, "libopus", {})


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
    comment: str = "",
    *,
    kind: Container = MP4,
) -> None:
    """Writes H.264 (yuv420p in BT.709, tagged so, even sides only) and, with audio, AAC; or as `kind` says.

    Raises:
        UserError: a side is odd.
        ValueError: a wrong shape or dtype, or audio without a sample rate.
    """
    check_video(video_TxHxWx3)
    height, width = video_TxHxWx3.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(f"H.264 and VP9 need even sides, got {height}x{width}; resize, or write a gif")
    if audio_S is not None and not sample_rate_hz:
        raise ValueError("audio needs sample_rate_hz")
    with replacing(path) as file, av.open(os.fspath(file), "w", format=kind.format, options=kind.options) as container:
        if comment:
            container.metadata["comment"] = comment
        video = add_video(container, height, width, rate_hz, kind)
        audio = None if audio_S is None else add_sound(container, sample_rate_hz, kind)
        for pixels_HxWx3 in video_TxHxWx3:
            container.mux(video.encode(to_yuv420p(pixels_HxWx3)))
        container.mux(video.encode(None))
        if audio is not None:
            _encode_sound(container, audio, audio_S, sample_rate_hz)


def write_webm(path: PathLike, video_TxHxWx3: np.ndarray, rate_hz: float, *sound: Any, **options: Any) -> None:
    """Writes VP9 and, with audio, Opus at the next rate that it takes; arguments and errors as `write_mp4`."""
    write_mp4(path, video_TxHxWx3, rate_hz, *sound, **options, kind=_WEBM)


def add_video(container: Any, height: int, width: int, rate_hz: float, kind: Container = MP4) -> av.VideoStream:
    """A stream of frames of these even sides, tagged as `to_yuv420p` makes them."""
    rate = fractions.Fraction(rate_hz).limit_denominator(1001)
    stream = container.add_stream(kind.video, rate=rate, options=kind.video_options)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    tag(stream.codec_context)
    return stream


def add_sound(container: Any, sample_rate_hz: int, kind: Container = MP4) -> av.AudioStream:
    """A mono stream of sound; Opus at the next rate that it takes."""
    rate_hz = sample_rate_hz
    if kind.audio == "libopus":
        rate_hz = next((rate for rate in _OPUS_HZ if rate >= sample_rate_hz), _OPUS_HZ[-1])
    return container.add_stream(kind.audio, rate=rate_hz, layout="mono")


def _encode_sound(container: Any, stream: av.AudioStream, audio_S: np.ndarray, sample_rate_hz: int) -> None:
    frame = av.AudioFrame.from_ndarray(to_int16(audio_S)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = sample_rate_hz, 0
    frame.time_base = fractions.Fraction(1, sample_rate_hz)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_gif(path: PathLike, video_TxHxWx3: np.ndarray, rate_hz: float, comment: str = "") -> None:
    """Writes an endless GIF; its clock counts hundredths of a second, so 8 Hz becomes 8.33 Hz."""
    duration_ms = max(round(100 / rate_hz) * 10, 20)
    more = {"comment": comment.encode()} if comment else {}
    _write_pictures(path, "GIF", video_TxHxWx3, duration_ms, disposal=1, **more)


def write_apng(path: PathLike, video_TxHxWx3: np.ndarray, rate_hz: float, comment: str = "") -> None:
    """Writes an endless animated PNG: the pixels bit by bit, a frame for each, repeated ones too."""
    _write_pictures(path, "PNG", video_TxHxWx3, 1000 / rate_hz, pnginfo=_text(comment), blend=_blends(video_TxHxWx3))


def _blends(video_TxHxWx3: np.ndarray) -> list[int]:
    """How each frame is laid on the one before, which is the same for opaque pictures.

    Pillow makes one longer frame of equal ones that are laid alike, so a repeated one is laid otherwise.
    """
    repeats = [bool((a == b).all()) for a, b in zip(video_TxHxWx3, video_TxHxWx3[1:])]
    return [0, *(np.cumsum(repeats) % 2).tolist()]


def _write_pictures(path: PathLike, kind: str, video_TxHxWx3: np.ndarray, duration_ms: float, **more: Any) -> None:
    check_video(video_TxHxWx3)
    first, *rest = [Image.fromarray(frame) for frame in video_TxHxWx3]
    with replacing(path) as file:
        first.save(file, kind, save_all=True, append_images=rest, duration=duration_ms, loop=0, **more)


def frame_strip(video_TxHxWx3: np.ndarray, every: int = 1) -> np.ndarray:
    """Every n-th frame side by side: uint8 (H, frames * W, 3)."""
    check_video(video_TxHxWx3)
    return np.concatenate(list(video_TxHxWx3[::every]), axis=1)


def write_png_strip(path: PathLike, video_TxHxWx3: np.ndarray, every: int = 1, comment: str = "") -> None:
    """Writes `frame_strip` as a PNG."""
    with replacing(path) as file:
        Image.fromarray(frame_strip(video_TxHxWx3, every)).save(file, "PNG", pnginfo=_text(comment))


def _text(comment: str) -> PngImagePlugin.PngInfo | None:
    if not comment:
        return None
    info = PngImagePlugin.PngInfo()
    info.add_text(_COMMENT, comment)
    return info


def write_wav(path: PathLike, audio_S: np.ndarray, sample_rate_hz: int, comment: str = "") -> None:
    """Writes mono 16-bit PCM."""
    sound = to_int16(audio_S)
    with replacing(path) as file:
        with wave.open(os.fspath(file), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(sample_rate_hz)
            out.writeframes(sound.astype("<i2").tobytes())
        if comment:
            _add_to_wav(file, comment.encode())


def _add_to_wav(file: pathlib.Path, comment: bytes) -> None:
    """A LIST chunk behind the samples, which players that know none pass over."""
    text = comment + bytes(1 + (len(comment) + 1) % 2)
    body = b"INFOICMT" + struct.pack("<I", len(comment) + 1) + text
    with open(file, "r+b") as out:
        out.seek(0, os.SEEK_END)
        if out.tell() % 2:
            out.write(b"\0")
        out.write(b"LIST" + struct.pack("<I", len(body)) + body)
        size = out.tell()
        out.seek(4)
        out.write(struct.pack("<I", size - 8))


def read_comment(path: PathLike) -> str:
    """The comment in a media file; '' where there is none.  MediaError as `read_clip`."""
    try:
        with Image.open(path) as image:
            found = {**image.info, **getattr(image, "text", {})}
            comment = found.get(_COMMENT) or found.get("comment") or ""
            return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
    except (OSError, ValueError, SyntaxError):
        pass
    with open_media(path) as container:
        found = {name.lower(): value for name, value in container.metadata.items()}
    return found.get("comment", "")
