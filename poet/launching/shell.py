"""Pieces of the shell scripts that are written for machines elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

HEAD = "#!/usr/bin/env bash\n"
# The exit code of `timeout` where the time has ended.
TIMED_OUT = 124


def words(argv: Sequence[str], indent: str = "") -> str:
    """A command, quoted, with a line for each long flag."""
    lines: list[list[str]] = [[]]
    for word in argv:
        is_flag = word.startswith("--") and word != "--"
        if lines[-1] and (is_flag or lines[-1][0].startswith("--")):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return f" \\\n{indent}  ".join(" ".join(line) for line in lines)


def exports(variables: Mapping[str, str]) -> list[str]:
    """Lines that set variables of the environment."""
    return [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]


def script(lines: Iterable[str]) -> str:
    """A script of bash."""
    return HEAD + "\n".join(lines) + "\n"


def limited(argv: Sequence[str], hours: float, grace_s: int) -> tuple[str, ...]:
    """A command that is asked to stop after `hours` (0: never), and killed `grace_s` later.

    Its exit code is then `TIMED_OUT`.
    """
    if not hours:
        return tuple(argv)
    return ("timeout", "--signal=TERM", f"--kill-after={grace_s}", f"{max(round(hours * 3600), 1)}", *argv)
