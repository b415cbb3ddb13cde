"""Arrays in files of others: none takes more memory than its file has bytes, or than an archive may hold."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np

from poet.spec.foreign import check_size

# Bytes that the arrays of an archive may have in memory, where a few of a file may stand for a thousand times as many.
MOST_BYTES = 2**31


def read_npy(file: str | os.PathLike[str]) -> np.ndarray:
    """The array of a .npy file.

    Raises:
      OSError, ValueError, EOFError: it cannot be read, is damaged, or is smaller than the array that it describes.
    """
    return np.array(np.load(file, mmap_mode="r", allow_pickle=False))


def read_npz(file: str | os.PathLike[str], most: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name.

    Raises:
      UserError: they have more bytes than `most`.
      OSError, ValueError, EOFError, zipfile.BadZipFile: it cannot be read, or is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        check_archive(archive, Path(file).name, most)
        return {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}


def _array(data: bytes) -> np.ndarray:
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except MemoryError:
        raise ValueError("an array is larger than its file") from None


def check_archive(archive: zipfile.ZipFile, name: str, most: int) -> None:
    """Raises UserError for an archive whose files have more bytes than `most`; no more than they say is ever read."""
    check_size(f"what {name} holds", sum(info.file_size for info in archive.infolist()), most)
