"""Logs of one JSON object per line, read although their writer may have been killed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)
# Of a line; what is longer is read in parts, which are damaged lines.
_MOST_CHARACTERS = 2**20


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a log; damaged ones, and the torn last line of a killed run, are skipped.

    Only the former are worth a warning.  Every line that is returned has a whole number as its `step`.
    """
    damaged = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MOST_CHARACTERS), ""), 1):
            entry = _entry(line)
            if entry is not None:
                yield entry
            elif line.endswith("\n"):
                damaged.append(number)
    if damaged:
        some = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        _LOG.warning("%s: %d damaged lines are skipped (line %s)", path, len(damaged), some)


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and type(entry.get("step")) is int else None
