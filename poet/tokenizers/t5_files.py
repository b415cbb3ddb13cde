"""T5 weights on disk: Hugging Face safetensors (one file or shards) and T5X checkpoints.

Both are read through one interface, `Tensors`: names and orientation are those of Hugging Face's
T5EncoderModel, and any rectangle of a tensor is read without the rest of it. Tensors of a decoder
are not listed. Nothing is read before it is asked for.

T5X writes a msgpack file `checkpoint`, which holds small arrays itself and names a zarr folder for
each of the others (t5x/checkpoints.py). Its matrices are (in, out), those of Hugging Face (out, in);
under `scan_layers` all layers lie in one array, on dim 1, and heads have a dim of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors

from poet.spec import UserError, limited

CONFIG = "config.json"
VOCABULARY = "spiece.model"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
T5X = "checkpoint"

PIECES = "shared.weight"
PIECES_ALIAS = "encoder.embed_tokens.weight"
# Decompressed zarr chunks kept at once: one chunk holds many layers of a stacked array.
CACHE_BYTES = 1 << 30

WHOLE = slice(None)


class Tensors(Protocol):
    """The encoder's tensors in a folder."""

    folder: Path

    def names(self) -> Sequence[str]:
        """Names of Hugging Face; a tensor that T5's encoder does not have keeps its own name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in the orientation of Hugging Face."""

    def read(self, name: str, rows: slice = WHOLE, columns: slice = WHOLE) -> np.ndarray:
        """A part of a tensor in its stored dtype; `columns` is for matrices."""


def find_folder(path: str) -> Path:
    """The folder of weights and vocabulary; UserError says what is missing in it."""
    needed = (
        f"a T5 folder holds {VOCABULARY}, {CONFIG} and either {WEIGHTS}, {INDEX} with its shards, "
        f"or the {T5X} of T5X with its arrays"
    )
    if not path:
        raise UserError(f"TEXT.path is empty, and no T5 weights are shipped: give a folder; {needed}")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"TEXT.path = {path!r} is no folder; {needed}")
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX, T5X)):
        raise UserError(f"{folder} has no {WEIGHTS}, {INDEX} or {T5X}; {needed}")
    missing = [VOCABULARY] if not (folder / VOCABULARY).is_file() else []
    if not (folder / CONFIG).is_file() and not is_t5x(folder):
        missing.append(CONFIG)
    if missing:
        raise UserError(f"{folder} has no {' and no '.join(missing)}; {needed}")
    return folder


def is_t5x(folder: Path) -> bool:
    """True if the weights are those of a T5X checkpoint; safetensors beside them come first."""
    return not any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def open_tensors(folder: Path) -> Tensors:
    """Opens what `find_folder` found; UserError for unreadable files and for no encoder in them."""
    tensors = T5XTensors(folder) if is_t5x(folder) else SafeTensors(folder)
    if not any(name.startswith("encoder.block.") for name in tensors.names()):
        raise UserError(
            f"{folder} holds no T5 encoder: none of its tensors belongs to an encoder's layer; give "
            "the folder of an encoder-decoder or of an encoder, not of a decoder alone"
        )
    return tensors


def is_encoder(name: str) -> bool:
    """True for the names of Hugging Face, T5X and safetensors that belong to the encoder."""
    return name.startswith("encoder.") or name == PIECES


class SafeTensors:
    """`model.safetensors`, or the shards that `model.safetensors.index.json` lists."""

    def __init__(self, folder: Path):
        self.folder = folder
        files = self._files()
        self._opened: dict[str, Any] = {name: self._open(name) for name in sorted(files)}
        self._file_of: dict[str, str] = {}
        for file, opened in self._opened.items():
            self._file_of.update({name: file for name in opened.keys() if is_encoder(name)})
        # Either name, or both, stand for the one table.
        self._stored = {name: name for name in self._file_of if name != PIECES_ALIAS}
        if PIECES not in self._stored and PIECES_ALIAS in self._file_of:
            self._stored[PIECES] = PIECES_ALIAS

    def names(self) -> Sequence[str]:
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, rows: slice = WHOLE, columns: slice = WHOLE) -> np.ndarray:
        part = self._slice(name)
        return part[rows] if len(part.get_shape()) == 1 else part[rows, columns]

    def _slice(self, name: str) -> Any:
        stored = self._stored[name]
        return self._opened[self._file_of[stored]].get_slice(stored)

    def _files(self) -> set[str]:
        if (self.folder / WEIGHTS).is_file():
            return {WEIGHTS}
        index = self.folder / INDEX
        try:
            weight_map = json.loads(limited(index).read_text())["weight_map"]
            return {weight_map[name] for name in weight_map if is_encoder(name)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read {index}: {error!r}; it needs a JSON object with a weight_map") from error

    def _open(self, name: str) -> Any:
        file = self.folder / name
        if not file.is_file():
            raise UserError(f"{self.folder / INDEX} lists {name}, which is missing: restore {file}")
        try:
            return safetensors.safe_open(file, framework="np")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"cannot read {file}: {error}; restore the file") from error


