"""Alerts: what is unusual is said, once; what is usual is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.runs import anomalies


def usual(rng: np.random.Generator, loss: float = 4.0) -> dict[str, float]:
    return {
        "loss": loss + 0.05 * rng.standard_normal(),
        "text-to-video/grad_norm": float(np.exp(0.2 * rng.standard_normal())),
        "steps_per_s": 2.0 + 0.1 * rng.standard_normal(),
        "data_wait": 0.02,
        "learning_rate": 1e-3,
    }


def raised(lines: list[dict[str, float]]) -> list[tuple[int, str]]:
    watch = anomalies.Watch()
    return [(a.step, a.metric) for step, line in enumerate(lines) for a in watch.take(step, line)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.02))
def test_a_usual_run_raises_none(seed: int, descent: float) -> None:
    """Noise of 5 standard deviations and less, on a loss that falls."""
    rng = np.random.default_rng(seed)
    assert raised([usual(rng, 4.0 - descent * step) for step in range(120)]) == []


@pytest.mark.parametrize(
    "metric, value", [("loss", 5.0), ("text-to-video/grad_norm", 40.0), ("steps_per_s", 0.5), ("data_wait", 0.6)]
)
def test_each_kind_is_raised_once_while_it_lasts(metric: str, value: float) -> None:
    rng = np.random.default_rng(0)
    lines = [usual(rng) for _ in range(60)]
    for step in (30, 31, 32, 50):
        lines[step][metric] = value
    assert raised(lines) == [(30, metric), (50, metric)]


def test_what_stays_becomes_usual() -> None:
    rng = np.random.default_rng(0)
    lines = [usual(rng) for _ in range(200)]
    for line in lines[40:]:
        line["steps_per_s"] = 0.5
    assert raised(lines) == [(40, "steps_per_s")]


def test_nothing_is_unusual_before_there_is_a_usual() -> None:
    assert raised([{"loss": 10.0 ** (step % 3), "grad_norm": 10.0 ** (step % 4)} for step in range(9)]) == []


def test_an_alert_says_what_it_is_about() -> None:
    watch, rng = anomalies.Watch(), np.random.default_rng(1)
    for step in range(20):
        watch.take(step, usual(rng))
    (found,) = watch.take(20, {"loss": 9.0})
    assert found.step == 20 and found.text.startswith("loss is 9, usually 3.998 and at most")
