"""The saves of a run: begun between two steps, finished beside the steps that follow, one at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from poet.checkpoints import checkpoint
from poet.distributed import processes
from poet.runs.run import Run
from poet.spec import Experiment
from poet.training.reporting import Reporter
from poet.training.trainable import State

_LOG = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of one run.

    A save that fails is counted and logged, and training goes on.  All processes of a run call its
    methods at the same steps, but `close`.
    """

    def __init__(self, run: Run, experiment: Experiment, mesh: Mesh, made_with: Mapping[str, str] | None = None):
        self._run, self._experiment, self._mesh = run, experiment, mesh
        self._made_with = made_with
        self._under_way: checkpoint.Saving | None = None
        self._over = processes.Vote(mesh)

    def start(self, step: int, state: State, iterators: Mapping[str, bytes], clock: Mapping[str, Any]) -> None:
        """Begins a save, after `settle`; `state` may be donated as soon as this returns.

        Raises:
          checkpoint.SaveError: it could not be begun.
        """
        self._under_way = checkpoint.start_save(
            self._run,
            step=step,
            state=state,
            iterators=iterators,
            experiment=self._experiment,
            clock=clock,
            keep=self._experiment.checkpoint.keep,
            networks=self._made_with,
        )
        self._over = processes.Vote(self._mesh)

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
            saving.wait()

    def failed(self, error: checkpoint.SaveError, reporter: Reporter) -> None:
        """Counts a save that failed."""
        reporter.checkpoint_failures += 1
        _LOG.error("%s; training goes on", error)

    def close(self) -> None:
        """Lets this process finish its part of a save, at the end of a run that failed elsewhere."""
        if self._under_way:
            self._under_way.join()