# Name in a layer of T5X -> name in a block of Hugging Face.
_T5X_LAYER = {
    "pre_attention_layer_norm.scale": "layer.0.layer_norm.weight",
    "attention.query.kernel": "layer.0.SelfAttention.q.weight",
    "attention.key.kernel": "layer.0.SelfAttention.k.weight",
    "attention.value.kernel": "layer.0.SelfAttention.v.weight",
    "attention.out.kernel": "layer.0.SelfAttention.o.weight",
    "relpos_bias.rel_embedding": "layer.0.SelfAttention.relative_attention_bias.weight",
    "relative_posemb.rel_embedding": "layer.0.SelfAttention.relative_attention_bias.weight",
    "pre_mlp_layer_norm.scale": "layer.1.layer_norm.weight",
    "mlp.wi.kernel": "layer.1.DenseReluDense.wi.weight",
    "mlp.wi_0.kernel": "layer.1.DenseReluDense.wi_0.weight",
    "mlp.wi_1.kernel": "layer.1.DenseReluDense.wi_1.weight",
    "mlp.wo.kernel": "layer.1.DenseReluDense.wo.weight",
}
_T5X_OTHER = {
    "token_embedder.embedding": PIECES,
    "encoder.relpos_bias.rel_embedding": "encoder.block.0." + _T5X_LAYER["relpos_bias.rel_embedding"],
    "encoder.encoder_norm.scale": "encoder.final_layer_norm.weight",
}
# The stack of layers is named `layers` by t5x, `encoder` by flaxformer.
_STACKED = re.compile(r"encoder\.(?:layers|encoder)\.(.+)")
_SINGLE = re.compile(r"encoder\.layers_(\d+)\.(.+)")
LAYER_DIM = 1


class T5XTensors:
    """A T5X checkpoint; `target.encoder` and `target.token_embedder` of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._cache: Any = None  # a tensorstore context, shared by the arrays
        self._opened: dict[str, Any] = {}  # T5X name -> array
        self._stored: dict[str, tuple[str, int | None]] = {}  # our name -> T5X name, layer
        for name, value in _read_msgpack(folder / T5X).items():
            if name.startswith(("encoder.", "token_embedder.")):
                self._opened[name] = self._open(name, value)
        for name in self._opened:
            self._list(name)

    def names(self) -> Sequence[str]:
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        stored, layer = self._stored[name]
        dims = list(self._opened[stored].shape)
        if layer is not None:
            del dims[LAYER_DIM]
        split = _head_dims(stored, len(dims))
        dims = [int(np.prod(dims[part])) for part in split]
        return tuple(dims if name == PIECES else dims[::-1])

    def read(self, name: str, rows: slice = WHOLE, columns: slice = WHOLE) -> np.ndarray:
        stored, layer = self._stored[name]
        array = self._opened[stored]
        if layer is not None:
            array = array[:, layer]
        parts = [rows] if len(self.shape(name)) == 1 else [rows, columns]
        parts = parts if name == PIECES else parts[::-1]
        index: list[slice] = []
        for part, dims in zip(parts, _head_dims(stored, len(array.shape)), strict=True):
            index += _unmerged(part, array.shape[dims])
        block = array[tuple(index)]
        block = block if isinstance(block, np.ndarray) else np.asarray(block.read().result())
        split = _head_dims(stored, block.ndim)
        block = block.reshape([int(np.prod(block.shape[dims])) for dims in split])
        return block if name == PIECES else block.T

    def _list(self, name: str) -> None:
        if name in _T5X_OTHER:
            self._stored[_T5X_OTHER[name]] = (name, None)
            return
        single, stacked = _SINGLE.fullmatch(name), _STACKED.fullmatch(name)
        if single and single[2] in _T5X_LAYER:
            self._stored[f"encoder.block.{int(single[1])}.{_T5X_LAYER[single[2]]}"] = (name, None)
        elif stacked and stacked[1] in _T5X_LAYER and len(self._opened[name].shape) > LAYER_DIM:
            for layer in range(self._opened[name].shape[LAYER_DIM]):
                self._stored[f"encoder.block.{layer}.{_T5X_LAYER[stacked[1]]}"] = (name, layer)
        else:
            self._stored[name] = (name, None)

    def _open(self, name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value
        import tensorstore

        cache = {"cache_pool": {"total_bytes_limit": CACHE_BYTES}}
        self._cache = self._cache or tensorstore.Context(cache)
        # The path is relative, below `kvstore` since tensorstore 0.1.14; gs:// ones are local here.
        path = self.folder / Path(value["kvstore"].get("path") or value["path"]).name
        try:
            return tensorstore.open(
                {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}},
                context=self._cache,
                open=True,
                read=True,
            ).result()
        except (ValueError, OSError) as error:
            raise UserError(f"cannot read the array {path} of the T5X checkpoint: {error}; restore it") from error


def _head_dims(name: str, rank: int) -> list[slice]:
    """Dims of a stored array that make up each dim of its matrix; three where heads have their own."""
    if rank < 3:
        return [slice(dim, dim + 1) for dim in range(rank)]
    heads_first = name.endswith("attention.out.kernel")
    return [slice(0, 2), slice(2, 3)] if heads_first else [slice(0, 1), slice(1, 3)]


def _unmerged(part: slice, dims: Sequence[int]) -> list[slice]:
    """A range of merged dims, on borders of the first of them, as ranges of each."""
    inner = int(np.prod(dims[1:]))
    start, stop, _ = part.indices(int(np.prod(dims)))
    return [slice(start // inner, stop // inner), *(slice(0, dim) for dim in dims[1:])]


def _read_msgpack(file: Path) -> dict[str, Any]:
    """Dotted name -> array, or the description of a zarr folder, of the `target` of a checkpoint."""
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(file.read_bytes())
        return dict(_flatten(tree["optimizer"]["target"]))
    except Exception as error:  # msgpack, flax and a wrong structure each raise their own
        raise UserError(
            f"cannot read {file} as a T5X checkpoint: {error!r}; it is the msgpack file that T5X "
            "writes, with optimizer/target in it"
        ) from error


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and "kvstore" not in value:
            found += _flatten(value, f"{prefix}{name}.")
        elif value is not None:
            found.append((prefix + name, value))
    return found
