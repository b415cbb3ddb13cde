"""`poet status`: a run is described as it stands, by its files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from poet import cli
from poet import spec as specs
from poet.runs import exits, lease, status, timeline
from poet.runs.run import Run
from poet.runs.timeline import Timeline
from poet.spec import Experiment, TrainSpec

HOLD = """
import sys
from pathlib import Path
from poet.runs import lease
with lease.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run that was killed 100 s after step 40 of 100, in its second start."""
    (tmp_path / "spec.json").write_text(json.dumps(specs.to_dict(Experiment(train=TrainSpec(steps=100)))))
    speed = {"steps_per_s": 2.0, "tokens_per_s": 512.0, "data_wait": 0.25, "eta_s": 30.0, "checkpoint_failures": 1.0}
    log = [
        {"step": 30, "kind": "train", "loss": 3.0, "a/loss": 2.0, **speed},
        {"step": 40, "kind": "train", "loss": 2.5, "a/loss": 1.5, **speed},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 4')
    clock = [0.0]
    for first, last in ((0, 30), (20, 40)):
        line = Timeline(tmp_path / timeline.FILE, now=lambda: clock[0], date=lambda: 5e8 + clock[0])
        clock[0] += 10.0
        line.start(first)
        clock[0] += float(last - first)
        line.alert(last, "loss", f"loss is odd at {last}")
        line.progress(last, now=True)
    return tmp_path


def answer(capsys: pytest.CaptureFixture, workdir: Path, *flags: str) -> Any:
    assert cli.main(["status", str(workdir), *flags]) == 0
    out = capsys.readouterr().out
    return json.loads(out) if "--json" in flags else out


def test_a_killed_run_in_numbers(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    found = answer(capsys, workdir, "--json")
    assert (found["step"], found["steps"], found["running"], found["left_s"]) == (40, 100, False, None)
    assert found["losses"] == {"loss": 2.5, "a/loss": 1.5} and found["checkpoint_failures"] == 1
    assert found["speed"] == {"steps_per_s": 2.0, "tokens_per_s": 512.0, "data_wait": 0.25}
    assert found["alerts"] == [{"step": n, "text": f"loss is odd at {n}"} for n in (30, 40)] and found["saved"] is None
    account = found["account"]
    assert account["starts"] == 2 and account["total_s"] == pytest.approx(70)
    assert account["seconds"]["repeated"] == pytest.approx(10) and account["goodput"] == pytest.approx(40 / 70)
    assert sum(account["shares"].values()) == pytest.approx(1)


def test_the_same_in_words(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    text = answer(capsys, workdir)
    for words in (
        "not running",
        "killed",
        "40 of 100 (40.0 %)",
        "goodput 57.1 %",
        "repeated 14.3 %",
        "loss is odd at 40",
    ):
        assert words in text


def test_a_run_that_is_held_is_running(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        found = answer(capsys, workdir, "--json")
        assert found["running"] is True and f"pid {holder.pid}" in found["holder"]
        assert 0 <= found["left_s"] <= 30
        with pytest.raises(specs.UserError, match="in use"), lease.hold(workdir):
            pass
        holder.stdin.close()
        holder.wait()
    assert lease.holder(workdir)[1] is False


def test_watching_ends_with_the_run(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    assert answer(capsys, workdir, "--watch=0.1").count("step ") >= 1


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["status", str(tmp_path)]) == exits.USER
    assert "not the work dir of a run" in capsys.readouterr().err


def test_a_new_run_has_no_numbers_yet(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{")
    found = status.of(Run(tmp_path))
    assert (found.step, found.steps, found.account, found.silent_s) == (None, None, None, None)
