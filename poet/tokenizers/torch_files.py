"""Weights in files that torch wrote, read without torch.

Of a pickle only tensors and dicts of them are taken, so that a file can run nothing.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from poet.runs.arrays import check_archive

# Little-endian dtypes of torch's storages.
DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_TENSORS_FILE = "data.pkl"


class _Storage(NamedTuple):
    dtype: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of its own copy; dims of stride 0, and storages that tensors share, make any number of it."""
        return math.prod(self.shape) * np.dtype(self.storage.dtype).itemsize

    def array(self, values: np.ndarray) -> np.ndarray:
        """Its own copy of the elements; ValueError where they lie outside its storage."""
        if len(self.shape) != len(self.strides) or min((self.start, *self.shape, *self.strides), default=0) < 0:
            raise ValueError(f"a tensor of shape {self.shape} and strides {self.strides}")
        last = self.start + sum((n - 1) * step for n, step in zip(self.shape, self.strides))
        if math.prod(self.shape) and last >= len(values):
            raise ValueError(f"a tensor of shape {self.shape} does not fit {len(values)} values")
        strides = tuple(step * values.itemsize for step in self.strides)
        return np.lib.stride_tricks.as_strided(values[self.start :], self.shape, strides).copy()


def read(data: bytes) -> dict[str, np.ndarray]:
    """Name -> array of a state dict, in the format of torch 1.6 and later or in that from before.

    Raises:
      pickle.UnpicklingError: it holds anything but tensors.  Damaged files raise errors of any kind.
    """
    tensors, values = _read_zip(data) if data[:2] == b"PK" else _read_stream(data)
    if (size := sum(tensor.size_bytes for tensor in tensors.values())) > len(data):
        raise ValueError(f"tensors of {size} bytes in a file of {len(data)}")
    return {name: tensor.array(values(tensor.storage)) for name, tensor in tensors.items()}


_Values = Callable[[_Storage], np.ndarray]


def _read_zip(data: bytes) -> tuple[dict[str, _Tensor], _Values]:
    """An archive with one pickle, and a file of values for each storage beside it."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    check_archive(archive, "the archive", len(data))  # Torch compresses nothing.
    (name,) = [n for n in archive.namelist() if PurePosixPath(n).name == _TENSORS_FILE]
    folder = PurePosixPath(name).parent / "data"
    tensors = _load(io.BytesIO(archive.read(name)))
    return tensors, lambda storage: np.frombuffer(archive.read(str(folder / storage.key)), storage.dtype)


def _read_stream(data: bytes) -> tuple[dict[str, _Tensor], _Values]:
    """Five pickles (a magic number, a version, the writer's type sizes, the tensors, the keys of their storages),
    then for each key an int64 count and its values."""
    stream = io.BytesIO(data)
    *_, tensors, keys = (_load(stream) for _ in range(5))
    dtypes = {tensor.storage.key: np.dtype(tensor.storage.dtype) for tensor in tensors.values()}
    values = {}
    for key in keys:
        count = int(np.frombuffer(stream.read(8), "<i8")[0])
        values[key] = np.frombuffer(stream.read(dtypes[key].itemsize * count), dtypes[key], count)
    return tensors, lambda storage: values[storage.key]


def _load(stream: io.BytesIO) -> Any:
    """The object of the pickle that begins here.  Its memo would have as many places as the greatest number in it."""
    start = stream.tell()
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("PUT", "LONG_BINPUT") and argument > stream.tell():
            raise pickle.UnpicklingError(f"it counts {argument} objects, which no file of weights has")
    stream.seek(start)
    return _Unpickler(stream).load()


class _Unpickler(pickle.Unpickler):
    """Knows these names and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, start, shape, strides, *_: _Tensor(storage, start, tuple(shape), tuple(strides))
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")

    def persistent_load(self, reference: Sequence[Any]) -> _Storage:
        """('storage', dtype, key, device, count, ...)."""
        return _Storage(reference[1], reference[2])
