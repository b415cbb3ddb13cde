"""The training loop, for every network and tokenizer alike.

State number k has seen k batches; the step that makes state k + 1 is step k.  Inside a step the
order never changes: hooks that are due, maybe save, next batch, dispatch, metrics of the last step.
A save holds the loop up while the state is copied; it is written beside the steps that follow.

Several processes do the same steps.  What a clock, a disk or a signal decides, they decide together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from poet import spec as specs
from poet.checkpoints import checkpoint, weights
from poet.checkpoints.apart import Apart
from poet.checkpoints.snapshots import Snapshots
from poet.distributed import processes
from poet.distributed.mesh import Rules, batch_sharding, check_batch
from poet.models import deepening
from poet.runs import exits, manifest, networks, publishing, versions
from poet.runs import timeline as timelines
from poet.runs.run import Run
from poet.spec import Experiment, UserError, compat
from poet.training import compiled, nonfinite, optimizer, reporting, trackers
from poet.training.nonfinite import TrainingDiverged
from poet.training.profiling import Profiler
from poet.training.saving import Saver
from poet.training.signals import StopSignals
from poet.training.trainable import Batch, BatchIterator, Hook, Metrics, State, Trainable, each
from poet.training.watchdog import Watchdog

_LOG = logging.getLogger(__name__)


class Outcome(enum.Enum):
    """How `train` ended; in both cases the last state is saved."""

    FINISHED = "finished"
    PREEMPTED = "preempted"

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return exits.RESTART if self is Outcome.PREEMPTED else exits.FINISHED


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pending:
    """A dispatched step whose metrics have not been read."""

    step: int
    group: str
    metrics: Metrics
    waited_s: float


def train(
    trainable: Trainable,
    batches: Mapping[str, BatchIterator],
    schedule: Callable[[int], str],
    *,
    run: Run,
    mesh: Mesh,
    experiment: Experiment,
    hooks: Sequence[Hook] = (),
    rules: Rules = Rules(),
    made_with: networks.Networks | None = None,
    purpose: str = "resume",
) -> Outcome:
    """Trains to `experiment.train.steps`, going on from the newest usable checkpoint of `run`.

    Args:
      batches: one iterator per group; each process yields its share (`processes.batch_share`) of
        the global batch.
      schedule: step -> group, pure.
      made_with: fingerprints of what the batches come from (`poet.runs.networks`), for every checkpoint.
      purpose: the settings that an earlier run must share (`poet.spec.compat`).

    Raises:
      UserError: the folder is no work dir or in use, the mesh does not divide the model or a batch, a
        step does not fit into the devices' memory, or the checkpoints are of another run or all
        damaged.  An earlier run in the folder is then as it was.
      TrainingDiverged: nothing was saved from the first non-finite value on.
      checkpoint.SaveError: the last save failed; a failure before it is only counted and logged.
      publishing.Unpublished, publishing.Lost: the bucket of the work dir does not take a checkpoint, which is saved
        here; or another machine took it over.
    """
    with contextlib.ExitStack() as leases, jax.set_mesh(mesh), StopSignals() as stop:
        processes.from_first(run.check_place)
        publisher, apart = _hold(run, leases)
        run = apart.run if apart else run
        training = _Training(
            *(trainable, batches, schedule, run, mesh, experiment, tuple(hooks), made_with, purpose), publisher, apart
        )
        leases.enter_context(training.timeline)
        processes.from_first(training.check_earlier)
        if training.already_finished():
            return Outcome.FINISHED
        abstract = compiled.abstract(trainable, mesh, rules)
        programs = training.compile(abstract)
        while True:
            state, reporter = training.restore_or_init(abstract)
            try:
                with training.watchdog, training.profiler:
                    outcome = training.loop(state, programs, reporter, stop)
                publisher.finish()
                return outcome
            except TrainingDiverged as error:
                training.rewind(error, reporter)
            except Exception:  # Not an interrupt, which ends the run at once.
                training.saver.close()
                raise
            finally:
                reporter.close()


def _hold(run: Run, leases: contextlib.ExitStack) -> tuple[publishing.Publisher, Apart | None]:
    """Takes the work dir, on process 0; what publishes there is that of this process.

    The second is for processes that do not all see the folder of process 0, which its bucket stands behind.
    """
    held = [publishing.Publisher()]

    def take() -> str:
        held.append(leases.enter_context(publishing.hold(run)))
        return held[-1].copy

    copy = processes.from_first(take)
    if processes.everywhere(publishing.sees(run, copy)):
        return held[-1], None
    _LOG.info("not all processes see %s: each has a folder of its own, and %s is between them", run.folder, run.url)
    return held[-1], Apart(run, held[-1])


def _check_code(theirs: Mapping[str, str], what: str) -> None:
    """Says what of the code is other than it was; raises UserError where the run must not go on with it."""
    ours = versions.of_run()
    if versions.incompatible(theirs, ours):
        raise UserError(
            f"{what} was written by poet {theirs['poet']}, which poet {ours['poet']} does not continue: install that "
            "one to go on, or begin another run from it (TRAIN.init_from, another --workdir)"
        )
    if turned := versions.changes(theirs, ours):
        _LOG.warning("from this step on the run has other code than %s: %s", what, ", ".join(turned))


@dataclasses.dataclass
class _Training:
    """The arguments of `train`, and where it stands."""

    trainable: Trainable
    batches: Mapping[str, BatchIterator]
    schedule: Callable[[int], str]
    run: Run
    mesh: Mesh
    experiment: Experiment
    hooks: tuple[Hook, ...]
    made_with: networks.Networks | None = None
    purpose: str = "resume"
    publisher: publishing.Publisher = dataclasses.field(default_factory=publishing.Publisher)
    apart: Apart | None = None
    share: processes.Share = dataclasses.field(init=False)
    saver: Saver = dataclasses.field(init=False)
    start: int = 0
    saved: int | None = None
    begun: float = dataclasses.field(default_factory=time.perf_counter)
    # Hooks of the start step were not run before its checkpoint was written (stopped by a signal).
    hooks_owed: bool = False
    judge: nonfinite.Judge = dataclasses.field(init=False)
    watchdog: Watchdog = dataclasses.field(init=False)
    timeline: timelines.Timeline = dataclasses.field(init=False)
    snapshots: Snapshots = dataclasses.field(init=False)
    profiler: Profiler = dataclasses.field(init=False)
    # Rewinds of the run so far; the batches of the steps before `skip_to` are left out after the next restore.
    rewinds: int = 0
    skip_to: int = 0
    first_positions: dict[str, bytes] = dataclasses.field(init=False)
    # Seconds that the reporter of this process counted before a rewind.
    counted_s: float = 0.0

    def __post_init__(self) -> None:
        self.share = processes.batch_share(self.mesh)
        self.saver = Saver(
            self.run, self.experiment, self.mesh, self.made_with, publisher=self.publisher, apart=self.apart
        )
        self.timeline = timelines.Timeline(self.run.timeline if processes.first() else None)
        if missing := set(self.trainable.groups) - set(self.batches):
            raise UserError(f"no batches for the groups {sorted(missing)}")
        self.watchdog = Watchdog(self.experiment.faults, hung=self.timeline.hang)
        self.judge = nonfinite.Judge(self.experiment.faults.skips)
        self.profiler = Profiler(self.run.profiles)
        trackers.check(self.experiment.train.trackers)
        self.snapshots = Snapshots(self.run, self.experiment, self.made_with)
        self.first_positions = self._positions()
        for name, group in self.trainable.groups.items():
            for key, array in group.batch.items():
                check_batch(self.mesh, array.shape[0], f"{name}/{key}")

    @property
    def steps(self) -> int:
        return self.experiment.train.steps

    # -------------------------------------------------------------------------------- preparation

    def check_earlier(self) -> None:
        """Refuses to go on from a run of other settings or networks; says what else differs."""
        earlier = self.run.newest_whole()
        if earlier is None:
            return
        theirs, what = earlier.spec, f"the checkpoint {earlier.path}"
        remedy = "set them back to go on, or give another --workdir"
        compat.check(theirs, self.experiment, self.purpose, what=what, remedy=remedy)
        if self.made_with:
            networks.check(earlier.networks, self.made_with, what=what)
        _check_code(earlier.versions, what)
        turned = compat.differences(theirs, self.experiment, self.purpose, ("course",))
        if turned:
            _LOG.warning("from this step on the run differs from %s: %s", earlier.path, ", ".join(map(str, turned)))

    def already_finished(self) -> bool:
        return processes.from_first(self._finished)

    def _finished(self) -> bool:
        newest = self.run.newest()
        if newest is None or newest.step < self.steps:
            return False
        try:
            newest.verify()
        except manifest.Corrupt:
            return False  # Restoring will set it aside and say so.
        _LOG.info("%s is already trained to step %d", self.run.url or self.run.folder, newest.step)
        return True

    def compile(self, abstract: State) -> dict[str, compiled.Program]:
        """One program per group, before step 0; refuses what cannot fit."""
        groups = self.trainable.groups
        if self.judge.most:
            groups = {name: nonfinite.guarded(group) for name, group in groups.items()}
        begin = time.perf_counter()
        programs = compiled.compile_steps(groups, abstract, self.mesh)
        self.timeline.spent("compile", time.perf_counter() - begin)
        return programs

    def restore_or_init(self, abstract: State) -> tuple[State, reporting.Reporter]:
        begin, rewound = time.perf_counter(), self.skip_to > 0
        local = None if rewound else self.snapshots.restore(abstract)
        found = local or checkpoint.restore(self.run, abstract, self.apart)
        if found is None:
            self.start = 0
            init = functools.partial(compiled.init, self.trainable)
            key = jax.random.key(self.experiment.train.seed)
            state = jax.jit(init, out_shardings=compiled.shardings_of(abstract))(key)
            state |= self._start(abstract, state["params"])
        else:
            state = found.state
            self._resume(found)
        if local:
            self.saved = None  # It dies with the machine.
        processes.from_first(self._accepted)
        self._mark(rewound, time.perf_counter() - begin)
        clock = dict(found.clock) if found else {}
        self.hooks_owed = bool(clock.get("hooks_owed", False))
        self.judge.in_a_row = int(clock.get("skipped_in_a_row", 0))
        self.rewinds = max(self.rewinds, int(clock.get("rewinds", 0)))
        self._leave_out()
        _LOG.info("parameters:\n%s", reporting.parameter_overview(state["params"]))
        device = self.mesh.devices.flat[0]
        return state, reporting.Reporter(
            self.run,
            steps=self.steps,
            groups=self.trainable.groups,
            log_every=self.experiment.train.log_every,
            device_kind=device.device_kind,
            devices=self.mesh.size,
            start=self.start,
            clock=clock,
            setup_s=time.perf_counter() - self.begun + max(self.counted_s - float(clock.get("seconds", 0)), 0),
            writes=processes.first(),
            timeline=self.timeline,
            open_trackers=self._trackers,
        )

    def _trackers(self) -> list[trackers.Tracker]:
        return trackers.start(self.experiment.train.trackers, self.run.folder, specs.to_dict(self.experiment))

    def rewind(self, error: TrainingDiverged, reporter: reporting.Reporter) -> None:
        """Prepares a restore that leaves out the batches up to the step of an error; raises it where none is left."""
        self.saver.settle(reporter)
        faults = self.experiment.faults
        if self.rewinds >= faults.rewinds:
            raise error
        self.rewinds += 1
        self.snapshots.clear()
        self.timeline.progress(error.step, now=True)
        self.skip_to = error.step + faults.rewind_steps
        self.begun, self.counted_s = time.perf_counter(), reporter.seconds()
        _LOG.error("%s; rewind %d of at most %d", error, self.rewinds, faults.rewinds)

    def _leave_out(self) -> None:
        """After a rewind: the batches of the steps from the restored one to `skip_to` are taken and dropped."""
        if not self.skip_to:
            return
        if self.saved is None:
            for name in self.trainable.groups:
                self.batches[name].set_state(self.first_positions[name])
        for step in range(self.start, self.skip_to):
            next(self.batches[self.schedule(step)])
        left_out = f"{self.start + 1} to {self.skip_to}"
        _LOG.warning("going on from step %d, without the batches of steps %s", self.start, left_out)
        self.skip_to = 0

    def _start(self, abstract: State, initial: Any) -> State:
        """Parameters to begin with, where the run does not begin with the initial ones."""
        source = self.experiment.train.init_from
        if not source:
            return {}
        _LOG.info("starting from the parameters of %s", source)
        run = Run.open(source)
        theirs, wanted = run.checkpoint.spec, abstract["params"]
        added = tuple(f"{name}." for name in compat.added(theirs, self.experiment))
        new = {name: leaf for name, leaf in weights.flatten(initial).items() if f"{name}.".startswith(added)}
        layers, deeper = theirs.model.layers, self.experiment.model.layers
        if layers == deeper:
            return {"params": checkpoint.load_params(run, wanted, new=new)}
        _LOG.info("its %d layers become %d", layers, deeper)
        params = checkpoint.load_params(run, deepening.shallow(wanted, layers, deeper), new=new)
        return {"params": deepening.deepened(params, wanted)}

    def _mark(self, rewound: bool, seconds: float) -> None:
        """A line of the timeline: from here the steps begin."""
        self.timeline.spent("restore", seconds)
        if rewound:
            self.timeline.note(timelines.REWIND, self.start)
        else:
            self.timeline.start(self.start, steps=self.steps, processes=jax.process_count())

    def _accepted(self) -> None:
        """Only now does the work dir describe this run: nothing can refuse it any more."""
        text = json.dumps(specs.to_dict(self.experiment), indent=2)
        self.run.spec_file.write_text(text + "\n")
        self.run.clean()

    def _resume(self, found: checkpoint.Restored) -> None:
        if missing := set(self.trainable.groups) - set(found.iterators):
            raise UserError(
                f"the checkpoint of step {found.step} in {self.run.checkpoints} holds no data position "
                f"for the groups {sorted(missing)}; resume with the tasks that wrote it"
            )
        for name in self.trainable.groups:
            self.batches[name].set_state(found.iterators[name])
        self.start = self.saved = found.step
        _LOG.info("resuming from step %d", found.step)
        then, now = ((spec.optimizer, spec.train.steps) for spec in (found.experiment, self.experiment))
        optimizer.warn_of_jump(then, now, found.step)

    # --------------------------------------------------------------------------------------- steps

    def loop(
        self, state: State, programs: Mapping[str, compiled.Program], reporter: reporting.Reporter, stop: StopSignals
    ) -> Outcome:
        step, pending = self.start, None
        stop_now = processes.Vote(self.mesh)
        while True:
            self.saver.poll(reporter)
            stopping = stop_now(stop.requested or self.publisher.failed) and step < self.steps
            leaving = stopping or step >= self.steps
            due = [] if stopping else self._hooks_due(step)
            save_due = self.saver.due(step) and step > self.start
            if due or leaving or save_due:
                self.watchdog.pause(f"what is between steps {step} and {step + 1} (evaluation, samples, a save)")
                self._settle(pending, reporter)
                pending = None
                self._run_hooks(due, state, step, reporter)
                self._maybe_save(state, step, reporter, due=save_due, leaving=leaving, hooks_owed=stopping)
            if self.snapshots.due(step) and step > self.start and self.saved != step and not leaving:
                self._settle(pending, reporter)
                pending = None
                self._take_snapshot(state, step, reporter)
            if leaving:
                self.snapshots.clear()
                outcome = Outcome.PREEMPTED if stopping else Outcome.FINISHED
                self.timeline.end(outcome.value)
                _LOG.info("%s at step %d", "stopped by a signal" if stopping else "finished", step)
                return outcome
            self.profiler.step(step, functools.partial(jax.block_until_ready, state))
            group = self.schedule(step)
            self.watchdog.step(step + 1, group)
            begin = time.perf_counter()
            batch = self._next_batch(group)
            waited_s = time.perf_counter() - begin
            moment = self._moment(step)
            with jax.transfer_guard("disallow"):
                state, metrics = programs[group](state, batch, moment)
            step += 1
            if step == self.start + 1:
                jax.block_until_ready(metrics)
                _LOG.info("first step after %.1f s", time.perf_counter() - self.begun)
            previous, pending = pending, _Pending(step=step, group=group, metrics=metrics, waited_s=waited_s)
            self._settle(previous, reporter)

    def _settle(self, pending: _Pending | None, reporter: reporting.Reporter) -> None:
        """Waits for a step's metrics, stops at a non-finite loss term, and hands them on."""
        if pending is None:
            return
        found = {name: each(value) for name, value in pending.metrics.items()}
        sums = {n: (float(m.total), float(m.weight)) for n, m in jax.device_get(found).items()}
        if self.judge.skips(pending.step, pending.group, sums):
            sums = {}
        reporter.step(pending.step, pending.group, sums, waited_s=pending.waited_s)

    def _moment(self, step: int) -> compiled.Moment:
        seed, rate = self.experiment.train.seed, self.trainable.rate(step)
        return compiled.Moment.at(step, seed, rate, self.mesh)

    def _hooks_due(self, step: int) -> list[Hook]:
        if step == self.start > 0 and not self.hooks_owed:
            return []
        return [hook for hook in self.hooks if hook.due(step, self.steps)]

    def _run_hooks(self, due: Sequence[Hook], state: State, step: int, reporter: reporting.Reporter) -> None:
        begin = time.perf_counter()
        for hook in due:
            reporter.report(step, hook.name, hook.fn(state, step))
        reporter.pause(time.perf_counter() - begin, "evaluate")

    def _maybe_save(
        self, state: State, step: int, reporter: reporting.Reporter, *, due: bool, leaving: bool, hooks_owed: bool
    ) -> None:
        """Begins a save if it is time; only a failure of the last one, which it waits for, is an error."""
        due = self.saved != step and (leaving or due)
        if not (due or leaving):
            return
        begin = time.perf_counter()
        self.saver.settle(reporter)
        if due:
            nonfinite.check_state(state, step)
            try:
                self._save(state, step, reporter, hooks_owed)
                if leaving:
                    self.saver.finish()
            except checkpoint.SaveError as error:
                if leaving:
                    raise
                self.saver.failed(error, reporter)
        waited_s = time.perf_counter() - begin
        reporter.pause(waited_s, "save")
        _LOG.info("step %d | saving held training up for %.2f s", step, waited_s)

    def _take_snapshot(self, state: State, step: int, reporter: reporting.Reporter) -> None:
        begin = time.perf_counter()
        nonfinite.check_state(state, step)
        self.snapshots.take(step, state, self._positions(), self._clock(reporter))
        reporter.pause(time.perf_counter() - begin, "save")

    def _positions(self) -> dict[str, bytes]:
        return {name: self.batches[name].get_state() for name in self.trainable.groups}

    def _clock(self, reporter: reporting.Reporter, hooks_owed: bool = False) -> dict[str, Any]:
        own = {"hooks_owed": hooks_owed, "skipped_in_a_row": self.judge.in_a_row, "rewinds": self.rewinds}
        return reporter.clock() | own

    def _save(self, state: State, step: int, reporter: reporting.Reporter, hooks_owed: bool) -> None:
        if int(state["step"]) != step:
            raise ValueError(f"state['step'] is {int(state['step'])} after {step} updates")
        reporter.flush()
        clock = self._clock(reporter, hooks_owed)
        self.saver.start(step, state, self._positions(), clock, reporter.measured(step))
        self.saved = step

    def _next_batch(self, group: str) -> Batch:
        """The next host batch, on the devices; its names, shapes and dtypes are checked."""
        expected, arrays = self.trainable.groups[group].batch, next(self.batches[group])
        if set(arrays) != set(expected):
            raise ValueError(f"group {group}: batch has {sorted(arrays)}, needs {sorted(expected)}")
        sharding, placed = batch_sharding(self.mesh), {}
        for name, want in expected.items():
            local = np.asarray(arrays[name])
            shape = (len(self.share.rows(want.shape[0])), *want.shape[1:])
            if local.dtype != want.dtype or local.shape != shape:
                raise ValueError(f"group {group}: {name} is {local.dtype}{local.shape}, needs {want.dtype}{shape}")
            placed[name] = processes.global_array(local, sharding, self.share)
        return placed
