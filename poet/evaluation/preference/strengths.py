"""Bradley-Terry strengths of systems, with bootstrap intervals over raters and over names of clips.

A system of strength s_i is preferred to one of s_j with probability 1 / (1 + exp(s_j - s_i)).  A tie counts as half a
win of both.  Half a win each way is added to every two systems, so that one that never lost has a finite strength.

Shape suffixes: S systems, V votes, R resamples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from poet.evaluation import intervals
from poet.runs import assets
from poet.spec import UserError

PRIOR_WINS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """One answer about two systems: `won` is 1 where the first is preferred, 0 where the second is, 0.5 a tie."""

    rater: int
    name: str
    first: int
    second: int
    won: float


def wins(votes: Sequence[Vote], systems: int, weights_V: np.ndarray | None = None) -> np.ndarray:
    """float64 [S, S]: how often the system of the row was preferred to that of the column."""
    wins_SxS = np.zeros((systems, systems))
    weights_V = np.ones(len(votes)) if weights_V is None else weights_V
    firsts, seconds, won_V = (np.array([getattr(v, f) for v in votes]) for f in ("first", "second", "won"))
    np.add.at(wins_SxS, (firsts, seconds), weights_V * won_V)
    np.add.at(wins_SxS, (seconds, firsts), weights_V * (1 - won_V))
    return wins_SxS


def fit(wins_SxS: np.ndarray) -> np.ndarray:
    """float64 [S]: strengths, whose mean is 0; UserError where choix is not installed."""
    try:
        import choix
    except ModuleNotFoundError:
        raise UserError(f"strengths of systems need the package choix: {assets.install('preference')}") from None
    prior_SxS = PRIOR_WINS * (1 - np.eye(len(wins_SxS)))
    return choix.ilsr_pairwise_dense(wins_SxS + prior_SxS, max_iter=1000)


def resample(votes: Sequence[Vote], resamples: int, seed: int) -> np.ndarray:
    """float64 [R, V]: weights of votes in bootstrap resamples of the raters and, apart from them, of the names."""
    rng = np.random.default_rng(seed)
    weights_RxV = np.ones((resamples, len(votes)))
    for group in ("rater", "name"):
        kinds, which_V = np.unique([str(getattr(vote, group)) for vote in votes], return_inverse=True)
        if len(kinds) > 1:
            times_RxG = rng.multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), resamples)
            weights_RxV *= times_RxG[:, which_V]
    return weights_RxV


def bootstrap(votes: Sequence[Vote], systems: int) -> np.ndarray:
    """float64 [R, S]: the strengths of resamples."""
    weights_RxV = resample(votes, intervals.FEW_RESAMPLES, intervals.SEED)
    return np.stack([fit(wins(votes, systems, weights_V)) for weights_V in weights_RxV])
