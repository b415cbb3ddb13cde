"""Colour: decoded frames to RGB and back, exact to the level.

RGB is uint8 as a screen of today shows it: sRGB, or BT.709 video, whose small difference is left alone.
What a file does not say is supposed:

- the matrix of YCbCr: BT.709 from 720 lines or 1,280 columns on, else BT.601;
- the range: the limited one (16..235), but for JPEG's own formats;
- primaries and transfer: those of BT.709.

HDR (PQ, HLG) and wide gamuts (BT.2020, P3) are mapped into BT.709 by libswscale; other primaries are taken
as they are.  What is transparent lies on white.
"""

from __future__ import annotations

import threading

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

# Without these flags libswscale repeats chroma samples and cuts fractions off: a level too dark.
_EXACT = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
# How chroma samples are thinned out, and filled in: there bicubic differs by up to 3 levels and costs
# more than twice the time.
ACCURATE = Interpolation.BICUBIC | _EXACT
_READING = Interpolation.BILINEAR | _EXACT
# The level on which what is transparent lies: white, as pages show it.
BACKGROUND = 255
# H.273: matrix coefficients -> libswscale's.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
# RGB itself, reserved, and unspecified.
_UNSPECIFIED = (0, 2, 3)
_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
_WIDE = (ColorPrimaries.BT2020, ColorPrimaries.SMPTE431, ColorPrimaries.SMPTE432)


class _Kept(threading.local):
    """Mapping HDR takes seconds to prepare and next to nothing to use: it outlives a file."""

    def __init__(self) -> None:
        self.mapping = VideoReformatter()


_KEPT = _Kept()


class UnknownColour(Exception):
    """Unsupported colours; the message names them."""


class ToRGB:
    """Converts the frames of one stream, which mostly share one format."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3), as the frame lies in the file.

        Raises:
            UnknownColour: a matrix that is not known.
        """
        see_through = frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components)
        mapped = frame.color_trc in _HDR or frame.color_primaries in _WIDE
        reformatter = _KEPT.mapping if mapped else self._reformatter
        converted = reformatter.reformat(
            frame,
            format="rgba" if see_through else "rgb24",
            src_colorspace=_matrix(frame),
            dst_color_trc=ColorTrc.BT709 if mapped else None,
            dst_color_primaries=ColorPrimaries.BT709 if mapped else None,
            # Mapping 4:2:0 with bilinear filters, libswscale 9.5 gives wrong colours.
            interpolation=ACCURATE if mapped else _READING,
            threads=1,
        )
        pixels = converted.to_ndarray()
        return over_background(pixels) if see_through else pixels


def _matrix(frame: av.VideoFrame) -> Colorspace:
    code = int(frame.colorspace)
    if code in _UNSPECIFIED:
        large = frame.height >= 720 or frame.width >= 1280
        return Colorspace.ITU709 if large else Colorspace.ITU601
    if code not in _MATRICES:
        raise UnknownColour(f"unknown colours: matrix coefficients {code} of H.273")
    return _MATRICES[code]


def over_background(pixels_HxWx4: np.ndarray) -> np.ndarray:
    """uint8 RGBA, straight alpha -> uint8 RGB (H, W, 3)."""
    alpha = pixels_HxWx4[..., 3:].astype(np.uint16)
    levels = pixels_HxWx4[..., :3] * alpha + BACKGROUND * (255 - alpha)
    return ((levels + 127) // 255).astype(np.uint8)


def to_yuv420p(pixels_HxWx3: np.ndarray) -> av.VideoFrame:
    """uint8 RGB of even sides -> a frame in BT.709 and the limited range.

    Chroma samples lie where H.264 supposes them: on every other column, between two lines.  libswscale
    supposes another place for frames that it makes, so that colours would move at every rewriting.
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HxWx3), format="rgb24")
    whole = frame.reformat(
        format="yuv444p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=ACCURATE,
        threads=1,
    )
    luma, *chroma = whole.to_ndarray()
    planes = [luma, *map(_thinned, chroma)]
    packed = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, luma.shape[1])
    made = av.VideoFrame.from_ndarray(packed, format="yuv420p")
    tag(made)
    return made


def _thinned(plane_HxW: np.ndarray) -> np.ndarray:
    """Half as many lines and columns, by weights of 1 2 1 about every other column."""
    left = np.pad(plane_HxW, ((0, 0), (1, 0)), "edge").astype(np.uint16)
    columns = left[:, :-1:2] + 2 * left[:, 1::2] + np.pad(left, ((0, 0), (0, 1)), "edge")[:, 2::2]
    return ((columns[::2] + columns[1::2] + 4) // 8).astype(np.uint8)


def tag(made: av.VideoCodecContext | av.VideoFrame) -> None:
    """Sets the colour metadata of the output of `to_yuv420p`."""
    made.colorspace = Colorspace.ITU709
    made.color_range = ColorRange.MPEG
    made.color_primaries = ColorPrimaries.BT709
    made.color_trc = ColorTrc.BT709
