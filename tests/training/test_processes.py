"""Several processes are one run: the same losses, one log, one checkpoint, one end."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path

import linear
import numpy as np
import process_runs
import pytest

from poet import cli
from poet.distributed import processes
from poet.runs import exits, goodput, timeline
from poet.runs.lines import read
from poet.runs.run import Run
from poet.spec import Failure, UserError
from poet.training import loop

pytestmark = pytest.mark.usefixtures("no_tensorboard")


def train(workdir: Path, count: int, steps: int, signal_at: int = 0, delay_s: float = 0.0):
    """Starts the linear model's training; `linear.main` says what the arguments are."""

    def command(address: str, index: int) -> list[str]:
        options = [str(steps), str(signal_at), str(delay_s), address, str(count), str(index)]
        return [linear.__file__, str(workdir), *options]

    return process_runs.start(count, command)


def losses(workdir: Path) -> dict[int, float]:
    lines = [line for line in read(workdir / "metrics.jsonl") if line["kind"] == "train"]
    assert len({line["step"] for line in lines}) == len(lines), "one process writes"
    return {line["step"]: line["loss"] for line in lines}


def leaves(workdir: Path) -> dict[str, np.ndarray]:
    return linear.leaves(linear.restored(workdir).state)


def equal(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "clu.metric_writers", None)
        linear.run(workdir, 12, every=2)
    return workdir


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, of which the second one gets SIGTERM at step 5; started again, they go on to 8."""
    workdir = tmp_path_factory.mktemp("pair")
    codes, output = process_runs.finish(train(workdir, 2, 12, signal_at=5))
    assert codes == [exits.RESTART] * 2, output
    stopped = Run(workdir).steps()[-1]
    assert 5 <= stopped <= 7, "within two steps of the signal"
    assert max(losses(workdir)) == stopped
    codes, output = process_runs.finish(train(workdir, 2, 8))
    assert codes == [0, 0], output
    assert "resuming from step" in output[0] and Run(workdir).steps()[-1] == 8
    return workdir


def test_two_processes_have_the_losses_of_one(alone: Path, pair: Path) -> None:
    expected, found = losses(alone), losses(pair)
    assert sorted(found) == list(range(1, 9))
    assert [found[k] for k in found] == pytest.approx([expected[k] for k in found], rel=1e-6)


def test_stopped_and_resumed_runs_are_one_run_bit_for_bit(pair: Path, tmp_path: Path) -> None:
    codes, output = process_runs.finish(train(tmp_path, 2, 8))
    assert codes == [0, 0], output
    assert losses(tmp_path) == losses(pair)
    assert equal(leaves(tmp_path), leaves(pair))


def test_a_checkpoint_of_two_processes_goes_on_in_one(alone: Path, pair: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(pair, workdir)
    data = linear.batches()
    assert linear.run(workdir, 12, data=data, every=2) is loop.Outcome.FINISHED
    seen = linear.restored(alone).iterators
    assert {name: b.get_state() for name, b in data.items()} == seen
    expected, found = losses(alone), losses(workdir)
    assert [found[k] for k in expected] == pytest.approx(list(expected.values()), rel=1e-6)


@pytest.mark.slow
def test_a_damaged_checkpoint_of_two_falls_back_in_four(alone: Path, pair: Path, tmp_path: Path) -> None:
    """All four go back to the same step, which only the first of them looked for."""
    workdir = tmp_path / "run"
    shutil.copytree(pair, workdir)
    newest, before = Run(workdir).steps()[::-1][:2]
    victim = next((workdir / f"checkpoints/{newest:08d}/state/params").rglob("manifest.ocdbt"))
    victim.write_bytes(victim.read_bytes()[:-1])
    codes, output = process_runs.finish(train(workdir, 4, 12))
    assert codes == [0] * 4, output
    assert f"resuming from step {before}" in output[0]
    assert all("resuming from step" in text for text in output)
    expected, found = losses(alone), losses(workdir)
    assert [found[k] for k in expected] == pytest.approx(list(expected.values()), rel=1e-6)


@pytest.mark.slow
def test_four_processes_go_on_as_two_and_then_as_one(alone: Path, tmp_path: Path) -> None:
    """Each count saves what the next one restores; data and losses are those of one process."""
    for count, steps in ((4, 4), (2, 8)):
        codes, output = process_runs.finish(train(tmp_path, count, steps))
        assert codes == [0] * count, output
        assert Run(tmp_path).steps()[-1] == steps
    data = linear.batches()
    assert linear.run(tmp_path, 12, data=data, every=2) is loop.Outcome.FINISHED
    seen = linear.restored(alone).iterators
    assert {name: b.get_state() for name, b in data.items()} == seen
    expected, found = losses(alone), losses(tmp_path)
    assert [found[k] for k in expected] == pytest.approx(list(expected.values()), rel=1e-6)
    account = goodput.account(timeline.read(tmp_path / timeline.FILE))
    assert account.starts == 3 and account.seconds["repeated"] == 0, "one of them writes the timeline"


# ----------------------------------------------------------------------------------- at the start


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--processes=2", "--process=0"], ["--coordinator missing"]),
        (["--coordinator=127.0.0.1:1234"], ["--processes and --process missing"]),
        (["--coordinator=127.0.0.1", "--processes=2", "--process=0"], ["HOST:PORT"]),
        (["--coordinator=h:1234", "--processes=2", "--process=2"], ["process 2 of 2", "0..1"]),
        (["--coordinator=auto", "--processes=2", "--process=1"], ["drop"]),
    ],
)
def test_impossible_processes_are_refused(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    quickstart = "--gin_file=gin/experiments/quickstart.gin"
    assert cli.main(["train", quickstart, f"--workdir={tmp_path / 'w'}", *flags]) == cli.EXIT_USER
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (tmp_path / "w").exists()


def test_flags_may_stand_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("JAX_PROCESS_ID", "7")
    quickstart = "--gin_file=gin/experiments/quickstart.gin"
    assert cli.main(["train", quickstart, f"--workdir={tmp_path / 'w'}"]) == cli.EXIT_USER
    assert "process 7 of 3" in capsys.readouterr().err


START = """
import sys
from poet import cli
from poet.distributed import processes
from poet.spec import Failure, UserError
try:
    processes.start(sys.argv[1], 2, int(sys.argv[2]), wait_s=float(sys.argv[3]))
