"""Results are those that were recorded, bit by bit: `record.py` says of what, and how to record them anew."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
import record
import world

SCRIPT = pathlib.Path(record.__file__)
FLOATS = ("store", "batches", "training", "samples", "exports", "scores")


def measured(tmp_path_factory, *flags: str) -> dict:
    """What the script measures in a process of its own, whose compiler and threads it chooses."""
    out = tmp_path_factory.mktemp("golden") / "found.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"--out={out}", *flags], capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def integers(tmp_path_factory) -> dict:
    """In this process: they depend on no compiler."""
    return {"anywhere": world.anywhere(tmp_path_factory.mktemp("golden"))}


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> dict:
    return measured(tmp_path_factory, "--few")


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> dict:
    return measured(tmp_path_factory)


@pytest.fixture(scope="module")
def before() -> dict:
    return record.recorded(record.key())


def compare(before: dict, found: dict, size: str, part: str) -> None:
    if size not in before:
        pytest.skip(f"nothing was recorded for {record.key()}: python {SCRIPT.name} records it")
    wrong = record.differences(before[size][part], found[size][part], f"{size}/{part}")
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("part", ["layouts", "batches"])
def test_integers_are_those_recorded_on_any_machine(before, integers, part):
    compare(before, integers, "anywhere", part)


@pytest.mark.slow
@pytest.mark.parametrize("part", FLOATS)
def test_three_tasks_give_what_was_recorded(before, few, part):
    compare(before, few, "few", part)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("part", FLOATS)
def test_every_task_gives_what_was_recorded(before, everything, part):
    compare(before, everything, "all", part)


@pytest.mark.slow
def test_exports_sample_the_tokens_that_the_process_does(few):
    for task, exported in few["few"]["exports"].items():
        sampled = few["few"]["samples"][task]
        seeds = {name: tokens for name, tokens in exported.items() if name.startswith("seed")}
        assert seeds == {name: sampled[name] for name in seeds} and len(set(seeds.values())) == 2
