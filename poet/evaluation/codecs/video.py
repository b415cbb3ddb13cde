"""Video codecs at the bit rate of a tokenizer, on the same clips.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from poet.media import bitstreams

CRF_BEST, CRF_WORST = 0.0, 51.0
# The rate halves about every six steps of the rate factor: H.264 and H.265 double their quantizer
# step every six.
CRF_HALVING = 6.0
TOLERANCE = 0.02
# Most streams take four or five; the rate of a short one can jump over what is tolerated.
ATTEMPTS = 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coding:
    """One way to spend the tokenizer's bits.

    Attributes:
      codec: of `bitstreams.STREAM_CODECS`.  pixel_format: of `bitstreams.PIXEL_FORMATS`.
      joined: False: each clip is a stream of its own and gets the bits that its codes take, as a
        tokenizer spends them.  True: all clips are one stream of one rate factor, so that headers
        and key frames are shared and bits go to the clips that need them.
      preset: of the encoder; slower ones spend bits better.
    """

    codec: str
    pixel_format: str = "yuv420p"
    joined: bool = False
    preset: str = "slow"

    @property
    def label(self) -> str:
        return f"{self.codec} {self.pixel_format}, {'one stream' if self.joined else 'per clip'}"

    def command(self, height: int, width: int, rate_hz: float, crf: float | str) -> str:
        """The same coding by ffmpeg's command line."""
        known = bitstreams.STREAM_CODECS[self.codec]
        return (
            f"ffmpeg -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate_hz:g} -i - "
            f"-c:v {known.encoder} -preset {self.preset} -crf {crf} -pix_fmt {self.pixel_format} "
            f"-g {bitstreams.STREAM_GOP} -f {known.decoder} -"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coded:
    """Clips encoded and decoded by a codec.

    Attributes:
      video_NxTxHxWx3: uint8, decoded.
      slice_bytes: bytes that carry pictures (`bitstreams.slice_bytes`): the rate that counts.
      stream_bytes: bytes of all packets, parameter sets and remarks included.
      crfs: rate factor of each stream.
    """

    video_NxTxHxWx3: np.ndarray
    slice_bytes: int
    stream_bytes: int
    crfs: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Stream:
    """An encoded stream; `bits` are those of its pictures."""

    packets: tuple[bytes, ...]
    crf: float
    bits: int


def codings(codecs: Sequence[str], preset: str) -> list[Coding]:
    """Every pixel format, per clip and as one stream, of every codec."""
    ways = itertools.product(codecs, (False, True), bitstreams.PIXEL_FORMATS)
    return [
        Coding(codec=codec, pixel_format=pixel_format, joined=joined, preset=preset)
        for codec, joined, pixel_format in ways
    ]


def code(clips_NxTxHxWx3: np.ndarray, coding: Coding, bits_per_clip: float, rate_hz: float) -> Coded:
    """Codes and decodes uint8 clips at `bits_per_clip`, or as little above it as can be had.

    Raises:
      UserError: the encoder refuses the clips' size or the preset.
    """
    frames = clips_NxTxHxWx3.shape[1]
    streams_of = len(clips_NxTxHxWx3) if coding.joined else 1
    videos = clips_NxTxHxWx3.reshape(-1, streams_of * frames, *clips_NxTxHxWx3.shape[2:])
    streams = []
    for video in videos:
        encode = functools.partial(_encode, video, coding, rate_hz)
        streams.append(at_rate(encode, bits_per_clip * streams_of))
    decoded = [bitstreams.decode_stream(stream.packets, coding.codec) for stream in streams]
    return Coded(
        video_NxTxHxWx3=np.stack(decoded).reshape(clips_NxTxHxWx3.shape),
        slice_bytes=sum(stream.bits for stream in streams) // 8,
        stream_bytes=sum(len(packet) for stream in streams for packet in stream.packets),
        crfs=tuple(stream.crf for stream in streams),
    )


def _encode(video_TxHxWx3: np.ndarray, coding: Coding, rate_hz: float, crf: float) -> Stream:
    packets = bitstreams.encode_stream(
        video_TxHxWx3, coding.codec, crf, rate_hz=rate_hz, pixel_format=coding.pixel_format, preset=coding.preset
    )
    return Stream(tuple(packets), crf, 8 * bitstreams.slice_bytes(packets, coding.codec))


def at_rate(encode: Callable[[float], Stream], bits: float) -> Stream:
    """The stream of the fewest bits, among those tried, that has at least `bits`.

    The search over the rate factor ends within TOLERANCE or after ATTEMPTS.  Where the best quality
    takes fewer bits, that is the result.
    """
    aim = bits * (1 + TOLERANCE / 2)
    enough: Stream | None = None
    above: Stream | None = None  # Of the last try on either side of `bits`.
    below: Stream | None = None
    crf = (CRF_BEST + CRF_WORST) / 2
    for attempt in range(ATTEMPTS):
        stream = encode(crf)
        if stream.bits < bits:
            below = stream
        else:
            above = stream
            enough = stream if enough is None else min(enough, stream, key=lambda s: s.bits)
            if enough.bits <= bits * (1 + TOLERANCE):
                return enough
        crf = _next_crf(above, below, aim, halve=attempt % 3 == 2)
    return encode(CRF_BEST) if enough is None else enough


def _next_crf(above: Stream | None, below: Stream | None, aim: float, halve: bool) -> float:
    """The place of `aim` by log-linear interpolation, or the middle of the remaining range.

    With a stream on one side alone, the rate is taken to halve every CRF_HALVING.
    """
    low = CRF_BEST if above is None else above.crf
    high = CRF_WORST if below is None else below.crf
    if above is None or below is None:
        known = above or below
        crf = known.crf + CRF_HALVING * math.log2(max(known.bits, 1) / aim)
    else:
        share = math.log(above.bits / aim) / math.log(above.bits / max(below.bits, 1))
        crf = low + (high - low) * share
    return (low + high) / 2 if halve or not low < crf < high else crf
