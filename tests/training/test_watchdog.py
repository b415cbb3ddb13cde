from __future__ import annotations

import statistics
import time
from pathlib import Path

import linear
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet.spec import FaultsSpec
from poet.training import watchdog
from poet.training.trainable import Hook, Report
from poet.training.watchdog import Pace, Watchdog

pytestmark = pytest.mark.usefixtures("no_tensorboard")
SECONDS = st.floats(0.01, 100)


def pace_after(seconds: list[float], group: str = "a") -> Pace:
    pace = Pace(3.0, 1.0, 1000.0)
    for each in seconds:
        pace.took(group, each)
    return pace


@given(st.lists(SECONDS, min_size=watchdog.LEAST + 1, max_size=watchdog.RECENT))
def test_a_step_may_take_a_multiple_of_the_median_of_the_longer_of_each_pair(seconds: list[float]) -> None:
    pairs = [max(a, b) for a, b in zip(seconds, seconds[1:])]
    assert pace_after(seconds).limit_s("a") == pytest.approx(max(3 * statistics.median(pairs), 1.0))


def test_until_there_are_enough_steps_the_limit_is_that_of_a_pause() -> None:
    assert pace_after([1.0] * watchdog.LEAST).limit_s("a") == 1000.0
    assert pace_after([1.0] * 20).limit_s("unknown") == 1000.0
    assert pace_after([1.0] * 20).limit_s("a") == 3.0 and pace_after([0.01] * 20).limit_s("a") == 1.0


@given(st.lists(st.booleans(), min_size=60, max_size=120), st.booleans())
def test_a_rare_slow_group_is_never_taken_for_hung(long: list[bool], late: bool) -> None:
    """Twenty times as slow; its time lies before the next step or after it, as the devices work."""
    pace, groups = Pace(3.0, 0.1, 1000.0), ["long" if each else "short" for each in long]
    of = lambda number: 20.0 if groups[number] == "long" else 1.0
    for number, group in enumerate(groups):
        took = of(max(number - 1, 0)) if late else of(number)
        assert took < pace.limit_s(group)
        pace.took(group, took)


class Clock:
    def __init__(self) -> None:
        self.now, self.said, self.noted = 0.0, [], []

    def watchdog(self, **fields: float) -> Watchdog:
        spec = FaultsSpec(hang_factor=3.0, hang_least_s=1.0, hang_pause_s=50.0).replace(**fields)
        note = lambda: self.noted.append(len(self.said))
        return Watchdog(spec, now=lambda: self.now, hung=note, end=self.said.append)

    def passes(self, dog: Watchdog, seconds: float) -> None:
        """With the looks of the thread in between."""
        end = self.now + seconds
        while self.now < end:
            last, self.now = self.now, min(self.now + watchdog.POLL_S, end)
            dog.look(last)


def train(clock: Clock, dog: Watchdog, steps: int) -> None:
    for number in range(1, steps + 1):
        dog.step(number, "video")
        clock.passes(dog, 2.0)


def test_a_hung_step_is_named_with_its_limit() -> None:
    clock = Clock()
    dog = clock.watchdog()
    train(clock, dog, 10)
    dog.step(11, "video")
    clock.passes(dog, 5.9)
    assert not clock.said
    clock.passes(dog, 0.5)
    assert clock.said[0].startswith("step 11 of group video hangs") and "may take 6.0 s" in clock.said[0]
    assert clock.noted[0] == 0, "it is noted before the process ends"


def test_a_pause_has_its_own_limit_and_does_not_count_as_a_step() -> None:
    clock = Clock()
    dog = clock.watchdog()
    train(clock, dog, 10)
    dog.pause("a save")
    clock.passes(dog, 49.0)
    assert not clock.said
    dog.step(11, "video")
    clock.passes(dog, 7.0)
    assert clock.said[0].startswith("step 11")
    clock.said.clear()
    dog.pause("a save")
    clock.passes(dog, 51.0)
    assert clock.said[0].startswith("a save hangs")


def test_a_process_that_was_stopped_as_a_whole_does_not_hang() -> None:
    """Ctrl-Z, a debugger, a machine that slept: the watchdog stood still as well."""
    clock = Clock()
    dog = clock.watchdog()
    train(clock, dog, 10)
    dog.step(11, "video")
    last, clock.now = clock.now, clock.now + 3600
    dog.look(last)
    clock.passes(dog, 5.0)
    assert not clock.said
    clock.passes(dog, 2.0)
    assert clock.said


def test_the_loop_tells_it_of_every_step_and_of_what_stands_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow hook is no hung step, a slow step is."""
    said: list[str] = []
    monkeypatch.setattr(watchdog, "_end", said.append)
    monkeypatch.setattr(watchdog, "POLL_S", 0.02)
    linear_experiment = linear.experiment
    faults = FaultsSpec(hang_factor=3.0, hang_least_s=0.5)
    monkeypatch.setattr(
        linear, "experiment", lambda steps, **options: linear_experiment(steps, **options).replace(faults=faults)
    )

    def slow(state: dict, step: int) -> Report:
        time.sleep(1.0 if step == 30 else 0.0)
        return Report()

    data = linear.batches()
    linear.run(tmp_path / "hook", 32, data=data, every=100, hooks=[Hook(name="slow", every=10, fn=slow)])
    assert not said
    slow_next = linear.Batches.__next__

    def late(self: linear.Batches) -> dict:
        time.sleep(1.0 if sum(each.position for each in data.values()) == 30 else 0.0)
        return slow_next(self)

    monkeypatch.setattr(linear.Batches, "__next__", late)
    data = linear.batches()
    linear.run(tmp_path / "step", 32, data=data, every=100)
    assert said and all("step 31 of group" in words for words in said)
