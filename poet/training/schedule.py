"""The group of each step (alternating gradient descent, VideoPoet §1.3).

A pure function of (weights, seed, step): resuming needs no replay.  The order is Tijdeman's solution
of the chairman assignment problem (R. Tijdeman, Discrete Mathematics 32, 1980): after every step
each of the k groups has been chosen within 1 - 1/(2k - 2) times of its exact fraction, so no group can
starve or bunch.  All arithmetic is exact: weights are read as the decimals they were written as.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from poet.data.mixture import BLOCK, group_taken
from poet.spec import UserError, as_written
from poet.tasks.resolved import Resolved


class GroupSchedule:
    """`GroupSchedule(weights, seed)(step) -> group name`.

    `weights` are relative and need not sum to one; a group of weight 0 is never chosen.  The seed
    orders groups that are equally due.  Memory and the time of the first call grow with the smaller
    of the period (the sum of the weights as coprime integers: 20 for 0.45, 0.35, 0.2) and the step.
    """

    def __init__(self, weights: Mapping[str, float], seed: int = 0):
        bad = {n: s for n, s in weights.items() if not (math.isfinite(s) and s >= 0)}
        if bad or not any(weights.values()):
            raise UserError(f"group weights {dict(weights)}: need numbers >= 0, not all of them zero")
        names = sorted(name for name, weight in weights.items() if weight > 0)
        order = np.random.default_rng(seed).permutation(len(names))
        self._names = [names[i] for i in order]
        self._weights = _coprime_integers([weights[name] for name in self._names])
        self._period = sum(self._weights)
        self._counts = [0] * len(self._names)
        self._chosen = bytearray() if len(names) <= 256 else []

    def __call__(self, step: int) -> str:
        index = step % self._period
        while len(self._chosen) <= index:
            self._extend()
        return self._names[self._chosen[index]]

    def _extend(self) -> None:
        """Appends the next choice: of the groups that may be chosen, the one due soonest."""
        n, total = len(self._chosen) + 1, self._period
        slack = 2 * len(self._names) - 2
        best, best_due = 0, None
        for i, (weight, count) in enumerate(zip(self._weights, self._counts)):
            deficit = weight * n - total * count
            if slack * deficit < total:
                continue
            # When the group must be chosen, times a constant: (1 - 1/slack - deficit) / weight.
            due = Fraction(slack * (total - deficit) - total, weight)
            if best_due is None or due < best_due:
                best, best_due = i, due
        self._counts[best] += 1
        self._chosen.append(best)


class PhasedSchedule:
    """`PhasedSchedule([(end, weights), ...], seed)(step) -> group name`: one schedule after another.

    A phase covers the steps below its end that the phases before it do not; the last one goes on.
    """

    def __init__(self, phases: Sequence[tuple[int, Mapping[str, float]]], seed: int = 0):
        self._ends = [end for end, _ in phases]
        self._schedules = [GroupSchedule(weights, seed) for _, weights in phases]

    def __call__(self, step: int) -> str:
        phase = min(bisect.bisect_right(self._ends, step), len(self._ends) - 1)
        start = self._ends[phase - 1] if phase else 0
        return self._schedules[phase](step - start)


def check_all_trained(resolved: Resolved, order: Callable[[int], str]) -> None:
    """Raises UserError naming the tasks of which a run of TRAIN.steps takes no example.

    Args:
      order: step -> group.
    """
    table, sizes, data = resolved.groups, resolved.batches, resolved.spec.data
    steps = resolved.spec.train.steps
    # A block of a group holds every task of it.
    enough = {g: math.ceil(BLOCK / sizes[g]) if len(r) > 1 else 1 for g, (_, r) in table.items()}
    counts: Counter[str] = Counter()
    waiting = set(table)
    for group in map(order, range(steps)):
        counts[group] += 1
        if counts[group] == enough[group]:
            waiting.discard(group)
        if not waiting:
            return
    missing = [
        task
        for group in sorted(waiting)
        for task, examples in group_taken(data.seed, group, table[group][1], counts[group] * sizes[group]).items()
        if not examples
    ]
    if missing:
        phases = f" with DATA.image_fractions = {data.image_fractions}" if data.image_fractions else ""
        rates = {task: data.mixture_rates[task] for task in missing}
        raise UserError(
            f"DATA.mixture_rates = {rates}: the {steps} steps of the run{phases} take no example of "
            f"{', '.join(missing)}: set TRAIN.steps or the rates higher, or these rates to 0"
        )


def _coprime_integers(numbers: Sequence[float | Fraction]) -> list[int]:
    """Integers in the same ratio."""
    fractions = [s if isinstance(s, Fraction) else as_written(s) for s in numbers]
    scale = math.lcm(*(f.denominator for f in fractions))
    weights = [int(f * scale) for f in fractions]
    divisor = functools.reduce(math.gcd, weights)
    return [w // divisor for w in weights]
