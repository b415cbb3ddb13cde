"""Launched jobs that are hurt end as one that was left alone: on this machine, and on a real SLURM cluster."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster
import jax
import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

import small_run  # noqa: E402

from poet.checkpoints import checkpoint  # noqa: E402
from poet.models.transformer import build_model  # noqa: E402
from poet.runs.run import Run  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.timeout(3600), pytest.mark.slow, pytest.mark.long]
STEPS, EVERY = 160, 20
SETTINGS = {"TRAIN.steps": STEPS, "TRAIN.log_every": 20, "TRAIN.eval_every": 0, "CHECKPOINT.every": EVERY}


def write_job(folder: Path, workdir: Path, gin: Path) -> Path:
    python = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}"
    values = {
        "name": "tiny",
        "gin_files": str(gin),
        "workdir": str(workdir),
        "topology": "cpu-2",
        "processes": 2,
        "grace_s": 60,
        "queue": "long",
        "slurm": {"setup": [python]},
    }
    file = folder / f"{workdir.name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def start(job: Path, backend: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "poet.cli", "launch", str(job), f"--backend={backend}"]
    return subprocess.Popen(
        [*command, f"--folder={job.parent}/launches"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(holds, seconds: float, what: str):
    """The first true value of `holds()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not happen within {seconds:g} s\n{slurm('squeue', '--states=all')}")


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def queue(form: str) -> str:
    return slurm("squeue", "--noheader", "--states=all", f"--format={form}").strip()


def start_now() -> None:
    """Starts a queued job before its time: not in the second of its end, whose credential is revoked."""
    time.sleep(5)
    slurm("scontrol", "update", f"JobId={queue('%i')}", "StartTime=now")


def params(workdir: Path) -> dict[str, np.ndarray]:
    run = Run.open(workdir)
    loaded = checkpoint.load_params(run, build_model(Resolved(run.checkpoint.spec)).abstract())
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(loaded)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.gin, and the work dir `alone` of a job that nothing disturbed."""
    folder = tmp_path_factory.mktemp("jobs")
    job = start(write_job(folder, folder / "alone", small_run.write(folder, SETTINGS)), "local")
    try:
        said = job.communicate(timeout=900)[0]
    finally:
        job.terminate()
    assert job.returncode == 0, said
    return folder


def assert_ended_as(folder: Path, workdir: Path) -> None:
    expected = params(folder / "alone")
    assert steps(workdir)[-1] == STEPS
    for name, value in params(workdir).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def process_of(workdir: Path, index: int) -> int:
    """The id of one of the training processes of a work dir; 0 if there is none."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_text().split("\0")
            if {"train", f"--workdir={workdir}", f"--process={index}"} <= set(words) and "supervise" not in words:
                return int(place.name)
    return 0


def test_a_process_that_is_killed_is_started_again_with_the_others(alone: Path) -> None:
    hurt = alone / "killed"
    launch = start(write_job(alone, hurt, alone / "run.gin"), "local")
    try:
        until(lambda: steps(hurt), 600, "a first checkpoint")
        os.kill(until(lambda: process_of(hurt, 1), 10, "a second process"), signal.SIGKILL)
        said = launch.communicate(timeout=900)[0]
    finally:
        launch.terminate()
    assert launch.returncode == 0, said
    events = [json.loads(line) for line in (hurt / "timeline.jsonl").read_text().splitlines()]
    assert [event["step"] > 0 for event in events if event["event"] == "start"] == [False, True]
    assert_ended_as(alone, hurt)


@pytest.mark.skipif(bool(cluster.missing()), reason=f"no SLURM here: {cluster.missing()}")
def test_a_batch_job_survives_signals_and_requeues(alone: Path, tmp_path: Path, capfd) -> None:
    with cluster.running(tmp_path / "cluster"):
        hurt = alone / "requeued"
        launch = start(write_job(tmp_path, hurt, alone / "run.gin"), "slurm")
        try:
            until(lambda: steps(hurt), 600, "a first checkpoint")
            # What SLURM does a minute before the time of a job ends, and at a preemption.
            slurm("scancel", "--signal=TERM", f"--name={queue('%j')}")
            before = until(lambda: "PENDING" in queue("%T") and steps(hurt), 300, "the second place in the queue")
            start_now()
            until(lambda: steps(hurt) and steps(hurt)[-1] > before[-1], 600, "a checkpoint of the second start")
            # What an administrator does, or a node that fails.
            slurm("scontrol", "requeue", queue("%i"))
            until(lambda: "PENDING" in queue("%T"), 300, "the third place in the queue")
            start_now()
            said = launch.communicate(timeout=900)[0]
        finally:
            launch.terminate()
        log = next((tmp_path / "launches").glob("tiny-*/log.txt")).read_text()
        assert launch.returncode == 0, said + log
        assert queue("%T") == "COMPLETED"
    with capfd.disabled():
        print(
            "\n"
            + "\n".join(line for line in log.splitlines() if re.search("resuming|saved after|stopped|finished", line))
        )
    assert log.count("resuming from step") >= 2 and "saved after a signal; queued again" in log
    assert_ended_as(alone, hurt)
