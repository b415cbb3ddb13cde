from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet import cli
from poet.runs import exits
from poet.runs.supervise import Restarts, Rule, Supervisor

RULE = Rule(most=3, least_steps=200, first_wait_s=1.0, most_wait_s=3.0)
CRASHES = st.sampled_from([exits.FAILED, exits.HUNG, exits.RESTART, -signal.SIGKILL, 128 + signal.SIGABRT])


@given(st.lists(st.tuples(CRASHES, st.integers(0, 450)), max_size=30))
def test_it_stops_exactly_at_the_fourth_end_without_enough_progress(ends: list[tuple[int, int]]) -> None:
    """Against a count written anew for every end."""
    restarts, saved, marks = Restarts(RULE), 0, [(0, 0)]
    for number, (code, steps) in enumerate(ends):
        saved += steps
        if saved - marks[-1][1] >= RULE.least_steps:
            marks.append((number, saved))
        in_a_row = number - marks[-1][0] + 1
        waits = restarts.wait_s(code, saved)
        assert (waits is None) == (in_a_row > RULE.most)
        if waits is None:
            final, why = restarts.verdict(code, saved)
            assert final == exits.PERMANENT and f"step {marks[-1][1]} was saved" in why and exits.describe(code) in why
            return
        assert 0 <= waits <= RULE.most_wait_s


@pytest.mark.parametrize("code", [exits.FINISHED, exits.USER, exits.PERMANENT, exits.INTERRUPTED])
def test_what_no_start_cures_ends_with_its_own_code(code: int) -> None:
    restarts = Restarts(RULE)
    assert restarts.wait_s(code, 10**6) is None and restarts.verdict(code, 10**6)[0] == code


def test_waits_double_and_a_saved_run_goes_on_at_once() -> None:
    restarts = Restarts(RULE)
    assert [restarts.wait_s(exits.FAILED, 0) for _ in range(4)] == [1.0, 2.0, 3.0, None]
    assert Restarts(RULE).wait_s(exits.RESTART, 0) == 0


def command(tmp_path: Path, *codes: int) -> list[str]:
    """A program that ends with these codes, one at each start; negative ones are signals to itself."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys\n"
        f"codes, count = {codes!r}, pathlib.Path({str(tmp_path / 'count')!r})\n"
        "place = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(place + 1))\n"
        "code = codes[min(place, len(codes) - 1)]\n"
        "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)\n"
    )
    return [sys.executable, str(program)]


@pytest.mark.parametrize(
    ("codes", "starts", "end"),
    [
        ([exits.FAILED, -9, exits.RESTART, 0], 4, exits.FINISHED),
        ([exits.HUNG, exits.USER], 2, exits.USER),
        ([exits.FAILED], 4, exits.PERMANENT),
    ],
)
def test_real_processes(tmp_path: Path, codes: list[int], starts: int, end: int) -> None:
    slept: list[float] = []
    assert Supervisor(command(tmp_path, *codes), RULE, lambda: 0, sleep=slept.append).run() == end
    assert int((tmp_path / "count").read_text()) == starts and len(slept) == starts - 1


SLEEPER = """
import pathlib, signal, sys, time
def end(number, frame):
    pathlib.Path(sys.argv[1], "signal").write_text(str(number)); sys.exit(75)
signal.signal(signal.SIGTERM, end); signal.signal(signal.SIGINT, end)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)])
def test_a_signal_reaches_the_command_which_is_not_started_again(tmp_path: Path, number: int, code: int) -> None:
    """A supervisor that is killed too: what it ran gets SIGTERM from the kernel."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    program = (
        "import sys; from poet.runs.supervise import Rule, Supervisor\n"
        "argv = [sys.executable, sys.argv[1] + '/sleeper.py', sys.argv[1]]\n"
        "sys.exit(Supervisor(argv, Rule(), lambda: 0).run())"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as running:
        wait_for(tmp_path / "ready")
        running.send_signal(number)
        assert running.wait(timeout=30) == code
    wait_for(tmp_path / "signal")
    expected = signal.SIGTERM if number == signal.SIGKILL else number
    assert (tmp_path / "signal").read_text() == str(int(expected))


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not (file.exists() and (file.name != "signal" or file.read_text())):
        assert time.monotonic() < deadline, file
        time.sleep(0.02)


def test_the_command_line_supervises_a_command_of_poet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's flags are its own; a mistake in them is not tried again; progress is that of its work dir."""
    seen: list = []
    monkeypatch.setattr(
        "poet.runs.supervise.Supervisor.run", lambda self: seen.append((self._argv[2:], self._saved())) or 0
    )
    (tmp_path / "checkpoints/00000300/state").mkdir(parents=True)
    words = ["train", "--workdir", str(tmp_path), "--gin.TRAIN.steps=5", "--size=tiny"]
    assert cli.main(["supervise", "--most=2", "--", *words]) == 0
    assert cli.main(["supervise", "--", "describe", "--size=tiny"]) == 0
    assert seen == [(["poet.cli", *words], 300), (["poet.cli", "describe", "--size=tiny"], 0)]
    assert cli.main(["supervise"]) == exits.USER


def test_a_mistake_of_the_user_ends_at_once_from_the_command_line() -> None:
    argv = [sys.executable, "-m", "poet.cli", "supervise", "--", "describe", "--gin_file=absent.gin"]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ, timeout=120)
    assert done.returncode == exits.USER and "absent.gin" in done.stderr
    assert "not started again: exit code 2 (user error)" in done.stderr
