"""The arrays of weights on disk, read on the host one at a time, without the model that they belong to.

Names are dotted, with the part of the training state first: `params.blocks.attention.key`,
`opt_state.1.0.mu.head`.  Released weights hold `params` alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from poet.checkpoints import weights
from poet.runs.run import WEIGHTS, Checkpoint
from poet.spec import UserError

PARAMS = "params"
# A part of a leaf's path, as `jax.tree_util.keystr` writes it: ['key'], [0] or .field.
_PART = re.compile(r"\['([^']*)'\]|\[(\d+)\]|\.(\w+)")


def dotted(path: str) -> str:
    """`['opt_state'][0].mu['w']`, as a manifest names a leaf -> `opt_state.0.mu.w`."""
    return ".".join(key or index or field for key, index, field in _PART.findall(path))


class Contents:
    """What a checkpoint or a folder of released weights holds; its files were compared with their hashes.

    Attributes:
      shapes: name -> (shape, dtype), in order of name.

    Raises:
      UserError: damaged, or no weights.
    """

    def __init__(self, source: Checkpoint):
        self.source = source
        stored = source.verify().get("arrays", {})
        found = self._released() if source.released else {dotted(k): (tuple(s), d) for k, (s, d) in stored.items()}
        self.shapes: dict[str, tuple[tuple[int, ...], str]] = dict(sorted(found.items()))

    @property
    def parts(self) -> list[str]:
        """The top-level keys: `params`, `opt_state`, ..."""
        return sorted({name.split(".")[0] for name in self.shapes})

    def read(self, part: str = "") -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of one top-level key, or of all, in order of name; one array in memory at a time.

        Raises:
          UserError: there is no such part.
        """
        if part and part not in self.parts:
            raise UserError(f"{self.source.path} has no {part!r}: it holds {', '.join(self.parts)}")
        for name in self.shapes:
            if not part or name.split(".")[0] == part:
                yield name, self.array(name)

    def array(self, name: str) -> np.ndarray:
        """One array by its name."""
        if self.source.released:
            return self._tensors[name]
        part = name.split(".")[0]
        paths, structure = self._trees[part]
        wanted = [leaf if path == name else ocp.PLACEHOLDER for path, leaf in paths]
        loaded = ocp.load_checkpointables(
            self.source.path / "state", {part: jax.tree_util.tree_unflatten(structure, wanted)}
        )
        (found,) = (x for x in jax.tree.leaves(loaded[part]) if x is not ocp.PLACEHOLDER)
        return np.asarray(found)

    @functools.cached_property
    def _trees(self) -> dict[str, tuple[list[tuple[str, Any]], Any]]:
        """Part -> (name and abstract array of each leaf, for this host's memory; the structure)."""
        metadata = ocp.checkpointables_metadata(self.source.path / "state").metadata
        return {part: _named(part, tree) for part, tree in metadata.items()}

    @functools.cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        arrays = weights.read_arrays(self.source.path / WEIGHTS)
        return {f"{PARAMS}.{name}": array for name, array in arrays.items()}

    def _released(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (array.shape, str(array.dtype)) for name, array in self._tensors.items()}


def _named(part: str, tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = []
    for path, leaf in leaves:
        below = jax.tree_util.keystr(path[1:], simple=True, separator=".")  # The first is a wrapper of `start_save`.
        abstract = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        named.append((f"{part}.{below}" if below else part, abstract))
    return named, structure
