"""What a training does when something goes wrong.

Imported through `poet.spec`, like every other spec.
"""

from __future__ import annotations

import dataclasses

from poet.spec.base import MOST_STEPS, Spec, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultsSpec(Spec):
    """Answers to faults of a training (poet/runs/README.md); all are off by default.

    `skips`: so many updates in a row may be skipped because a loss or the norm of a gradient is not finite; the
    state then stays as it was.  0: the first one ends the run, or begins a rewind.
    `rewinds`: so often in a run, where that is not enough, the newest checkpoint is restored and the batches from there
    to the bad step, and of `rewind_steps` further steps, are left out (PaLM, 2204.02311 §5.1: 200 to 500 batches).
    `hang_factor`: a step that takes so many times the median of the steps before it ends the process with exit code 70
    and every thread's stack in the log, but not before `hang_least_s` seconds.  0: never.
    `hang_pause_s`: the same for what stands between two steps, such as an evaluation or a save; it needs `hang_factor`.
    """

    skips: int = setting(0, changes="course", at_least=0, at_most=MOST_STEPS)
    rewinds: int = setting(0, changes="course", at_least=0, at_most=1000)
    rewind_steps: int = setting(0, changes="course", at_least=0, at_most=MOST_STEPS)
    hang_factor: float = setting(0.0, changes="nothing", at_least=0, at_most=1e6)
    hang_least_s: float = setting(60.0, changes="nothing", above=0, at_most=1e6)
    hang_pause_s: float = setting(3600.0, changes="nothing", above=0, at_most=1e7)
