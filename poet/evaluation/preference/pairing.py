"""Who sees which pair, in which order, and which clip stands left.

A design is balanced over raters and pairs: pairs are seen equally often (the counts differ by one at most), every
rater sees the pairs of systems equally often, and in every pair, and for every rater, each system stands left about
half of the times.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """Clips of one name of two systems, the first of which comes first in the list of systems."""

    name: str
    first: str
    second: str


@dataclasses.dataclass(frozen=True)
class View:
    """A pair as one rater sees it; `is_flipped`: the clip of the second system stands left."""

    pair: Pair
    is_flipped: bool


def pairs_of(names: Sequence[str], systems: Sequence[str], rng: np.random.Generator) -> list[Pair]:
    """All pairs, in an order in which those of the same two systems recur at equal distances."""
    columns = []
    for place, (first, second) in enumerate(itertools.combinations(systems, 2)):
        order = names if not place else np.roll(names, place).tolist()
        columns.append([Pair(name, first, second) for name in order])
    order = rng.permutation(len(names))
    return [column[row] for row in order for column in columns]


def design(
    names: Sequence[str], systems: Sequence[str], raters: int, pairs_per_rater: int, rng: np.random.Generator
) -> list[list[View]]:
    """The views of each rater, in the order that the rater sees them.

    Args:
      names: of clips, each of which all systems have.
      pairs_per_rater: at most all pairs; 0 is all.
    """
    pairs = pairs_of(names, systems, rng)
    of_systems = len(pairs) // len(names)
    count = min(pairs_per_rater or len(pairs), len(pairs))
    coins = rng.integers(0, 2, of_systems)
    found = []
    for rater in range(raters):
        views = []
        for slot in range(rater * count, (rater + 1) * count):
            turn, place = divmod(slot, len(pairs))
            row, column = divmod(place, of_systems)
            views.append(View(pairs[place], bool((turn + row + coins[column]) % 2)))
        found.append([views[i] for i in rng.permutation(count)])
    return found


def with_checks(views: int, checks: int, rng: np.random.Generator) -> list[int | None]:
    """Numbers of views in order, with a None where a check stands: one in each of equal stretches, never the first."""
    if not checks:
        return list(range(views))
    edges = np.linspace(0, views, checks + 1)
    after = [
        int(rng.integers(max(int(low), 0), max(int(high), int(low) + 1))) for low, high in itertools.pairwise(edges)
    ]
    order: list[int | None] = []
    for view in range(views):
        order += [view, *[None] * after.count(view)]
    return order
