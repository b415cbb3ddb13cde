"""Goodput: the share of a run's wall time in steps that were needed once, and where the rest went.

It is computed from the timeline alone (`poet.runs.timeline`), over all restarts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from poet.runs import timeline

# What seconds go on, in the order of reports -> in words.
CAUSES = {
    "steps": "steps, each counted once",
    "data": "waiting for batches",
    "save": "training held up by checkpoints",
    "evaluate": "evaluation and samples within the loop",
    "startup": "start-up of the processes, after their imports",
    "compile": "compilation, or loading of compiled programs",
    "restore": "reading a checkpoint, or a new state",
    "repeated": "steps done again, as they were lost",
    "hang": "steps that hung",
    "down": "from the last sign of one process to the start of the next",
}
_REST = {
    timeline.START: "startup",
    timeline.PROGRESS: "steps",
    timeline.END: "steps",
    timeline.REWIND: "restore",
    timeline.HUNG: "hang",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """The wall time of a run, from its first start to its last line.

    Attributes:
      seconds: cause of `CAUSES` -> seconds; together all of it.
      starts: processes that began, which is one more than restarts.
      step: the last one that was done.
      last: the last line of the timeline; {} is none.
    """

    seconds: Mapping[str, float]
    starts: int
    step: int
    last: Mapping[str, Any]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float | None:
        """Share in steps that count; None where no time has passed."""
        return self.seconds["steps"] / self.total_s if self.total_s else None

    def as_json(self) -> dict[str, Any]:
        """A JSON object: the goodput, seconds and shares by cause."""
        total = self.total_s or 1.0
        shares = {cause: seconds / total for cause, seconds in self.seconds.items()}
        return {
            "goodput": self.goodput,
            "total_s": self.total_s,
            "starts": self.starts,
            "seconds": dict(self.seconds),
            "shares": shares,
        }


def account(entries: Iterable[Mapping[str, Any]]) -> Account:
    """Sums up the lines of a timeline, in the order in which they were written."""
    ledger = _Ledger()
    for entry in entries:
        ledger.take(entry)
    return Account(seconds=ledger.seconds, starts=ledger.starts, step=ledger.step, last=ledger.last)


class _Ledger:
    """Seconds by cause so far, and which steps they were for."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self.starts, self.step = 0, 0
        self.last: Mapping[str, Any] = {}
        # (first, last, seconds) of stretches of steps that count, ascending.
        self._stretches: list[tuple[int, int, float]] = []

    def take(self, entry: Mapping[str, Any]) -> None:
        event, step = entry["event"], entry["step"]
        if event not in _REST or (not self.last and event != timeline.START):
            return
        since = entry["elapsed_s"]
        if event == timeline.START:
            self.starts += 1
            if self.last:
                self.seconds["down"] += max(entry["time"] - entry["elapsed_s"] - self.last["time"], 0.0)
        else:
            since -= self.last["elapsed_s"]
        rest = self._causes(entry, max(since, 0.0))
        if event in (timeline.START, timeline.REWIND):
            self._undo(step)
        if event in (timeline.PROGRESS, timeline.END) and step > self.step:
            self._stretches.append((self.step, step, rest))
        self.seconds[_REST[event]] += rest
        self.step, self.last = step, entry

    def _causes(self, entry: Mapping[str, Any], since: float) -> float:
        """Books what the line says of its causes, which is at most the time since the line before; returns the rest."""
        for cause in timeline.CAUSES:
            spent = min(float(entry.get(f"{cause}_s", 0.0)), since)
            self.seconds[cause] += spent
            since -= spent
        return since

    def _undo(self, step: int) -> None:
        """Seconds of steps beyond `step` were for nothing: these will be done again."""
        while self._stretches and self._stretches[-1][1] > step:
            first, last, seconds = self._stretches.pop()
            lost = seconds * (last - max(first, step)) / (last - first)
            self.seconds["steps"] -= lost
            self.seconds["repeated"] += lost
            if first < step:
                self._stretches.append((first, step, seconds - lost))
