"""The saves of a run: begun between two steps, finished beside the steps that follow, one at a time."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from poet.checkpoints import checkpoint
from poet.checkpoints import policy as policies
from poet.checkpoints.apart import Apart
from poet.distributed import processes
from poet.runs.publishing import Publisher
from poet.runs.run import Run
from poet.spec import Experiment, near_names
from poet.training.reporting import Reporter
from poet.training.trainable import State

_LOG = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of one run, and hands them to its publisher.

    A save that fails is counted and logged, and training goes on.  All processes of a run call its
    methods at the same steps, but `close`.
    """

    def __init__(
        self,
        run: Run,
        experiment: Experiment,
        mesh: Mesh,
        made_with: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.monotonic,
        publisher: Publisher | None = None,
        apart: Apart | None = None,
    ):
        self._publisher = publisher or Publisher()
        self._run, self._experiment, self._mesh = run, experiment, mesh
        self._apart = apart
        self._made_with, self._policy, self._now = made_with, experiment.checkpoint, now
        self._under_way: checkpoint.Saving | None = None
        self._over = self._late = processes.Vote(mesh)
        self._last, self._warned = now(), False
        self._keep = functools.partial(policies.kept, policy=self._policy)
        for step in self._publisher.unpublished:
            self._publisher.saved(step, self._keep)

    def due(self, step: int) -> bool:
        """Whether CHECKPOINT asks for a save at this step; asked once at each step, and answered alike everywhere.

        Minutes are those of the process that waits longest.
        """
        by_steps = bool(self._policy.every) and step % self._policy.every == 0
        if not self._policy.every_minutes:
            return by_steps
        return self._late(self._now() - self._last >= 60 * self._policy.every_minutes) or by_steps

    def start(
        self,
        step: int,
        state: State,
        iterators: Mapping[str, bytes],
        clock: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begins a save, after `settle`; `state` may be donated as soon as this returns.

        Raises:
          checkpoint.SaveError: it could not be begun.
        """
        self._check_best(step, metrics or {})
        self._publisher.room(step)
        self._last, self._late = self._now(), processes.Vote(self._mesh)  # An answer on its way speaks of before.
        self._under_way = checkpoint.start_save(
            self._run,
            step=step,
            state=state,
            iterators=iterators,
            experiment=self._experiment,
            clock=clock,
            policy=self._policy,
            networks=self._made_with,
            metrics=metrics,
            spared=self._publisher.pending,
            apart=self._apart,
        )
        self._over = processes.Vote(self._mesh)

    def _check_best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Says once that a checkpoint has no value of CHECKPOINT.best, so that it cannot be the best one."""
        best = self._policy.best
        if best and best not in metrics and not self._warned:
            self._warned = True
            near = near_names(best, sorted(metrics))
            _LOG.warning("CHECKPOINT.best = %r was not measured at step %d%s", best, step, near)

    def poll(self, reporter: Reporter) -> None:
        """Settles the save under way if it is over; costs next to nothing, for every step."""
        if self._under_way and self._over(processes.first() and self._under_way.done()):
            self.settle(reporter)

    def settle(self, reporter: Reporter) -> None:
        """Waits for the save under way, if there is one."""
        try:
            self.finish()
        except checkpoint.SaveError as error:
            self.failed(error, reporter)

    def finish(self) -> None:
        """As `settle`, but its failure is the caller's.

        Raises:
          checkpoint.SaveError: see `checkpoint.Saving.wait`.
        """
        saving, self._under_way = self._under_way, None
        if saving:
            self._publisher.saved(int(saving.wait().name), self._keep)

    def failed(self, error: checkpoint.SaveError, reporter: Reporter) -> None:
        """Counts a save that failed."""
        reporter.checkpoint_failures += 1
        _LOG.error("%s; training goes on", error)

    def close(self) -> None:
        """Lets this process finish its part of a save, at the end of a run that failed elsewhere."""
        if self._under_way:
            self._under_way.join()
