"""The timeline of a run: on what its wall time went, over all its restarts.

`timeline.jsonl` is only ever appended to, whatever a restart rewinds.  Each line has

    time        Unix seconds
    elapsed_s   seconds since this process began with the run, by a clock that does not jump
    event       start: the run was accepted here, and goes on from `step`; progress: `step` steps are done;
                rewind: the state went back to `step`; hung: the process ends, as a step does not; end: `outcome`;
                alert: an unusual value, in `text`
    <cause>_s   seconds since the line before that went on this cause of `CAUSES`

What of the time since the line before has no cause belongs to the event: steps to progress and end, start-up to
start, restoring to rewind, the hang to hung.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from poet.runs import lines

FILE = "timeline.jsonl"
START, PROGRESS, REWIND, HUNG, END, ALERT = "start", "progress", "rewind", "hung", "end", "alert"
CAUSES = ("compile", "restore", "data", "save", "evaluate")
# A line of progress at least this often, as far as steps end: what a killed process did after its last line counts
# as time between two processes.
_PROGRESS_S = 30.0
_LOG = logging.getLogger(__name__)


class Timeline:
    """Writes the lines of one process; without a path it writes nothing.

    A line that cannot be written is logged and lost.
    """

    def __init__(
        self, path: Path | None, *, now: Callable[[], float] = time.monotonic, date: Callable[[], float] = time.time
    ):
        self._path, self._now, self._date = path, now, date
        self._begin = self._last = now()
        self._spent: dict[str, float] = {}
        self._step: int | None = None

    def __enter__(self) -> Timeline:
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        """A started process that an error ends leaves a line of it."""
        if kind is not None and self._step is not None:
            self.end(kind.__name__)

    def spent(self, cause: str, seconds: float) -> None:
        """Puts seconds down to a cause of `CAUSES`."""
        self._spent[cause] = self._spent.get(cause, 0.0) + seconds

    def start(self, step: int, **fields: Any) -> None:
        """The first line of a process: the run goes on from `step`."""
        self.note(START, step, host=socket.gethostname(), pid=os.getpid(), **fields)

    def progress(self, step: int, *, now: bool = False) -> None:
        """A line after a step, where the last one is long ago, or `now`."""
        self._step = step
        if now or self._now() - self._last >= _PROGRESS_S:
            self.note(PROGRESS, step)

    def end(self, outcome: str) -> None:
        """The last line of a process."""
        self.note(END, self._step or 0, outcome=outcome)

    def hang(self) -> None:
        """The last line of a process that hangs."""
        self.note(HUNG, self._step or 0)

    def note(self, event: str, step: int, **fields: Any) -> None:
        """A line of an event; from another thread too."""
        spent, self._spent, self._last, self._step = self._spent, {}, self._now(), step
        causes = {f"{cause}_s": round(seconds, 4) for cause, seconds in spent.items()}
        self._write(event, step, fields | causes)

    def alert(self, step: int, metric: str, text: str) -> None:
        """A line about an unusual value, which takes no part in the account."""
        self._write(ALERT, step, {"metric": metric, "text": text})

    def _write(self, event: str, step: int, fields: Mapping[str, Any]) -> None:
        elapsed_s = self._now() - self._begin
        entry = {"time": round(self._date(), 3), "elapsed_s": round(elapsed_s, 3), "event": event, "step": step}
        entry |= fields
        if self._path is None:
            return
        try:
            self._append((json.dumps(entry) + "\n").encode())
        except OSError as error:
            _LOG.warning("%s could not be written: %s", self._path, error)

    def _append(self, line: bytes) -> None:
        """In one write, after the end of a torn line."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)  # type: ignore[arg-type]
        try:
            size = os.fstat(descriptor).st_size
            torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" + line if torn else line)
        finally:
            os.close(descriptor)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a timeline that are whole and have what all of them have."""
    if not path.is_file():
        return
    for entry in lines.read(path):
        if all(isinstance(entry.get(name), (int, float)) for name in ("time", "elapsed_s")) and "event" in entry:
            yield entry
