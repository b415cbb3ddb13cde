"""Goodput of a job of many machines that fail: a simulation, and the closed form that it must agree with.

Failures come at random, independently and at a constant rate.  A failure loses the steps since the newest state that
survives it, and stands the job still for a restart.  Local snapshots (`CHECKPOINT.local`) survive the failure of a
process, and not that of a machine.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from poet.spec import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What decides over the goodput of a job; all times in seconds.

    Attributes:
      failure_s: mean time between failures of the whole job: that of one machine over the number of machines.
      step_s: one step.
      save_every_s: from one checkpoint to the next.
      save_blocked_s: training waits so long for a checkpoint.
      save_s: until a checkpoint is whole; a failure before that loses it.
      restart_s: from a failure to the first step after it: notice, new processes, compilation, reading.
      local_every_s: from one local snapshot to the next; 0 is none.
      local_blocked_s: training waits so long for a local snapshot.
      process_failures: fraction of the failures that leave the machines' memory as it is.
    """

    failure_s: float
    step_s: float
    save_every_s: float
    save_blocked_s: float
    save_s: float
    restart_s: float
    local_every_s: float = 0.0
    local_blocked_s: float = 0.0
    process_failures: float = 0.0

    def __post_init__(self) -> None:
        if min(self.failure_s, self.step_s, self.save_every_s) <= 0 or not 0 <= self.process_failures <= 1:
            raise UserError(f"{self}: times must be positive, and process_failures a fraction")

    @property
    def pace(self) -> float:
        """Seconds of steps in a second without failures."""
        held = 1 + self.save_blocked_s / self.save_every_s
        return 1 / (held + (self.local_blocked_s / self.local_every_s if self.local_every_s else 0.0))


def simulate(job: Job, days: float, seed: int = 0) -> dict[str, float]:
    """Shares of the wall time by cause (those of `poet.runs.goodput`), of a job of so many days.

    Every failure is simulated: what is lost depends on when it comes between two checkpoints, and on whether the one
    under way was whole.  Failures during a restart begin it again.
    """
    rng, total = np.random.default_rng(seed), days * 86_400
    spent = dict.fromkeys(("steps", "save", "repeated", "down"), 0.0)
    now, done, saved = 0.0, 0.0, 0.0
    while now < total:
        life = min(rng.exponential(job.failure_s), total - now)
        worked = life * job.pace
        spent["steps"] += worked
        spent["save"] += life - worked
        now, done = now + life, done + worked
        if now >= total:
            break
        kept = _survives(job, saved, done, rng.random() < job.process_failures)
        spent["repeated"] += done - kept
        spent["steps"] -= done - kept
        done = saved = kept
        down = job.restart_s + _restarted(job, rng)
        spent["down"] += min(down, total - now)
        now += down
    return {cause: seconds / min(now, total) for cause, seconds in spent.items()}


def _survives(job: Job, begin: float, done: float, memory: bool) -> float:
    """Seconds of steps that a failure leaves, of `done`; checkpoints count from `begin`, where the life began."""
    age = done - begin
    late = job.save_s * job.pace
    kept = max(math.floor((age - late) / job.save_every_s), 0) * job.save_every_s
    if memory and job.local_every_s:
        kept = max(kept, math.floor(age / job.local_every_s) * job.local_every_s)
    return begin + kept


def _restarted(job: Job, rng: np.random.Generator) -> float:
    """Seconds lost by failures during restarts."""
    lost = 0.0
    while (life := rng.exponential(job.failure_s)) < job.restart_s:
        lost += life
    return lost


def expected(job: Job) -> float:
    """The goodput, to first order in the interval over the time between failures (Young 1974; Daly 2006).

    A failure loses half an interval and the writing of a checkpoint, and a restart.
    """
    lost = job.save_every_s / 2 / job.pace + job.save_s
    if job.local_every_s:
        lost = job.process_failures * job.local_every_s / 2 / job.pace + (1 - job.process_failures) * lost
    cycle = job.failure_s + job.restart_s
    return job.pace * max(job.failure_s - lost, 0.0) / cycle


def best_interval_s(failure_s: float, save_blocked_s: float) -> float:
    """The interval of checkpoints that loses the least time: sqrt(2 x cost x time between failures) (Young 1974)."""
    return math.sqrt(2 * save_blocked_s * failure_s)
