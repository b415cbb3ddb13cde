"""A watchdog: ends a process whose step hangs, so that whoever started it can start it again.

A collective that waits for a lost machine, a read that never returns or a deadlock leave a training standing for
ever, at the price of all its machines.  A step is hung once it takes `FAULTS.hang_factor` times the median of the
steps before it.  Each process watches itself.
"""

from __future__ import annotations

import collections
import faulthandler
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from poet.distributed import processes
from poet.runs import exits
from poet.spec import FaultsSpec

# Steps of a group that its median is of, and how many there must be before it means anything.
RECENT, LEAST = 33, 3
# Seconds between two looks at the clock, of the monotonic kind: changes of the date do not matter.
POLL_S = 0.5
# The standard error of native code, which commands send to their log file.
_NATIVE_STDERR = 2
_LOG = logging.getLogger(__name__)


class Pace:
    """How long a step may take, by the steps before it.

    Steps are dispatched one ahead, so that the time between two of them is the one's or the other's.  A step therefore
    counts with the longer of both, and may take as long as the slower of the two groups.
    """

    def __init__(self, factor: float, least_s: float, pause_s: float):
        self._factor, self._least_s, self._pause_s = factor, least_s, pause_s
        self._seconds: dict[str, collections.deque[float]] = collections.defaultdict(
            lambda: collections.deque(maxlen=RECENT)
        )
        self._group, self._last_s = "", 0.0

    def took(self, group: str, seconds: float) -> None:
        """The time from the dispatch of a step to the next thing that the loop did."""
        if self._group:
            self._seconds[self._group].append(max(self._last_s, seconds))
        self._group, self._last_s = group, seconds

    def median_s(self, group: str) -> float | None:
        """Seconds of the group's steps; None while there were too few of them."""
        found = self._seconds[group]
        return statistics.median(found) if len(found) >= LEAST else None

    def limit_s(self, group: str) -> float:
        """Seconds after which a step of this group is hung."""
        found = (self.median_s(name) for name in {group, self._group or group})
        medians = [seconds for seconds in found if seconds is not None]
        if len(medians) < len({group, self._group or group}):
            return self._pause_s
        return max(self._factor * max(medians), self._least_s)


class Watchdog:
    """Watches the loop from a thread, within a `with` block; without `hang_factor` it does nothing.

    The loop says what it does: `step` and `pause`.
    """

    def __init__(
        self,
        faults: FaultsSpec,
        *,
        now: Callable[[], float] = time.monotonic,
        hung: Callable[[], Any] = lambda: None,
        end: Callable[[str], Any] | None = None,
    ):
        """`hung` is called before a process is ended, from the watchdog's thread."""
        self._on, self._pause_s = faults.hang_factor > 0, faults.hang_pause_s
        self._pace = Pace(faults.hang_factor, faults.hang_least_s, faults.hang_pause_s)
        self._now, self._hung, self._end = now, hung, end or _end
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._doing, self._group, self._since, self._limit_s = "", "", 0.0, float("inf")

    def __enter__(self) -> Watchdog:
        if self._on:
            self._over.clear()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
        self._doing, self._group, self._limit_s = "", "", float("inf")

    def step(self, number: int, group: str) -> None:
        """The loop begins the step of this number."""
        self._turn(f"step {number} of group {group}", group, self._pace.limit_s(group))

    def pause(self, what: str) -> None:
        """The loop does something other than a step."""
        self._turn(what, "", self._pause_s)

    def _turn(self, doing: str, group: str, limit_s: float) -> None:
        now = self._now()
        with self._lock:
            if self._group:
                self._pace.took(self._group, now - self._since)
            self._doing, self._group, self._since, self._limit_s = doing, group, now, limit_s

    def _watch(self) -> None:
        last = self._now()
        while not self._over.wait(POLL_S):
            last = self.look(last)

    def look(self, last: float) -> float:
        """Ends the process if it hangs; returns the time.

        Where the look before, at `last`, is long ago, this thread stood still too: the whole process was stopped.
        """
        now = self._now()
        with self._lock:
            stood_s = now - last
            if stood_s > 10 * POLL_S:
                self._since += stood_s
            hung = now - self._since > self._limit_s
            words = f"{self._doing} hangs: it has taken {now - self._since:.1f} s, and may take {self._limit_s:.1f} s"
        if hung:
            self._hung()
            self._end(words)
        return now


def _end(words: str) -> NoReturn:
    """Says where every thread stands, and ends this process at once: an orderly end would wait for what hangs."""
    faulthandler.dump_traceback(_NATIVE_STDERR)
    absent = processes.absent()
    others = f"; no answer from process {', '.join(map(str, absent))}" if absent else ""
    _LOG.error("%s (FAULTS.hang_factor)%s. The stacks of all threads are in the log", words, others)
    processes.leave(exits.HUNG)
    logging.shutdown()
    os._exit(exits.HUNG)
