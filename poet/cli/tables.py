"""Tables and durations as text, for terminals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def columns(rows: Sequence[Mapping[str, str]], *, head: bool = True) -> str:
    """Columns as wide as they must be, under their names; '' for no rows."""
    if not rows:
        return ""
    lines = [list(rows[0])] * head + [list(row.values()) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def duration(seconds: float) -> str:
    """'42 s', '12 min', '7.5 h', '3.2 days'."""
    for unit, length in (("days", 86_400), ("h", 3600)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{max(seconds, 0):.0f} s"
