"""Which map belongs to which split. Clips of one map never stand in two splits."""

from __future__ import annotations

_FREEDOOM1, _FREEDOOM2 = "freedoom1.wad", "freedoom2.wad"


def _freedoom2(first: int, last: int) -> tuple[tuple[str, str], ...]:
    return tuple((_FREEDOOM2, f"map{number:02d}") for number in range(first, last + 1))


def _freedoom1(first: int, last: int) -> tuple[tuple[str, str], ...]:
    return tuple((_FREEDOOM1, f"e{episode}m{number}") for episode in range(first, last + 1) for number in range(1, 10))


MAPS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": _freedoom2(1, 24) + _freedoom1(1, 3),
    "validation": _freedoom2(25, 28),
    "test": _freedoom2(29, 32) + _freedoom1(4, 4),
}
