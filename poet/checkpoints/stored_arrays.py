"""Whether the arrays of a checkpoint are those that a run needs, and which settings make the difference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from poet import spec as specs
from poet.spec import Experiment, UserError, compat


def describe(tree: Any) -> dict[str, list[Any]]:
    """Leaf path -> [shape, dtype]."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): [list(x.shape), str(x.dtype)] for p, x in leaves}


def check(
    path: Path,
    saved: Mapping[str, list[Any]],
    target: Mapping[str, Any],
    theirs: Experiment,
    ours: Experiment | None = None,
    *,
    exact: bool,
) -> None:
    """Raises UserError naming the first leaf that differs from what a checkpoint holds.

    Args:
      saved: what `describe` said of the state that was saved.
      theirs, ours: the experiment of the checkpoint, and that of this run, to say what differs.
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
            f"and {_shape(here)} in this run; {_difference(theirs, ours)}"
        )


def _fits(there: list[Any], here: list[Any]) -> bool:
    """Whether an array can be read as another: one shape, and both floating or neither."""
    floating = {jnp.issubdtype(jnp.dtype(dtype), jnp.floating) for _, dtype in (there, here)}
    return there[0] == here[0] and len(floating) == 1


def _shape(entry: list[Any] | None) -> str:
    return f"{entry[1]}{entry[0]}" if entry else "absent"


def _difference(theirs: Experiment, ours: Experiment | None) -> str:
    """The settings that shape the arrays, or only those in which two experiments differ."""
    if ours is None:
        settings = specs.to_dict(theirs.model).items()
        return "it was trained with " + ", ".join(f"MODEL.{k} = {v!r}" for k, v in settings)
    changed = [
        str(difference)
        for purpose in ("resume", "resume_tokenizer")
        for difference in compat.differences(theirs, ours, purpose, ("arrays", "decoder", "course"))
    ]
    return "it was trained with " + (", ".join(dict.fromkeys(changed)) or "the same settings")
