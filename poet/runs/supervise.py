"""Starts a command again where that may help, and stops where it does not get on.

The rule alone (`Restarts`) is for launchers that start processes themselves.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from poet.runs import exits

_LOG = logging.getLogger(__name__)
# Of prctl(2): the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """When a command is not started again, and how long it waits before.

    Attributes:
      most: starts in a row without progress.
      least_steps: saved steps that are progress.
      first_wait_s, most_wait_s: the first wait, which doubles at each start without progress, and the longest one.
    """

    most: int = 3
    least_steps: int = 200
    first_wait_s: float = 2.0
    most_wait_s: float = 300.0


class Restarts:
    """The ends of one job, in order.

    Args:
      step: the newest saved step at its first start.
    """

    def __init__(self, rule: Rule, step: int = 0):
        self._rule, self._from = rule, step
        self._ends: list[str] = []

    def wait_s(self, code: int, step: int) -> float | None:
        """Seconds until the next start after this exit code, with `step` saved by now; None: no further start."""
        if not exits.restartable(code):
            return None
        if step - self._from >= self._rule.least_steps:
            self._from = step
            self._ends.clear()
        self._ends.append(exits.describe(code))
        if len(self._ends) > self._rule.most:
            return None
        if code == exits.RESTART and len(self._ends) == 1:
            return 0.0
        return min(self._rule.first_wait_s * 2 ** (len(self._ends) - 1), self._rule.most_wait_s)

    def verdict(self, code: int, step: int) -> tuple[int, str]:
        """The exit code of the job, and why it is not started again, after `wait_s` said so."""
        if not exits.restartable(code):
            return (128 - code if code < 0 else code), exits.describe(code)
        counted = collections.Counter(self._ends)
        ends = ", ".join(f"{end}{f' x {count}' if count > 1 else ''}" for end, count in counted.items())
        return exits.PERMANENT, (
            f"no {self._rule.least_steps} steps of progress in {self._rule.most} restarts: step {self._from} was saved "
            f"before them, step {step} now; it ended by {ends}"
        )


class Supervisor:
    """Runs a command until it is done, or the rule ends it; SIGTERM and SIGINT are handed on and end it too.

    Args:
      argv: the command.
      saved: the newest saved step.
      stderr: that of the command; None: this process's.
    """

    def __init__(
        self,
        argv: Sequence[str],
        rule: Rule,
        saved: Callable[[], int],
        *,
        stderr: IO[str] | None = None,
        sleep: Callable[[float], Any] = time.sleep,
    ):
        self._argv, self._saved, self._stderr, self._sleep = list(argv), saved, stderr, sleep
        self._restarts = Restarts(rule, saved())
        self._child: subprocess.Popen | None = None
        self._stopped = 0

    def run(self) -> int:
        """Returns the exit code of the job, see `poet.runs.exits`."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while True:
                code = self._once()
                step = self._saved()
                if self._stopped:
                    return 128 - code if code < 0 else code
                wait_s = self._restarts.wait_s(code, step)
                if wait_s is None:
                    break
                _LOG.warning("%s at saved step %d; starting again in %g s", exits.describe(code), step, wait_s)
                self._sleep(wait_s)
                if self._stopped:
                    return exits.RESTART
            final, why = self._restarts.verdict(code, step)
            if final:
                _LOG.error("not started again: %s", why)
            return final
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _once(self) -> int:
        # A session of its own: Ctrl-C reaches it through this process alone, once.
        self._child = subprocess.Popen(
            self._argv, stderr=self._stderr, start_new_session=True, preexec_fn=_ends_with_its_parent
        )
        return self._child.wait()

    def _stop(self, number: int, frame: Any) -> None:
        self._stopped = number
        if self._child and self._child.poll() is None:
            self._child.send_signal(number)


def _ends_with_its_parent() -> None:
    """A supervisor that is killed leaves no training behind: that one saves and ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
