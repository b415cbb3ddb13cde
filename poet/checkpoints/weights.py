"""Released weights: one folder with `model.safetensors`, `spec.json` and a manifest of hashes.

What `poet export --weights_only` writes and every `--checkpoint` accepts beside training checkpoints:
parameters alone, without optimizer state or data positions, readable wherever safetensors is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poet import spec as specs
from poet.runs import manifest, outputs
from poet.runs.run import SPEC, WEIGHTS
from poet.spec import Experiment, UserError


def save(
    folder: str | Path,
    experiment: Experiment,
    params: Any,
    dtype: str | None,
    step: int,
    networks: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes parameters in `dtype` (None: their own), the experiment and the training step they come from.

    With `overwrite`, in the place of earlier weights; a card or a log beside them stays.

    Args:
      networks: fingerprints of the frozen networks that they were trained with (`poet.runs.networks`); None
        does not say.

    Raises:
      UserError: the folder is not fit for it, see `outputs.claim`, or a parameter is not finite.
    """
    arrays = flatten(params)
    check_arrays(arrays, arrays, "the parameters to be written")
    fields = {"kind": outputs.WEIGHTS, "step": step}
    if networks is not None:
        fields["networks"] = dict(networks)
    with outputs.claim(folder, outputs.WEIGHTS, overwrite=overwrite) as output:
        write_arrays(output.folder / WEIGHTS, arrays, dtype)
        (output.folder / SPEC).write_text(json.dumps(specs.to_dict(experiment), indent=2) + "\n")
        manifest.write(output.folder, fields)
    return output.final


def load_params(folder: str | Path, abstract_params: Any) -> Any:
    """The parameters as arrays like `abstract_params` (ShapeDtypeStructs, with or without sharding).

    Raises:
      UserError: damaged, or of another model: names the first array that differs.
    """
    manifest.check_listed(Path(folder))
    arrays, wanted = read_arrays(Path(folder) / WEIGHTS), flatten(abstract_params)
    check_arrays(arrays, wanted, str(Path(folder) / WEIGHTS))
    leaves, structure = jax.tree_util.tree_flatten(abstract_params)
    placed = [_place(arrays[n], leaf) for n, leaf in zip(wanted, leaves, strict=True)]
    return jax.tree_util.tree_unflatten(structure, placed)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Name -> array of a safetensors file; UserError, naming the file, for whatever else is there."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged: no safetensors ({str(error).splitlines()[0]})") from None


def check_arrays(arrays: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raises UserError unless these are finite floating arrays of the names and shapes of `wanted`.

    Args:
      wanted: name -> anything with a shape.
      what: holds the arrays, such as the name of their file.
    """
    for name in [*wanted, *(arrays.keys() - wanted.keys())]:
        theirs = tuple(arrays[name].shape) if name in arrays else "absent"
        ours = tuple(wanted[name].shape) if name in wanted else "absent"
        if theirs != ours:
            raise UserError(
                f"{what} holds another network: {name} is {theirs} there and {ours} here; use the "
                "settings of the spec.json beside it"
            )
        if not jnp.issubdtype(arrays[name].dtype, jnp.floating):
            raise UserError(f"{what} is damaged: {name} is {arrays[name].dtype}, weights are floating numbers")
        if not _finite(arrays[name]):
            raise UserError(f"{what} is damaged: {name} has values that are NaN or infinite")


def _finite(array: Any) -> bool:
    """Whether all elements are finite, computed on the array's devices: this process need not hold all of it."""
    module = jnp if isinstance(array, jax.Array) else np
    return bool(module.isfinite(array).all())


def write_arrays(file: Path, arrays: Mapping[str, Any], dtype: str | None = None) -> None:
    """One safetensors file of these arrays, in `dtype` if given, readable like any other file."""
    from safetensors.numpy import save_file

    kind = dtype and jnp.dtype(dtype)
    save_file({n: np.ascontiguousarray(a, kind) for n, a in arrays.items()}, file)
    file.chmod(0o644)  # safetensors writes it private


def flatten(tree: Any) -> dict[str, Any]:
    """Dotted name -> leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}


def _place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    sharding, array = getattr(like, "sharding", None), np.asarray(array, like.dtype)
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
