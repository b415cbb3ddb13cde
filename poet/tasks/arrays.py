"""Checks of the caller's arrays: equal numbers of rows, codes in their range, finite states.

It needs only NumPy, so that the serving runtime checks the same as the Python API.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from poet.spec.base import UserError


def rows(arrays: Mapping[str, Any], count: int | None = None) -> int:
    """N, the rows of every array (not None), or `count`, or 1.

    Raises:
      UserError: they differ from each other or from `count`, or there are none.
    """
    found = {name: _length(name, array) for name, array in arrays.items() if array is not None}
    if count is not None:
        found["count"] = count
    wanted = next(iter(found.values()), 1)
    if wanted < 1 or any(n != wanted for n in found.values()):
        counts = ", ".join(f"{name}: {n}" for name, n in found.items())
        raise UserError(f"every array needs a row for each sample, and these differ ({counts})")
    return wanted


def _length(name: str, array: Any) -> int:
    if not np.ndim(array):
        raise UserError(f"{name} is a single number, expected an array with a row for each sample")
    return len(array)


def check_codes(name: str, codes_NxK: Any, size: int, least: int = 0) -> None:
    """Raises UserError unless all are integers in least..size - 1; -1 stands for a hidden code."""
    codes = np.asarray(codes_NxK)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise UserError(f"{name} is {codes.dtype}{list(codes.shape)}, expected integers [samples, codes]")
    if codes.size and not least <= codes.min() <= codes.max() < size:
        raise UserError(f"{name} holds codes from {codes.min()} to {codes.max()}: they must lie in {least}..{size - 1}")


def check_text(name: str, states_NxLxE: Any, lengths_N: Any, positions: int) -> None:
    """Raises UserError unless states are finite and lengths are integers in 0..positions."""
    states, lengths = np.asarray(states_NxLxE), np.asarray(lengths_N)
    whole = lengths.ndim == 1 and np.issubdtype(lengths.dtype, np.integer)
    if not whole or (lengths.size and not 0 <= lengths.min() <= lengths.max() <= positions):
        raise UserError(
            f"the lengths of {name} are {lengths.tolist()}: expected integers in 0..{positions}, one for each sample"
        )
    if not np.issubdtype(states.dtype, np.floating) or not np.isfinite(states).all():
        raise UserError(f"the states of {name} must be finite floating-point numbers")
