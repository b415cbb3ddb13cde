"""Frozen tokenizers as folders: `model.safetensors`, `spec.json` and their hashes; found, read, fingerprinted."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from poet.checkpoints.weights import check_arrays, flatten, read_arrays, write_arrays
from poet.models.declaration import Tree
from poet.runs import assets, manifest
from poet.runs.run import SPEC, WEIGHTS
from poet.spec import AudioTokenizerSpec, Experiment, Spec, UserError, VideoTokenizerSpec, read_json, to_dict

_LOG = logging.getLogger(__name__)


_KINDS = {
    "a video tokenizer": VideoTokenizerSpec,
    "an audio tokenizer": AudioTokenizerSpec,
    "a language model": Experiment,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}


def save(folder: str | pathlib.Path, spec: Spec, params: Tree, dtype: str = "float32") -> None:
    """Writes weights in `dtype`, their spec without its path, and a manifest of both into `folder`.

    The folder is made if missing; other files in it stay.

    Raises UserError when a weight is not finite.
    """
    folder, arrays = pathlib.Path(folder), flatten(params)
    check_arrays(arrays, arrays, "the tokenizer to be written")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / manifest.NAME).unlink(missing_ok=True)
    write_arrays(folder / WEIGHTS, arrays, dtype)
    text = json.dumps(to_dict(spec.replace(path="")), indent=2)
    (folder / SPEC).write_text(text + "\n")
    manifest.write(folder, {"kind": "tokenizer"}, [WEIGHTS, SPEC])


def verify(folder: str | pathlib.Path) -> None:
    """Raises `manifest.Corrupt` where a file of a frozen network is not as its manifest lists it.

    A folder without a manifest (written before there was one) is taken as it is, with a warning.
    """
    folder = pathlib.Path(folder)
    if (folder / manifest.NAME).exists():
        manifest.check_listed(folder)
    else:
        _warn_of(folder.absolute())


@functools.cache
def _warn_of(folder: pathlib.Path) -> None:
    """Once for a folder, however often it is loaded."""
    _LOG.warning("%s has no %s: flipped bits in it would not be found", folder, manifest.NAME)


def load_spec(cls: type, folder: str | pathlib.Path) -> Any:
    """The spec of a folder that `find_pretrained` found, after `verify`.

    Raises UserError when the folder is damaged or holds another thing.
    """
    verify(folder)
    file = pathlib.Path(folder) / SPEC
    try:
        return read_json(cls, file)
    except UserError as error:
        for name, other in _KINDS.items():
            if other is not cls and _reads_as(other, file):
                raise UserError(
                    f"{folder} holds {name}, where {_NAMES[cls]} is needed ({cls.gin_name()}.path)"
                ) from None
        raise UserError(f"{folder} holds no frozen {cls.gin_name()}: {error}") from None


def _reads_as(cls: type, file: pathlib.Path) -> bool:
    try:
        read_json(cls, file)
    except UserError:
        return False
    return True


def load_params(folder: str | pathlib.Path, expected: Tree) -> Tree:
    """Reads float32 weights of the names and shapes of `expected`; the folder is verified already.

    Raises UserError when arrays are missing, unknown, of another shape, not of floating numbers or not
    finite.
    """
    file = pathlib.Path(folder) / WEIGHTS
    shapes, arrays = flatten(expected), read_arrays(file)
    check_arrays(arrays, shapes, str(file))
    leaves = [np.asarray(arrays[name], np.float32) for name in shapes]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def check_spec(asked: Spec, stored: Spec, ignored: Sequence[str] = ("path", "dtype")) -> None:
    """Raises UserError when a run's spec is not that of the weights at its `path`.

    The dtype is the run's to choose; it is part of the fingerprint, since it changes codes.
    """
    given, kept = to_dict(asked), to_dict(stored)
    for field in sorted(kept.keys() - set(ignored)):
        if given[field] != kept[field]:
            raise UserError(
                f"{asked.gin_name()}.{field} = {given[field]} but the weights in {asked.path} were "
                f"trained with {kept[field]}; include the gin file of that tokenizer"
            )


def find_pretrained(folder: str | pathlib.Path) -> pathlib.Path:
    """Resolves a folder against the current one, then the shipped files and `data/pretrained/`."""
    candidates = assets.places(folder)
    for candidate in candidates:
        if (candidate / SPEC).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    places = ", ".join(str(c) for c in dict.fromkeys(candidates))
    raise UserError(f"no tokenizer weights ({WEIGHTS} and {SPEC}) in any of: {places}")


def fingerprint(spec: Spec, params: Tree) -> str:
    """16 hex digits that change with the spec (but for `path`), a name, a shape or any weight.

    A field of `spec.ADDED_LATER` counts only when it differs from its default, so that a new field changes
    no fingerprint that a token store already keeps.
    """
    fields, defaults = to_dict(spec.replace(path="")), to_dict(type(spec)())
    for name in spec.ADDED_LATER:
        if fields[name] == defaults[name]:
            del fields[name]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, array in sorted(flatten(params).items()):
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()[:16]
