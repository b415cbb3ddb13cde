"""Memory of the worker: what jobs need of it, what there is, what was measured.

The worker runs one program at a time.  While it makes some jobs it takes at most what it held before, what they bring
and keep, what each holds, and what the largest of their programs needs while it runs.  `poet.server.needs` predicts
these parts from shapes.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

GIB = 2**30
# The part of a machine's memory that a worker may take, unless a limit is set.
_SHARE = 0.9
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a job takes in the worker.

    Attributes:
      kept: of weights and compiled programs by name, which stay when it has ended.
      batch: states of the whole batch, whoever is in it.
      own: what it holds alone, such as its media.
      passing: while its largest program runs.
    """

    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)
    batch: int = 0
    own: int = 0
    passing: int = 0

    @property
    def total(self) -> int:
        """Of a job alone in a new worker."""
        return sum(self.kept.values()) + self.batch + self.own + self.passing


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a worker takes.

    Attributes:
      held: bytes now.  peak: bytes at the most since the `Meter` was started.
      there_are: bytes of its accelerator; 0 where it has none, and takes the machine's.
    """

    held: int
    peak: int
    there_are: int = 0


class Ledger:
    """Who may be in the worker at once.

    Args:
      limit_gib: of the worker; 0 is nine tenths of what there is.
    """

    def __init__(self, limit_gib: float = 0.0):
        self._limit_gib, self._there_are = limit_gib, machine_bytes()
        self._new, self._held, self._kept = 0, 0, set[str]()

    @property
    def limit(self) -> int:
        """Bytes that the worker may take."""
        return int(self._limit_gib * GIB or _SHARE * self._there_are)

    @property
    def room(self) -> int:
        """Bytes that a job may take alone in a new worker."""
        return max(self.limit - self._new, 0)

    def started(self, found: Measured) -> None:
        """A new worker has loaded its model."""
        self._new = self._held = found.held
        self._there_are = found.there_are or self._there_are
        self._kept.clear()

    def ended(self, found: Measured, kept: Iterable[str]) -> None:
        """The worker is idle after jobs that have brought what is named."""
        self._held = found.held
        self._kept |= {*kept}

    def of(self, needs: Iterable[Need]) -> int:
        """Bytes at the peak of the worker while it makes these jobs."""
        needs = [*needs]
        new = {name: size for need in needs for name, size in need.kept.items() if name not in self._kept}
        batch, passing = (max((getattr(need, part) for need in needs), default=0) for part in ("batch", "passing"))
        return self._held + sum(new.values()) + batch + sum(need.own for need in needs) + passing

    def fits(self, needs: Iterable[Need]) -> bool:
        """Whether the worker can make these jobs at once."""
        return self.of(needs) <= self.limit

    def admits(self, need: Need) -> bool:
        """Whether a new worker can make a job alone."""
        return need.total <= self.room

    def refusal(self, need: Need, advice: str = "") -> str:
        """Why a job is not admitted; `advice` says what would fit."""
        parts = {"weights and programs": sum(need.kept.values()), "its batch": need.batch, "its media": need.own}
        parts |= {"its largest program": need.passing, "the worker itself": self._new}
        listed = ", ".join(f"{size / GIB:.2f} for {name}" for name, size in parts.items() if size)
        said = f"it would take {(need.total + self._new) / GIB:.2f} GiB of memory ({listed}), and this service has "
        return f"{said}{self.limit / GIB:.2f}" + (f": {advice}" if advice else "")


class Meter:
    """Measures this process, or its accelerator; peaks count from `start`, where the system can forget earlier ones."""

    def start(self) -> None:
        """Forgets earlier peaks."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass  # Not of Linux, or not allowed: peaks are those of the whole life.

    def read(self) -> Measured:
        """What is taken now, and was at the most."""
        device = _device()
        if device:
            return Measured(device["bytes_in_use"], device["peak_bytes_in_use"], device["bytes_limit"])
        return Measured(_status("VmRSS"), _status("VmHWM"))


def _device() -> dict[str, Any]:
    """What JAX says of its accelerator; {} where there is none, or no JAX."""
    jax = sys.modules.get("jax")
    return (jax.local_devices()[0].memory_stats() or {}) if jax else {}


def _status(name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def machine_bytes() -> int:
    """Bytes of memory of this machine, or of the container."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        said = _CGROUP.read_text().strip()
    except OSError:
        said = ""
    return min(whole, int(said)) if said.isdigit() else whole
