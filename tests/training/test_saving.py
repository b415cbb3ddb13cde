"""When checkpoints are written, and which of them stay."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import linear
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet import spec as specs
from poet.checkpoints import policy as policies
from poet.runs.run import Run
from poet.spec import CheckpointSpec, Experiment, TrainSpec, UserError
from poet.training.saving import Saver
from poet.training.trainable import Hook, Report

pytestmark = pytest.mark.usefixtures("no_tensorboard")

values = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0]), st.floats(-5, 5), st.just(math.nan))
saved = st.dictionaries(st.integers(1, 60), values, min_size=1, max_size=25).map(
    lambda found: {step: {} if value is None else {"m": value} for step, value in sorted(found.items())}
)
rules = st.builds(
    CheckpointSpec,
    every=st.just(1),
    keep=st.integers(1, 4),
    keep_every=st.integers(0, 7),
    best=st.sampled_from(["", "m"]),
    best_is=st.sampled_from(["lowest", "highest"]),
)


@given(saved, rules)
def test_what_stays_is_what_the_rule_says(measured: dict, rule: CheckpointSpec) -> None:
    """Told checkpoint by checkpoint, by another way than the code's."""
    stay = policies.kept(measured, rule)
    worth = {s: m["m"] * (1 if rule.best_is == "lowest" else -1) for s, m in measured.items() if "m" in m}
    worth = {step: value for step, value in worth.items() if value == value} if rule.best else {}
    for step in measured:
        newer = sum(other > step for other in measured)
        beaten = any(v < worth[step] or (v == worth[step] and s > step) for s, v in worth.items() if step in worth)
        wanted = newer < rule.keep or (rule.keep_every and step % rule.keep_every == 0)
        assert (step in stay) == bool(wanted or (step in worth and not beaten)), step


@given(saved, rules)
def test_nothing_is_dropped_that_would_be_kept_later(measured: dict, rule: CheckpointSpec) -> None:
    left: dict[int, dict[str, float]] = {}
    for step, found in measured.items():
        left[step] = found
        left = {s: left[s] for s in policies.kept(left, rule)}
    assert set(left) == policies.kept(measured, rule)


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_minutes_count_from_the_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    experiment = Experiment(checkpoint=CheckpointSpec(every=100, every_minutes=2.0))
    saver = Saver(Run(tmp_path), experiment, linear.build_mesh(), now=clock)
    begun = []
    monkeypatch.setattr("poet.checkpoints.checkpoint.start_save", lambda run, **options: begun.append(options))
    due = []
    for step in range(1, 301):
        clock.now += 1.0
        if saver.due(step):
            due.append(step)
            saver.start(step, {}, {}, {}, {"m": 1.0})
    assert due == [100, 200, 300], "a save by steps puts off the one by time"
    assert begun[0]["metrics"] == {"m": 1.0} and begun[0]["policy"] == experiment.checkpoint
    due.clear()
    for step in range(301, 400):
        clock.now += 50.0
        if saver.due(step):
            due.append(step)
            saver.start(step, {}, {}, {})
    assert due[:3] == [303, 306, 309]


def measure(steps: dict[int, float]) -> Hook:
    every = min(steps)
    return Hook(name="quality", every=every, fn=lambda state, step: Report(scalars={"loss": steps[step]}))


def test_a_run_keeps_its_best_and_its_milestones(tmp_path: Path) -> None:
    losses = {step: abs(step - 8) + 1.0 for step in range(2, 21, 2)}
    rule = CheckpointSpec(every=2, keep=1, keep_every=6, best="quality/loss")
    linear.run(tmp_path, 20, checkpoint=rule, hooks=[measure(losses)])
    assert Run(tmp_path).steps() == [6, 8, 12, 18, 20]
    found = Run(tmp_path).at(8).metrics
    assert found["quality/loss"] == 1.0 and "loss" in found and "steps_per_s" not in found


def test_a_metric_that_nobody_measures_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rule = CheckpointSpec(every=2, keep=2, best="evaluation/loss")
    with caplog.at_level(logging.WARNING):
        linear.run(tmp_path, 6, checkpoint=rule, hooks=[measure({2: 1.0, 4: 1.0, 6: 1.0})])
    (said,) = [record.message for record in caplog.records if "CHECKPOINT.best" in record.message]
    assert "evaluation/loss" in said and "quality/loss" in said
    assert Run(tmp_path).steps() == [4, 6]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"every": 0}, "CHECKPOINT.every_minutes"),
        ({"every": 200, "keep_every": 300}, "multiple of CHECKPOINT.every = 200"),
        ({"every": 0, "every_minutes": 5.0, "best": "x"}, "needs CHECKPOINT.every"),
    ],
)
def test_policies_that_cannot_hold_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CheckpointSpec(**settings)


@pytest.mark.parametrize("evaluated, fine", [(0, False), (250, False), (100, True), (400, True)])
def test_the_best_must_be_measured_somewhere(evaluated: int, fine: bool) -> None:
    def make() -> Experiment:
        train = TrainSpec(steps=900, eval_every=evaluated)
        return specs.Experiment(train=train, checkpoint=CheckpointSpec(every=200, best="validation/loss"))

    if fine:
        make()
    else:
        with pytest.raises(UserError, match=f"TRAIN.eval_every = {evaluated}"):
            make()
