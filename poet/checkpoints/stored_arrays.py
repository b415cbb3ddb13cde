"""Whether the arrays of a checkpoint are those that a run needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from poet.runs.run import SPEC
from poet.spec import UserError


def describe(tree: Any) -> dict[str, list[Any]]:
    """Leaf path -> [shape, dtype]."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): [list(x.shape), str(x.dtype)] for p, x in leaves}


def check(path: Path, saved: Mapping[str, list[Any]], target: Mapping[str, Any], *, exact: bool) -> None:
    """Raises UserError naming the first leaf that differs from what a checkpoint holds.

    Args:
      saved: what `describe` said of the state that was saved.
      exact: whether dtypes must agree and every subtree must be wanted.
    """
    wanted = describe(target)
    prefixes = tuple(jax.tree_util.keystr((jax.tree_util.DictKey(key),)) for key in target)
    saved = {k: v for k, v in saved.items() if exact or k.startswith(prefixes)}
    for leaf in [*wanted, *(saved.keys() - wanted.keys())]:
        there, here = saved.get(leaf), wanted.get(leaf)
        if there and here and (there == here if exact else _fits(there, here)):
            continue
        raise UserError(
            f"checkpoint {path} is of another model: {leaf} is {_shape(there)} in the checkpoint "
            f"and {_shape(here)} in this run; the settings that it was trained with are in {path / SPEC}"
        )


def _fits(there: list[Any], here: list[Any]) -> bool:
    """Whether an array can be read as another: one shape, and both floating or neither."""
    floating = {jnp.issubdtype(jnp.dtype(dtype), jnp.floating) for _, dtype in (there, here)}
    return there[0] == here[0] and len(floating) == 1


def _shape(entry: list[Any] | None) -> str:
    return f"{entry[1]}{entry[0]}" if entry else "absent"
