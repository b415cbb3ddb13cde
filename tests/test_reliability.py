"""The simulated goodput of a job that fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.planning import reliability
from poet.planning.reliability import Job
from poet.spec import UserError

JOB = Job(failure_s=10_800.0, step_s=2.0, save_every_s=600.0, save_blocked_s=1.0, save_s=30.0, restart_s=120.0)
jobs = st.builds(
    Job,
    failure_s=st.floats(5_000, 50_000),
    step_s=st.just(2.0),
    save_every_s=st.floats(60, 900),
    save_blocked_s=st.floats(0, 3),
    save_s=st.floats(0, 60),
    restart_s=st.floats(0, 300),
    local_every_s=st.sampled_from([0.0, 20.0]),
    local_blocked_s=st.floats(0, 0.2),
    process_failures=st.floats(0, 1),
)


@settings(max_examples=20, deadline=None)
@given(jobs)
def test_the_simulation_agrees_with_the_closed_form(job: Job) -> None:
    """Within its statistical error and the second order that the closed form leaves out."""
    found = reliability.simulate(job, days=200)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6) and min(found.values()) >= 0
    second_order = ((job.save_every_s + job.save_s + job.restart_s) / job.failure_s) ** 2
    assert found["steps"] == pytest.approx(reliability.expected(job), abs=0.006 + second_order)


@pytest.mark.parametrize("field, better", [("restart_s", 10.0), ("save_s", 1.0), ("failure_s", 1e5)])
def test_what_is_better_gains(field: str, better: float) -> None:
    found = [reliability.simulate(job, days=100)["steps"] for job in (JOB, dataclasses.replace(JOB, **{field: better}))]
    assert found[0] < found[1]


def test_local_snapshots_help_against_the_failures_that_they_survive() -> None:
    local = dataclasses.replace(JOB, local_every_s=20.0, process_failures=1.0)
    plain, survived = (reliability.simulate(job, days=100) for job in (JOB, local))
    assert survived["repeated"] < 0.1 * plain["repeated"]
    useless = dataclasses.replace(local, process_failures=0.0)
    assert reliability.simulate(useless, days=100)["repeated"] == pytest.approx(plain["repeated"], rel=0.05)


def test_no_failures_cost_only_the_saves() -> None:
    job = dataclasses.replace(JOB, failure_s=1e12)
    assert reliability.simulate(job, days=10)["steps"] == pytest.approx(600 / 601)


def test_the_best_interval_is_the_best() -> None:
    job = dataclasses.replace(JOB, save_blocked_s=5.0, save_s=0.0, restart_s=0.0)
    best = reliability.best_interval_s(job.failure_s, job.save_blocked_s)
    around = {f: reliability.expected(dataclasses.replace(job, save_every_s=f * best)) for f in (0.3, 1.0, 3.0)}
    assert max(around, key=around.get) == 1.0 and math.isclose(best, math.sqrt(2 * 5.0 * 10_800))


def test_impossible_jobs_are_refused() -> None:
    with pytest.raises(UserError):
        dataclasses.replace(JOB, process_failures=1.5)


def test_the_page_is_that_of_the_simulation_and_the_measurements() -> None:
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location("goodput_page", root / "tests/benchmarks/goodput.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.page(json.loads(script.RESULTS.read_text()))
    assert script.PAGE.read_text() == page, "python tests/benchmarks/goodput.py --page"
