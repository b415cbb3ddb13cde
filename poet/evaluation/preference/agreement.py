"""Krippendorff's alpha of raters: 1 where they agree, 0 where they answer as by chance.

Answers are ordinal: one system, a tie, the other system.  Every pair is counted in both orders, for which of two
systems stands first is arbitrary: in one order alone, raters who agree that one system always wins would have an alpha
near 0, as nothing varies.

Shape suffixes: U units (pairs of clips), V values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from poet.evaluation import intervals
from poet.evaluation.preference.strengths import Vote
from poet.runs import assets
from poet.spec import UserError

# Krippendorff's own bound of reliable data is 0.8, that of tentative conclusions 0.667.
LEAST = 0.7
VALUES = (0.0, 0.5, 1.0)


def counts(votes: Sequence[Vote]) -> np.ndarray:
    """int64 [U, V]: how many raters gave each value to each pair that two or more of them judged."""
    units: dict[tuple[str, int, int], list[int]] = {}
    for vote in votes:
        unit = units.setdefault((vote.name, vote.first, vote.second), [0] * len(VALUES))
        unit[VALUES.index(vote.won)] += 1
    kept = [unit for unit in units.values() if sum(unit) > 1]
    return np.array(kept, np.int64).reshape(-1, len(VALUES))


def alpha(counts_UxV: np.ndarray) -> float | None:
    """Ordinal alpha over both orders of each pair; None where no pair has two raters."""
    if not len(counts_UxV):
        return None
    try:
        import krippendorff
    except ModuleNotFoundError:
        raise UserError(f"agreement needs the package krippendorff: {assets.install('preference')}") from None
    both = np.concatenate([counts_UxV, counts_UxV[:, ::-1]])
    used = both.sum(0) > 0
    if used.sum() < 2:  # Ties alone.
        return 1.0
    return float(krippendorff.alpha(value_counts=both, value_domain=VALUES, level_of_measurement="ordinal"))


def summary(votes: Sequence[Vote]) -> Mapping[str, float | int | bool | None]:
    """Alpha, its interval over pairs, the number of pairs with two raters, and whether alpha is below `LEAST`."""
    counts_UxV = counts(votes)
    value, units = alpha(counts_UxV), len(counts_UxV)
    found = None
    if value is not None:
        found = intervals.resampled(lambda times_U: alpha(np.repeat(counts_UxV, times_U, 0)), np.ones(units, bool))
    low, high = found or (None, None)
    return {"alpha": value, "low": low, "high": high, "pairs": units, "is_low": value is not None and value < LEAST}
