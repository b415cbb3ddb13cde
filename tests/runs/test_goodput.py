"""The timeline of a run and its account: every second has one cause, whatever was killed and done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.runs import goodput, timeline
from poet.runs.timeline import Timeline


class Clocks:
    """A date and a clock that tick together; each process starts a clock of its own."""

    def __init__(self) -> None:
        self.date, self.offset = 1000.0, 0.0

    def now(self) -> float:
        return self.date - self.offset

    def restart(self, down: float) -> None:
        self.date += down
        self.offset = self.date * 0.75


# A life of a process: seconds of down time before it, where it goes on, start-up causes, and its steps.
second = st.integers(0, 5)
step = st.tuples(st.sampled_from(["", "data", "save", "evaluate"]), second, st.integers(1, 5))
life = st.tuples(second, st.floats(0, 1), st.tuples(second, second, second), st.lists(step, max_size=6), st.booleans())


def seconds_one_by_one(lives: list) -> dict[str, float]:
    """A label for each second, changed when its step is lost."""
    labels: list[tuple[str, int]] = []
    done = 0
    for number, (down, back, (startup, compile_s, restore), steps, _) in enumerate(lives):
        labels += [("down", 0)] * (down if number else 0)
        done = int(back * done)
        labels += [("startup", 0)] * startup + [("compile", 0)] * compile_s + [("restore", 0)] * restore
        labels = [("repeated" if cause == "steps" and of > done else cause, of) for cause, of in labels]
        for cause, lost, worked in steps:
            done += 1
            labels += [(cause, 0)] * (lost if cause else 0) + [("steps", done)] * worked
    found = dict.fromkeys(goodput.CAUSES, 0.0)
    for cause, _ in labels:
        found[cause] += 1
    return found


@settings(deadline=None)
@given(st.lists(life, min_size=1, max_size=5))
def test_every_second_has_its_cause(lives: list) -> None:
    entries: list[dict] = []
    clocks, done = Clocks(), 0
    for number, (down, back, (startup, compile_s, restore), steps, orderly) in enumerate(lives):
        clocks.restart(down if number else 0)
        line = Timeline(Path("unused"), now=clocks.now, date=lambda: clocks.date)
        line._append = lambda text: entries.append(json.loads(text))
        done = int(back * done)
        clocks.date += startup + compile_s + restore
        line.spent("compile", compile_s)
        line.spent("restore", restore)
        line.start(done, steps=99)
        for cause, lost, worked in steps:
            done += 1
            clocks.date += worked + (lost if cause else 0)
            if cause:
                line.spent(cause, lost)
            line.progress(done, now=True)
        if orderly:
            line.end("finished")
    found = goodput.account(entries)
    assert found.seconds == pytest.approx(seconds_one_by_one(lives))
    assert found.total_s == pytest.approx(clocks.date - 1000) and found.starts == len(lives)
    assert found.step == done


def write(path: Path, clocks: Clocks, *, until: int, start: int = 0) -> Timeline:
    line = Timeline(path, now=clocks.now, date=lambda: clocks.date)
    line.start(start, steps=100)
    for done in range(start + 1, until + 1):
        clocks.date += 10
        line.progress(done)
    return line


def test_lines_are_few_and_steps_lost_are_counted_in_part(tmp_path: Path) -> None:
    """Six steps of 10 s are two lines; a restart from step 4 repeats a third of the time."""
    path, clocks = tmp_path / timeline.FILE, Clocks()
    write(path, clocks, until=6)
    assert len(path.read_text().splitlines()) == 1 + 2
    clocks.restart(7)
    write(path, clocks, until=10, start=4).end("finished")
    found = goodput.account(timeline.read(path))
    assert found.seconds["repeated"] == pytest.approx(20) and found.seconds["steps"] == pytest.approx(100)
    assert found.seconds["down"] == pytest.approx(7)
    assert found.goodput == pytest.approx(100 / 127) and found.last["outcome"] == "finished"


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    path, clocks = tmp_path / timeline.FILE, Clocks()
    write(path, clocks, until=9)
    path.write_bytes(path.read_bytes()[:-15])
    clocks.restart(5)
    write(path, clocks, until=9, start=6).end("finished")
    found = goodput.account(timeline.read(path))
    assert found.starts == 2 and found.step == 9
    assert found.seconds["steps"] == pytest.approx(90)


def test_a_hang_and_a_rewind_are_told_apart_from_steps(tmp_path: Path) -> None:
    path, clocks = tmp_path / timeline.FILE, Clocks()
    line = write(path, clocks, until=3)
    clocks.date += 4
    line.note(timeline.REWIND, 1)
    clocks.date += 500
    line.note(timeline.HUNG, 1)
    found = goodput.account(timeline.read(path))
    assert (found.seconds["repeated"], found.seconds["restore"]) == (pytest.approx(20), pytest.approx(4))
    assert (found.seconds["hang"], found.seconds["steps"]) == (pytest.approx(500), pytest.approx(10))


def test_an_error_leaves_a_last_line(tmp_path: Path) -> None:
    path, clocks = tmp_path / timeline.FILE, Clocks()
    with pytest.raises(RuntimeError), Timeline(path):
        raise RuntimeError
    assert not path.exists(), "nothing is written before the run is accepted"
    with pytest.raises(ZeroDivisionError), write(path, clocks, until=2) as line:
        line.progress(2)
        raise ZeroDivisionError
    assert [e["outcome"] for e in timeline.read(path) if e["event"] == timeline.END] == ["ZeroDivisionError"]


def test_a_timeline_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "absent" / timeline.FILE, Clocks(), until=3)
    assert "could not be written" in caplog.text
    assert goodput.account(timeline.read(tmp_path / "absent")).goodput is None
