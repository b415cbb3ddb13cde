"""Which checkpoints of a run stay: a pure function of what was saved and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from poet.spec import CheckpointSpec


def kept(measured: Mapping[int, Mapping[str, float]], policy: CheckpointSpec) -> set[int]:
    """The steps whose checkpoints stay: the newest, those of every M-th step, and the best one.

    What is dropped would not be kept later either: applied after every save, the result is that of all
    saves together.

    Args:
      measured: step of each checkpoint -> what was measured at that step, by name in the log.
    """
    steps = sorted(measured)
    stay = set(steps[-policy.keep :])
    if policy.keep_every:
        stay |= {step for step in steps if step % policy.keep_every == 0}
    first = best(measured, policy)
    return stay if first is None else stay | {first}


def best(measured: Mapping[int, Mapping[str, float]], policy: CheckpointSpec) -> int | None:
    """The step at which CHECKPOINT.best was best, the newest of equal ones; None where it was never measured."""
    sign = -1 if policy.best_is == "lowest" else 1
    values = {step: found.get(policy.best, math.nan) for step, found in measured.items()}
    known = [(sign * value, step) for step, value in values.items() if math.isfinite(value)]
    return max(known)[1] if known else None