except UserError as error:
    print("refused:", error, flush=True)
    processes.leave(cli.EXIT_USER)
"""


def test_a_coordinator_that_does_not_answer_is_named_with_the_time_waited() -> None:
    begin = time.monotonic()
    codes, (text,) = process_runs.run(1, lambda address, _: ["-c", START, address, "1", "2"])
    assert codes == [cli.EXIT_USER], text
    assert "refused: process 1 of 2 found no run at --coordinator=127.0.0.1:" in text
    assert "within 2 s" in text and time.monotonic() - begin < 60


def test_all_end_with_the_exit_code_of_who_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
    gathered = lambda code: np.array([code, exits.USER, exits.FINISHED])
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gathered)
    with pytest.raises(Failure, match="process 1 failed; see its own messages") as told:
        processes.together(lambda: "fine here")
    assert exits.of(told.value) == exits.USER
    with pytest.raises(KeyError):
        processes.together(lambda: {}["own"])


def test_processes_with_different_numbers_of_devices_are_refused() -> None:
    codes, output = process_runs.run(2, lambda address, index: ["-c", START, address, str(index), "60"], devices=(2, 1))
    assert codes == [cli.EXIT_USER] * 2, output
    assert all("different numbers of devices (2, 1)" in text for text in output)


# ------------------------------------------------------------------------------ shares of the batch


class Device:
    def __init__(self, process_index: int):
        self.process_index = process_index


class FakeMesh:
    """Devices by process, in the shape (data, fsdp, sequence, tensor)."""

    def __init__(self, owners: list[list[int]]):
        self.devices = np.array([[[[Device(p)] for p in row] for row in owners]])


@pytest.mark.parametrize(
    "owners, shares",
    [
        ([[0], [0], [1], [1]], {0: [0, 1], 1: [2, 3]}),
        ([[0], [1], [0], [1]], {0: [0, 2], 1: [1, 3]}),  # as neighbours on a torus may lie
        ([[0, 1], [0, 1]], {0: [0, 1], 1: [0, 1]}),  # sequence spans the processes: both feed all
        ([[0, 1], [2, 3]], {0: [0], 1: [0], 2: [1], 3: [1]}),
    ],
)
def test_a_process_feeds_the_rows_that_its_devices_hold(
    owners: list[list[int]], shares: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for process, parts in shares.items():
        monkeypatch.setattr(processes.jax, "process_index", lambda p=process: p)
        found = processes.batch_share(FakeMesh(owners))
        assert (list(found.parts), found.of) == (parts, len(owners))


def test_rows_of_a_share_are_refused_where_they_do_not_divide() -> None:
    assert processes.Share((0, 2), 3).rows(6).tolist() == [0, 1, 4, 5]
    with pytest.raises(UserError, match="DATA.batch is 7.*multiple of 3"):
        processes.Share((0,), 3).rows(7, "DATA.batch")


# ------------------------------------------------------------------------------------- sudden ends


@pytest.mark.fault
def test_the_other_process_ends_soon_after_one_was_killed(tmp_path: Path) -> None:
    pair = train(tmp_path, 2, 10_000, delay_s=0.05)
    try:
        while not (tmp_path / "metrics.jsonl").exists() or not losses(tmp_path):
            assert all(process.poll() is None for process in pair)
            time.sleep(0.1)
        pair[1].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        codes, output = process_runs.finish(pair)
    finally:
        process_runs.kill(pair)
    assert time.monotonic() - begin < processes.HEARTBEAT_S + 5
    assert codes[0] not in (0, exits.RESTART), output
    codes, output = process_runs.finish(train(tmp_path, 2, max(losses(tmp_path)) + 4))
    assert codes == [0, 0], output
