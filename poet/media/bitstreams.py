"""H.264 and H.265 streams in memory: the codecs that video tokenizers are compared with."""

from __future__ import annotations

import dataclasses
import fractions
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np

from poet.media.colour import ACCURATE
from poet.media.writing import check_video
from poet.spec import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamCodec:
    """A codec of raw Annex B streams.

    Attributes:
      options: of the encoder: nothing printed, one thread.  x264 repeats itself byte for byte only
        without its assembly, whose macroblock tree reads unset memory beside narrow pictures; x265
        still differs a little from run to run.
      kind: type of a NAL unit, from its first byte.
      slices: the types that carry pictures (H.264 table 7-1, H.265 table 7-1).
    """

    encoder: str
    decoder: str
    options: dict[str, str]
    kind: Callable[[int], int]
    slices: range


STREAM_CODECS: dict[str, StreamCodec] = {
    "x264": StreamCodec(
        encoder="libx264",
        decoder="h264",
        options={"x264-params": "asm=0"},
        kind=lambda byte: byte & 31,
        slices=range(1, 6),
    ),
    "x265": StreamCodec(
        encoder="libx265",
        decoder="hevc",
        options={"x265-params": "log-level=none:pools=none:frame-threads=1"},
        kind=lambda byte: byte >> 1 & 63,
        slices=range(0, 32),
    ),
}
PIXEL_FORMATS = ("yuv420p", "yuv444p")
# A group of pictures longer than any stream: key frames stand where the encoder sees a cut.
STREAM_GOP = 1 << 20


def encode_stream(
    video_TxHxWx3: np.ndarray,
    codec: str,
    crf: float,
    *,
    rate_hz: float,
    pixel_format: str = "yuv420p",
    preset: str = "slow",
) -> list[bytes]:
    """Packets of a raw stream at a constant rate factor: 0 is the best quality, 51 the worst.

    Args:
      codec: of STREAM_CODECS.  pixel_format: of PIXEL_FORMATS.  preset: of the encoder.

    Raises:
      UserError: a side is odd in yuv420p, or the encoder refuses the size or the preset.
      ValueError: a wrong shape or dtype.
    """
    check_video(video_TxHxWx3)
    height, width = video_TxHxWx3.shape[1:3]
    if pixel_format == "yuv420p" and (height % 2 or width % 2):
        raise UserError(f"yuv420p needs even sides, got {height}x{width}; use yuv444p or resize")
    known = STREAM_CODECS[codec]
    context = av.CodecContext.create(known.encoder, "w")
    context.width, context.height, context.pix_fmt = width, height, pixel_format
    rate = fractions.Fraction(rate_hz).limit_denominator(1001)
    context.framerate, context.time_base = rate, 1 / rate
    context.gop_size, context.thread_count = STREAM_GOP, 1
    context.options = {"preset": preset, "crf": f"{crf:.4f}", **known.options}
    try:
        packets = [p for i, f in enumerate(video_TxHxWx3) for p in _encode_frame(context, f, i)]
        packets += context.encode(None)
    except av.error.FFmpegError as error:
        raise UserError(
            f"{known.encoder} refuses {height}x{width} {pixel_format} with preset {preset!r}: {error.strerror}"
        ) from None
    return [bytes(packet) for packet in packets]


def _encode_frame(context: Any, pixels_HxWx3: np.ndarray, index: int) -> list[av.Packet]:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HxWx3), format="rgb24")
    frame = frame.reformat(format=context.pix_fmt, interpolation=ACCURATE)
    frame.pts, frame.time_base = index, context.time_base
    return context.encode(frame)


def decode_stream(packets: Sequence[bytes], codec: str) -> np.ndarray:
    """uint8 (T, H, W, 3) of all the packets of `encode_stream`."""
    context = av.CodecContext.create(STREAM_CODECS[codec].decoder, "r")
    frames = [f for data in packets for f in context.decode(av.Packet(data))]
    frames += context.decode(None)
    converted = (f.reformat(format="rgb24", interpolation=ACCURATE) for f in frames)
    return np.stack([frame.to_ndarray() for frame in converted])


def slice_bytes(packets: Sequence[bytes], codec: str) -> int:
    """Bytes of the NAL units that carry pictures, without start codes.

    Not counted: parameter sets, which clips of one format could share, and the encoder's comments
    (SEI), which outweigh the pictures of a short small clip.
    """
    known = STREAM_CODECS[codec]
    units = [u for data in packets for u in _nal_units(data)]
    return sum(len(unit) for unit in units if known.kind(unit[0]) in known.slices)


def _nal_units(data: bytes) -> list[bytes]:
    """The units between the start codes 00 00 01 and 00 00 00 01; no unit ends in a zero byte."""
    units = (unit.rstrip(b"\0") for unit in data.split(b"\0\0\1"))
    return [unit for unit in units if unit]
