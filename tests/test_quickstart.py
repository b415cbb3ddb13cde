"""launch/quickstart.sh: one line a stage, records, resuming, failures; and that it fits what ships."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

from poet.spec import VideoTokenizerSpec, config

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "launch/quickstart.sh"
NAMES = ["data", "clips", "tokenizer", "tokenize", "train", "eval", "export"]
# Stands for `poet` and `python`: says much, notes what it was called with, and fails where it is told to.
COMMAND = """#!/usr/bin/env bash
if [ "$1" = -c ]; then echo data/pretrained/some_tokenizer; exit; fi
echo "$*" >> "$CALLS"; for i in 1 2 3; do echo "chatter $i of $1"; done; echo "warning" >&2
if [ "$1" = "${SLEEPS:-}" ]; then trap 'echo saved >> "$CALLS"; exit 75' TERM; sleep 20 & wait; fi
if [ "$1" = "${FAILS:-}" ]; then echo "no such clips"; exit 3; fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script beside a set-up that does nothing, and commands that do no work."""
    (tmp_path / "launch").mkdir()
    shutil.copy(SCRIPT, tmp_path / "launch")
    (tmp_path / "launch/setup.sh").write_text(
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."; say() { echo "== $*"; }; PATH="$PWD/bin:$PATH"\n'
    )
    (tmp_path / "bin").mkdir()
    for name in ("poet", "python"):
        command = tmp_path / "bin" / name
        command.write_text(COMMAND)
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def run(checkout: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"CALLS": str(checkout / "calls")} | variables
    command = ["bash", "launch/quickstart.sh", "work"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def test_a_quiet_terminal_has_one_line_a_stage_and_the_chatter_is_in_a_file(checkout: Path) -> None:
    done = run(checkout)
    assert done.returncode == 0 and not done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [re.match(r"\[(\d)/7\] (\w+): .* left \.\.\. \d+ s$", line).groups() for line in lines] == [
        (str(i), name) for i, name in enumerate(NAMES, start=1)
    ]
    assert "of tokenizer-train" not in done.stdout and "warning" not in done.stdout
    assert "chatter 3 of tokenizer-train" in (checkout / "work/logs/tokenizer.log").read_text()
    records = [json.loads((checkout / f"work/stages/{name}.json").read_text()) for name in NAMES]
    assert all(r["cpu_seconds"] >= 0 and r["status"] == "done" for r in records)


def test_a_failure_shows_the_end_of_its_log_and_the_next_run_goes_on_there(checkout: Path) -> None:
    failed = run(checkout, FAILS="tokenize")
    assert failed.returncode == 1 and "tokenize FAILED" in failed.stdout and "no such clips" in failed.stdout
    before = (checkout / "calls").read_text().splitlines()
    done = run(checkout)
    assert done.returncode == 0 and done.stdout.count("finished earlier") == 3
    again = (checkout / "calls").read_text().splitlines()[len(before) :]
    assert [line.split()[0] for line in again] == ["report", "tokenize", "train", "report", "eval", "export", "report"]


def test_a_signal_lets_the_training_save_first(checkout: Path) -> None:
    environment = os.environ | {"CALLS": str(checkout / "calls"), "SLEEPS": "train"}
    command, log = ["bash", "launch/quickstart.sh", "work"], checkout / "work/logs/train.log"
    started = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True)
    while not log.exists() or "chatter 3" not in log.read_text():
        time.sleep(0.1)
    time.sleep(0.5)
    started.terminate()
    said, _ = started.communicate(timeout=20)
    assert started.returncode == 130 and "stopped; run it again to go on" in said
    assert "saved" in (checkout / "calls").read_text() and not (checkout / "work/stages/train.json").exists()


def test_it_fits_the_weights_that_ship() -> None:
    """Its files describe the network and the ids of the tokenizer that the shipped model names; a training that reads
    codes need not know the decoder."""
    folder = re.search(r"^SHIPPED=(\S+)", SCRIPT.read_text(), re.M)[1]
    tokenizer = json.loads((ROOT / folder / "spec.json").read_text())["video_tokenizer"]["path"]
    network = f"gin/models/{Path(tokenizer).name}.gin"
    trained = json.loads((ROOT / tokenizer / "spec.json").read_text())
    for name, unknown in (("quickstart_train", VideoTokenizerSpec.DECODER), ("quickstart_tokenizer", ())):
        experiment = config.load([f"gin/experiments/{name}.gin", network])
        ours = json.loads(json.dumps(vars(experiment.video_tokenizer)))
        keys = ours.keys() & trained.keys() - {"path", "codes_of", *unknown}
        assert {key: ours[key] for key in keys} == {key: trained[key] for key in keys}
        assert experiment.vocabulary.visual_bits == trained["bits"]
