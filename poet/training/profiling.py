"""A profile of a few steps of a running training, asked for by a signal.

`kill -USR1 PID` makes that process trace its next steps into WORKDIR/profiles/STEP, for TensorBoard's profiler, xprof
or Perfetto.  Nothing else changes, and the other processes go on without noticing.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# Steps of a profile.
STEPS = 5
_LOG = logging.getLogger(__name__)


class Profiler:
    """Listens to SIGUSR1 within a `with` block; the loop calls `step` before each step."""

    def __init__(self, folder: Path):
        self._folder, self._asked = folder, False
        self._until: int | None = None
        self._previous: Any = None

    def __enter__(self) -> Profiler:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def __exit__(self, *exc: Any) -> None:
        self._stop(lambda: None)
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)

    def step(self, step: int, wait: Callable[[], Any]) -> None:
        """Begins or ends a profile if it is time.

        Args:
          wait: returns when the steps so far are over, so that the profile has all of them.
        """
        if self._until is not None and step >= self._until:
            self._stop(wait)
        if self._asked and self._until is None:
            self._asked = False
            self._start(step, wait)

    def _start(self, step: int, wait: Callable[[], Any]) -> None:
        wait()
        place = self._folder / f"{step:08d}"
        try:
            jax.profiler.start_trace(str(place))
        except (OSError, RuntimeError) as error:
            _LOG.warning("no profile is written to %s: %s", place, error)
            return
        self._until = step + STEPS
        _LOG.info("profiling %d steps into %s", STEPS, place)

    def _stop(self, wait: Callable[[], Any]) -> None:
        if self._until is None:
            return
        wait()
        self._until = None
        try:
            jax.profiler.stop_trace()
            _LOG.info("the profile is written")
        except (OSError, RuntimeError) as error:
            _LOG.warning("the profile could not be written: %s", error)
