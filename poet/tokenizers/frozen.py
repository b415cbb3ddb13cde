"""Frozen tokenizers as folders: `model.safetensors` and `spec.json`, found, read, fingerprinted."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any, Sequence

import jax
import numpy as np

from poet import assets
from poet.specs import Spec, UserError, from_dict, to_dict
from poet.tokenizers.declaration import Tree
from poet.weights import flatten, write_arrays

WEIGHTS, SPEC = "model.safetensors", "spec.json"


def save(folder: str | pathlib.Path, spec: Spec, params: Tree, dtype: str = "float32") -> None:
    """Writes weights in `dtype` and their spec, without its path, into `folder` (made if missing)."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / WEIGHTS, flatten(params), dtype)
    text = json.dumps(to_dict(spec.replace(path="")), indent=2)
    (folder / SPEC).write_text(text + "\n")


def load_spec(cls: type, folder: str | pathlib.Path) -> Any:
    """The spec of a folder that `find_pretrained` found."""
    return from_dict(cls, json.loads((pathlib.Path(folder) / SPEC).read_text()))


def load_params(folder: str | pathlib.Path, expected: Tree) -> Tree:
    """Reads float32 weights of the shapes of `expected`.

    Raises UserError when arrays are missing, unknown or of another shape.
    """
    from safetensors.numpy import load_file

    file = pathlib.Path(folder) / WEIGHTS
    shapes, arrays = flatten(expected), load_file(file)
    wrong = sorted(
        name
        for name in shapes.keys() | arrays.keys()
        if name not in arrays or name not in shapes or arrays[name].shape != shapes[name].shape
    )
    if wrong:
        raise UserError(
            f"{file} does not hold the network of {file.with_name(SPEC)}: "
            f"{len(wrong)} arrays missing, unknown or of another shape, first {wrong[0]!r}"
        )
    leaves = [np.asarray(arrays[name], np.float32) for name in shapes]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def check_spec(asked: Spec, stored: Spec, ignored: Sequence[str] = ("path", "dtype")) -> None:
    """Raises UserError when a run's spec is not that of the weights at its `path`."""
    given, kept = to_dict(asked), to_dict(stored)
    for field in sorted(kept.keys() - set(ignored)):
        if given[field] != kept[field]:
            raise UserError(
                f"{asked.gin_name()}.{field} = {given[field]} but the weights in {asked.path} were "
                f"trained with {kept[field]}; include the gin file of that tokenizer"
            )


def find_pretrained(folder: str | pathlib.Path) -> pathlib.Path:
    """Resolves a folder against the current one, then the shipped files and `data/pretrained/`."""
    bases = (pathlib.Path.cwd(), assets.root(), assets.root() / "data" / "pretrained")
    candidates = [base / folder for base in bases]
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
