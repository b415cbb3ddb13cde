"""The parts of a state that one process holds, by names that say where they lie in the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def leaves(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(dotted name, leaf) of each."""
    found = jax.tree_util.tree_leaves_with_path(dict(tree))
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in found]


def key(name: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """The name of a shard: that of its leaf, and where it begins and ends in each dim."""
    ends = (part.indices(size)[:2] for part, size in zip(index, shape))
    return f"{name}|{','.join(f'{first}:{last}' for first, last in ends)}"


def held(state: Mapping[str, Any], *, once: bool = False) -> dict[str, np.ndarray]:
    """Copies of the distinct shards on this process's devices, in host memory, flat.

    Args:
      once: of a shard that several processes hold, one of them has it.
    """
    found = {
        key(name, shard.index, leaf.shape): shard.data
        for name, leaf in leaves(state)
        for shard in leaf.addressable_shards
        if not once or shard.replica_id == 0
    }
    for data in found.values():
        data.copy_to_host_async()
    # At least one dim, so that bytes can be looked at; a copy, as the host may be the device.
    return {key: np.array(data, copy=True).reshape(-1) for key, data in found.items()}


def joined(abstract: Mapping[str, Any], files: Iterable[Path], folder: Path) -> dict[str, Any]:
    """The arrays of a state from files of `held` shards of all processes, in files of `folder` that are mapped, so that
    they need no memory.

    Raises:
      ValueError: a part of an array is in none of them.
    """
    from safetensors import safe_open

    named = leaves(abstract)
    whole = {name: _mapped(folder / str(n), leaf) for n, (name, leaf) in enumerate(named)}
    missing = {name: leaf.size for name, leaf in named}
    for file in files:
        with safe_open(file, "np") as opened:
            for one in opened.keys():
                name, _, ends = one.rpartition("|")
                parts = tuple(slice(*map(int, part.split(":"))) for part in ends.split(",") if part)
                target = whole[name][(*parts, ...)]
                target[...] = opened.get_tensor(one).reshape(target.shape)
                missing[name] -= target.size
    if lacking := [name for name, count in missing.items() if count]:
        raise ValueError(f"no process wrote all of {lacking[0]}")
    return jax.tree.unflatten(jax.tree.structure(dict(abstract)), [whole[name] for name, _ in named])


def _mapped(file: Path, leaf: Any) -> np.ndarray:
    if not math.prod(leaf.shape) or not leaf.shape:
        return np.zeros(leaf.shape, leaf.dtype)
    return np.memmap(file, leaf.dtype, "w+", shape=leaf.shape)
