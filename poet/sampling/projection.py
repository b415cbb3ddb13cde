"""What a small clip says of the large one, put into it exactly.

Resizing to the small size is linear, so that every large clip is the sum of a part that resizing keeps and a part that
it loses (range and null space, as in DDNM, 2212.00490 §3.1).  The small clip knows the first, the network has made up
the second.

Shape suffixes: T frames, h, w rows and columns of the small clip, H, W of the large one.
"""

from __future__ import annotations

import functools

import numpy as np

from poet.spec import UserError


@functools.lru_cache(maxsize=16)
def reduction(size: int, small: int) -> np.ndarray:
    """float64 [small, size]: the filter of `media.resize_image` (bicubic, antialiased) along one side."""
    bumps = np.eye(size, dtype=np.float32)
    return np.stack([_resized_row(row, small) for row in bumps], axis=1).astype(np.float64)


@functools.lru_cache(maxsize=16)
def enlargement(size: int, small: int) -> np.ndarray:
    """float64 [size, small]: bicubic resizing along one side to the large size, as `media.resize_image` does it."""
    return reduction(small, size)


@functools.lru_cache(maxsize=16)
def expansion(size: int, small: int) -> np.ndarray:
    """float64 [size, small], the pseudo-inverse of `reduction`: of all lines of `size` that become a given line, the
    one of least norm."""
    return np.linalg.pinv(reduction(size, small))


def projected(
    made_TxHxWx3: np.ndarray, small_Txhxwx3: np.ndarray, fraction: float = 1.0, detail: float = 1.0
) -> np.ndarray:
    """uint8 [T, H, W, 3]: the clip nearest to `made` that is `small` at the small size.

    They differ by rounding and where a colour would leave its range.

    Args:
      made_TxHxWx3, small_Txhxwx3: uint8.
      fraction: of the way from `made` to that clip, 0 to 1.
      detail: part of the result that is that clip, 0 to 1; the rest is `small` resized.
    """
    pairs = zip(made_TxHxWx3, small_Txhxwx3, strict=True)
    frames = [pixels(_frame(made, small, fraction, detail)) for made, small in pairs]
    return np.asarray(frames, np.uint8).reshape(made_TxHxWx3.shape)


def _frame(made_HxWx3: np.ndarray, small_hxwx3: np.ndarray, fraction: float, detail: float) -> np.ndarray:
    found = corrected(made_HxWx3, small_hxwx3, fraction)
    return found if detail == 1 else detail * found + (1 - detail) * enlarged(small_hxwx3, made_HxWx3.shape[:2])


def corrected(made_HxWx3: np.ndarray, small_hxwx3: np.ndarray, fraction: float) -> np.ndarray:
    """float64 [H, W, 3]: a frame that has gone this fraction of the way to the nearest that is `small`, unrounded."""
    (height, width), (rows, columns) = made_HxWx3.shape[:2], small_hxwx3.shape[:2]
    missing = small_hxwx3 - _along(reduction(height, rows), reduction(width, columns), made_HxWx3)
    return made_HxWx3 + fraction * _along(expansion(height, rows), expansion(width, columns), missing)


def enlarged(small_hxwx3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float64 [H, W, 3]: a frame resized (bicubic) to `size` (H, W), unrounded."""
    vertical, horizontal = (enlargement(*sides) for sides in zip(size, small_hxwx3.shape))
    return _along(vertical, horizontal, small_hxwx3)


def pixels(frame: np.ndarray) -> np.ndarray:
    """uint8 of levels."""
    return np.clip(np.round(frame), 0, 255).astype(np.uint8)


def _along(vertical: np.ndarray, horizontal: np.ndarray, frame_HxWx3: np.ndarray) -> np.ndarray:
    """float64: a matrix applied to the columns of a frame and one to its rows."""
    return np.einsum("ah,hwc,bw->abc", vertical, frame_HxWx3.astype(np.float64), horizontal, optimize=True)


def _resized_row(row: np.ndarray, size: int) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:  # Where an export runs.
        raise UserError("consistency needs the package Pillow: pip install Pillow, or set it to 0") from None
    return np.asarray(Image.fromarray(row[None]).resize((size, 1), Image.Resampling.BICUBIC))[0]
