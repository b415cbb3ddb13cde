"""Files of torch's weights, read without torch: written here by a pickler that names torch's classes."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poet.tokenizers import torch_files

TENSORS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "count": np.array(7, np.int64),
}


class Storage:
    """Stands for a storage; pickled by reference."""

    def __init__(self, key: str, values: np.ndarray) -> None:
        self.key, self.values = key, values


class Tensor:
    def __init__(self, storage: Storage, array: np.ndarray) -> None:
        self.storage, self.array = storage, array

    def __reduce__(self) -> tuple:
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (self.storage, 0, self.array.shape, strides, False, OrderedDict())


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules with the names that a pickle of torch refers to."""
    main, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*arguments: Any) -> None:
        raise AssertionError("is not called")

    for name in ("FloatStorage", "LongStorage"):
        setattr(main, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", main)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def pickled(value: Any) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> Any:
            if not isinstance(found, Storage):
                return None
            kind = "FloatStorage" if found.values.dtype == np.float32 else "LongStorage"
            return ("storage", getattr(sys.modules["torch"], kind), found.key, "cpu", found.values.size, None)

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def stored() -> tuple[OrderedDict, list[Storage]]:
    storages = [Storage(str(k), x.ravel(order="K")) for k, x in enumerate(TENSORS.values())]
    tensors = OrderedDict((n, Tensor(s, x)) for (n, x), s in zip(TENSORS.items(), storages))
    return tensors, storages


def as_stream() -> bytes:
    tensors, storages = stored()
    head = b"".join(map(pickled, (0x1950A86A20F9469CFC6C, 1001, {}, tensors, [s.key for s in storages])))
    return head + b"".join(np.int64(s.values.size).tobytes() + s.values.tobytes() for s in storages)


def as_zip() -> bytes:
    (tensors, storages), stream = stored(), io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(tensors))
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.values.tobytes())
    return stream.getvalue()


@pytest.mark.parametrize("write", [as_stream, as_zip])
def test_both_formats_give_names_shapes_and_values(write: Any, torch: None) -> None:
    found = torch_files.read(write())
    assert list(found) == list(TENSORS)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_a_tensor_beyond_its_storage_is_refused(torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage, "__init__", lambda self, key, x: self.__dict__.update(key=key, values=x[:4]))
    with pytest.raises(ValueError, match="does not fit"):
        torch_files.read(as_zip())


def test_a_file_of_weights_can_run_nothing(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "touched",))

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Attack()))
    for data in (pickle.dumps(Attack()), stream.getvalue()):
        with pytest.raises(pickle.UnpicklingError, match="has no place"):
            torch_files.read(data)
    assert not (tmp_path / "touched").exists()
