"""Pseudo-random permutations whose every value is computed by itself, in constant memory.

A Feistel network permutes the numbers of 2b bits whatever its round function is; walking on from a
value outside of range(size) until one lies inside makes a permutation of any size of it.  Nothing is
stored and nothing is shuffled: the order of an epoch of a billion clips costs as much as one of ten.
"""

from __future__ import annotations

import functools

import numpy as np

_ROUNDS = 8


def permuted(places: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """The images of some places under the permutation of range(size) by `key`.

    Args:
      places: integers of any shape, in range(size).
      key: integers >= 0; each tuple gives another permutation.

    Returns int64 of the shape of `places`.
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    values = _network(np.asarray(places, np.uint64), half, key)
    while (outside := values >= size).any():
        values[outside] = _network(values[outside], half, key)
    return values.astype(np.int64)


def _network(values: np.ndarray, half: int, key: tuple[int, ...]) -> np.ndarray:
    """A permutation of the numbers of 2 * half bits."""
    bits, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = values >> bits, values & mask
    for round_key in _round_keys(key):
        left, right = right, left ^ (_mixed(right ^ round_key) & mask)
    return left << bits | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: every bit of the result depends on every bit of the value."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


@functools.lru_cache(maxsize=64)
def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    return np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
