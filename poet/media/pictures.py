"""Pictures by Pillow: orientation by EXIF, transparency, colour profiles, and WebP that moves."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from poet.media.colour import over_background
from poet.media.files import MOST_PIXELS

# FFmpeg's names of formats that are read here; of others, and of samples of more than 8 bits, FFmpeg
# knows more.
FORMATS = ("bmp_pipe", "jpeg_pipe", "png_pipe", "tiff_pipe", "webp_pipe")
# Frames without a duration, or with one that no screen shows, last as long as browsers show them.
_LEAST_MS, _USUAL_MS = 10, 100


class UnreadablePicture(Exception):
    """Says why."""


def read_pictures(file: IO[bytes]) -> Iterator[tuple[np.ndarray, float]] | None:
    """The frames of a picture, upright uint8 (H, W, 3), and how many seconds each is shown.

    None where FFmpeg had better read it.

    Raises:
        UnreadablePicture: while it is read: truncated, damaged or too large.
    """
    file.seek(0)
    try:
        image = Image.open(file)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return None if image.mode[0] in "IF" else _frames(image)


def _frames(image: Image.Image) -> Iterator[tuple[np.ndarray, float]]:
    if image.width * image.height > MOST_PIXELS:
        raise UnreadablePicture(f"too large: {image.width}x{image.height} pixels")
    moving = image.format == "WEBP"
    try:
        for index in range(image.n_frames if moving else 1):
            image.seek(index)
            image.load()
            stated_ms = image.info.get("duration", 0)
            yield _rgb(image), (stated_ms if stated_ms > _LEAST_MS else _USUAL_MS) / 1000
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnreadablePicture(f"undecodable: {error}") from None


def _rgb(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        return over_background(np.asarray(_in_srgb(image.convert("RGBA"))))
    return np.asarray(_in_srgb(image).convert("RGB"))


def _in_srgb(image: Image.Image) -> Image.Image:
    """Through the picture's own profile, if it has one that can be read."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
