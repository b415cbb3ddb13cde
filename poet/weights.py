"""Released weights: one folder with `model.safetensors`, `spec.json` and a manifest of hashes.

What `poet export --weights_only` writes and every `--checkpoint` accepts beside training checkpoints:
parameters alone, without optimizer state or data positions, readable wherever safetensors is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from poet import manifest, specs
from poet.specs import Experiment, UserError

WEIGHTS, SPEC = "model.safetensors", "spec.json"


def is_released(path: str | Path) -> bool:
    """True for a folder that `save` wrote."""
    return (Path(path) / WEIGHTS).is_file() and (Path(path) / manifest.NAME).is_file()


def save(
    folder: str | Path, experiment: Experiment, params: Any, dtype: str, step: int
) -> Path:
    """Writes parameters in `dtype`, the experiment and the training step they come from.

    Replaces released weights, nothing else.

    Raises:
      UserError: the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not is_released(folder) and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no released weights: give another folder")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_arrays(temporary / WEIGHTS, flatten(params), dtype)
    (temporary / SPEC).write_text(json.dumps(specs.to_dict(experiment), indent=2) + "\n")
    manifest.write(temporary, {"step": step})
    for beside in folder.iterdir() if folder.exists() else ():
        if not (temporary / beside.name).exists():
            beside.rename(temporary / beside.name)  # a card, a log: theirs, not ours
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def load_experiment(folder: str | Path) -> Experiment:
    """The experiment that the weights were trained with."""
    verify(folder)
    return specs.from_dict(Experiment, json.loads((Path(folder) / SPEC).read_text()))


def load_params(folder: str | Path, abstract_params: Any) -> Any:
    """The parameters as arrays like `abstract_params` (ShapeDtypeStructs, with or without sharding).

    Raises:
      UserError: damaged, or of another model: names the first array that differs.
    """
    from safetensors.numpy import load_file

    verify(folder)
    arrays = load_file(Path(folder) / WEIGHTS)
    wanted = flatten(abstract_params)
    for name in [*wanted, *(arrays.keys() - wanted.keys())]:
        theirs = arrays[name].shape if name in arrays else "absent"
        ours = wanted[name].shape if name in wanted else "absent"
        if theirs != ours:
            raise UserError(
                f"the weights in {folder} are of another model: {name} is {theirs} there and {ours} "
                "in this run; use the MODEL and VOCABULARY of its spec.json"
            )
    leaves, structure = jax.tree_util.tree_flatten(abstract_params)
    placed = [_place(arrays[n], leaf) for n, leaf in zip(wanted, leaves, strict=True)]
    return jax.tree_util.tree_unflatten(structure, placed)


def write_arrays(file: Path, arrays: Mapping[str, Any], dtype: str | None = None) -> None:
    """One safetensors file of these arrays, in `dtype` if given, readable like any other file."""
    from safetensors.numpy import save_file

    kind = dtype and jnp.dtype(dtype)
    save_file({n: np.ascontiguousarray(a, kind) for n, a in arrays.items()}, file)
    file.chmod(0o644)  # safetensors writes it private


def step_of(folder: str | Path) -> int:
    """Training steps behind the weights."""
    return manifest.read(Path(folder))["step"]


def verify(folder: str | Path) -> None:
    """Raises `manifest.Corrupt` naming a file that is missing or altered.

    Other files (a card, a log, pictures) may lie beside the weights.
    """
    listed = manifest.read(Path(folder))
    for name in listed["files"]:
        manifest.check_file(Path(folder), name, listed)


def flatten(tree: Any) -> dict[str, Any]:
    """Dotted name -> leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}


def _place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    sharding, array = getattr(like, "sharding", None), np.asarray(array, like.dtype)
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
