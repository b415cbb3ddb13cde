"""Losses, gradients and parameters that are not finite: what is skipped, and when a run has diverged.

A skipped update leaves the state as it was but for its step number, so that the next batch is tried on it.  All
processes see the same metrics and decide the same.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from poet.runs import exits
from poet.spec import Failure
from poet.training.trainable import Batch, Group, Metrics, State, each

_LOG = logging.getLogger(__name__)

# The metric of a guarded step: 1 where its update was skipped.
SKIPPED = "skipped_updates"


class TrainingDiverged(Failure):
    """A loss or a parameter is not finite; the newest checkpoint is from before that.

    Attributes:
      step: the number of updates after which it was found.
    """

    exit_code = exits.PERMANENT

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def guarded(group: Group) -> Group:
    """The group with a step that skips its update where a loss or a gradient's norm is not finite.

    Only metrics that are known before the update decide, so that the new state can take the place of the old one
    without a copy of it.
    """

    def step(state: State, batch: Batch, key: jax.Array, rate: jax.Array) -> tuple[State, Metrics]:
        new, metrics = group.step(state, batch, key, rate)
        decisive = [each(value).total for name, value in metrics.items() if _decides(name)]
        fine = functools.reduce(jnp.logical_and, map(jnp.isfinite, decisive))
        kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, state)
        return kept | {"step": new["step"]}, metrics | {SKIPPED: 1.0 - fine.astype(jnp.float32)}

    return dataclasses.replace(group, step=step)


def _decides(name: str) -> bool:
    return "loss" in name or name.endswith("grad_norm")


@dataclasses.dataclass
class Judge:
    """Looks at the metrics of every step.

    Attributes:
      most: updates that may be skipped in a row.
      in_a_row: those that were, up to now.
    """

    most: int = 0
    in_a_row: int = 0

    def skips(self, step: int, group: str, sums: dict[str, tuple[float, float]]) -> bool:
        """Whether the update of a step was skipped, by the sums and weights of its metrics.

        `SKIPPED` is taken out of them.

        Raises:
          TrainingDiverged: too many were, or the step was not guarded and its loss is not finite.
        """
        skipped = bool(sums.pop(SKIPPED, (0.0, 1.0))[0])
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        bad = [name for name, (value, _) in sums.items() if _decides(name) and not math.isfinite(value)]
        if self.in_a_row > self.most or (not skipped and any("loss" in name for name in bad)):
            raise TrainingDiverged(_message(step, group, sums, bad, self.in_a_row), step)
        if skipped:
            _LOG.warning("step %d, group %s: update skipped, %s not finite", step, group, _are(bad))
        return skipped


def _are(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _message(step: int, group: str, sums: Mapping[str, tuple[float, float]], bad: list[str], in_a_row: int) -> str:
    means = {name: value / weight for name, (value, weight) in sums.items() if weight}
    after = f" after {in_a_row - 1} skipped updates" if in_a_row > 1 else ""
    return (
        f"{', '.join(f'{name} is {sums[name][0]}' for name in bad)} at step {step}, group {group}{after} ({means}); "
        "nothing was saved since. Lower OPTIMIZER.learning_rate or look at the data, and resume; "
        "FAULTS.skips and FAULTS.rewinds let a run go on by itself"
    )


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def check_state(state: State, step: int) -> None:
    """No checkpoint holds a non-finite value: the loss shows a bad update one step too late.

    Raises TrainingDiverged, naming the first such leaf.
    """
    found = jax.tree_util.tree_leaves_with_path(state)
    floats: list[tuple[Any, jax.Array]] = [(p, x) for p, x in found if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = jax.device_get(_all_finite([x for _, x in floats]))
    for (path, _), good in zip(floats, finite, strict=True):
        if not good:
            raise TrainingDiverged(
                f"{jax.tree_util.keystr(path)} is not finite after {step} steps; not saved. Lower "
                "OPTIMIZER.learning_rate or look at the data, and resume",
                step,
            )
