"""Local snapshots: a restart loses a few steps at most, and never takes a state that is not this run's."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import linear
import numpy as np
import process_runs
import pytest

from poet.checkpoints import snapshots
from poet.runs.lines import read
from poet.runs.run import Run
from poet.spec import CheckpointSpec, UserError
from poet.training.trainable import Hook, Report

pytestmark = pytest.mark.usefixtures("no_tensorboard")
STEPS = 12


class Killed(Exception):
    pass


def dies_at(step: int) -> Hook:
    def fn(state: Any, now: int) -> Report:
        if now == step:
            raise Killed
        return Report()

    return Hook(name="death", every=1, fn=fn)


def policy(tmp_path: Path, **changed: Any) -> CheckpointSpec:
    return CheckpointSpec(**{"every": 100, "local": str(tmp_path / "memory"), "local_every": 3} | changed)


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "memory").rglob("*") if path.is_file())


def interrupted(tmp_path: Path, at: int = 8, **options: Any) -> Path:
    """A work dir whose run died at a step, before any checkpoint."""
    rule = policy(tmp_path, **options)
    with pytest.raises(Killed):
        linear.run(tmp_path / "run", STEPS, checkpoint=rule, hooks=[dies_at(at)])
    for _ in range(200):  # A thread writes them; a killed process may leave the one before.
        if len(kept(tmp_path)) == 2 and not any(name.endswith(".tmp") for name in kept(tmp_path)):
            break
        time.sleep(0.05)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    workdir = tmp_path_factory.mktemp("whole")
    linear.run(workdir, STEPS)
    return linear.leaves(linear.restored(workdir).state)


def assert_same(workdir: Path, expected: dict[str, np.ndarray]) -> None:
    found = linear.leaves(linear.restored(workdir).state)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def resumed(caplog: pytest.LogCaptureFixture, workdir: Path, **options: Any) -> int:
    """Runs to the end and returns the step that it went on from."""
    caplog.clear()
    with caplog.at_level("INFO"):
        linear.run(workdir, STEPS, **options)
    said = [r.message for r in caplog.records if "resuming from step" in r.message]
    return int(said[0].split()[-1]) if said else 0


def test_a_killed_run_goes_on_from_its_snapshot_bit_for_bit(
    tmp_path: Path, whole: dict, caplog: pytest.LogCaptureFixture
) -> None:
    workdir = interrupted(tmp_path)
    assert kept(tmp_path) == ["00000003.safetensors", "00000006.safetensors"] and Run(workdir).steps() == []
    assert resumed(caplog, workdir, checkpoint=policy(tmp_path)) == 6
    assert_same(workdir, whole)
    lines = [line["step"] for line in read(workdir / "metrics.jsonl") if line["kind"] == "train"]
    assert lines == list(range(1, STEPS + 1))
    assert kept(tmp_path) == [], "nothing stays in memory when the run is over"


@pytest.mark.slow
def test_a_damaged_snapshot_leaves_the_one_before(
    tmp_path: Path, whole: dict, caplog: pytest.LogCaptureFixture
) -> None:
    workdir = interrupted(tmp_path)
    (newest,) = (tmp_path / "memory").rglob("00000006.safetensors")
    data = bytearray(newest.read_bytes())
    data[-7] ^= 1
    newest.write_bytes(data)
    assert resumed(caplog, workdir, checkpoint=policy(tmp_path)) == 3
    assert "is damaged" in caplog.text
    assert_same(workdir, whole)


@pytest.mark.parametrize(
    "case",
    ["mesh", "deleted checkpoints", *(pytest.param(c, marks=pytest.mark.slow) for c in ("settings", "copied", "off"))],
)
def test_a_snapshot_of_something_else_is_not_taken(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint, of step 4, is; or step 0 where it was deleted."""
    workdir = interrupted(tmp_path, every=4)
    assert Run(workdir).steps() == [4]
    options: dict[str, Any] = {"checkpoint": policy(tmp_path, every=4)}
    if case == "settings":
        monkeypatch.setattr(snapshots.compat, "every_difference", changed_meaning)
    if case == "mesh":
        options["devices"] = 4
    if case == "deleted checkpoints":
        shutil.rmtree(workdir / "checkpoints")
    if case == "copied":
        workdir = shutil.copytree(workdir, tmp_path / "copy")
    if case == "off":
        options["checkpoint"] = CheckpointSpec(every=4)
    assert resumed(caplog, workdir, **options) == (0 if case == "deleted checkpoints" else 4)


def changed_meaning(*_: Any) -> list[Any]:
    from poet.spec import compat

    return [compat.Difference(name="CLIP.rate_hz", theirs=8, ours=9, changes="meaning")]


def test_going_back_by_hand_is_respected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A user who deletes the newest checkpoint wants the one before, not a snapshot that continues the deleted one."""
    workdir = interrupted(tmp_path, at=11, every=4)
    assert Run(workdir).steps() == [4, 8]
    shutil.rmtree(Run(workdir).at(8).path)
    assert resumed(caplog, workdir, checkpoint=policy(tmp_path, every=4)) == 4


def test_memory_that_is_full_costs_the_snapshot_alone(
    tmp_path: Path, whole: dict, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.numpy

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    linear.run(tmp_path / "run", STEPS, checkpoint=policy(tmp_path))
    assert "no snapshot of step 3" in caplog.text
    assert_same(tmp_path / "run", whole)


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("")
    with pytest.raises(UserError, match="CHECKPOINT.local"):
        linear.run(tmp_path / "run", STEPS, checkpoint=policy(tmp_path))


def test_arrays_of_every_dtype_come_back(tmp_path: Path) -> None:
    built = linear.build_mesh()
    split = jax.sharding.NamedSharding(built, jax.sharding.PartitionSpec("fsdp", "tensor"))
    state = {
        "step": jax.device_put(np.int32(3), jax.sharding.NamedSharding(built, jax.sharding.PartitionSpec())),
        "params": {"w": jax.device_put(np.arange(32, dtype=jax.numpy.bfloat16).reshape(8, 4), split)},
        "none": jax.device_put(np.zeros((0, 4), np.float32), jax.local_devices()[0]),
    }
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    keeper = snapshots.Snapshots(Run(tmp_path / "run"), linear.experiment(9, checkpoint=policy(tmp_path)))
    assert keeper.restore(abstract) is None
    keeper.take(3, state, {"a/b": b"\x00\xff"}, {"seconds": 1.5})
    keeper._thread.join()
    found = keeper.restore(abstract)
    assert (found.step, found.iterators, found.clock) == (3, {"a/b": b"\x00\xff"}, {"seconds": 1.5})
    for one, two in zip(jax.tree.leaves(found.state), jax.tree.leaves(state), strict=True):
        assert one.dtype == two.dtype and one.sharding == two.sharding and np.array_equal(one, two)


# ----------------------------------------------------------------------------------------------- killed


def start(workdir: Path, count: int, steps: int, memory: Path, delay_s: float = 0.0):
    def command(address: str, index: int) -> list[str]:
        options = [str(steps), "0", str(delay_s), address, str(count), str(index), str(memory)]
        return [linear.__file__, str(workdir), *options]

    return process_runs.start(count, command)


@pytest.mark.fault
@pytest.mark.parametrize("count", [1, 2])
def test_kills_lose_few_steps_and_change_nothing(tmp_path: Path, count: int) -> None:
    """Three kills at random moments of processes whose checkpoints are a thousand steps apart."""
    rng = np.random.default_rng(count)
    steps, memory, workdir = 400, tmp_path / "memory", tmp_path / "run"
    for _ in range(3):
        running = start(workdir, count, steps, memory, delay_s=0.02)
        begun = _last(workdir)
        while _last(workdir) < begun + 20 and all(process.poll() is None for process in running):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        for process in running:
            process.send_signal(signal.SIGKILL)
        process_runs.finish(running)
        reached = _last(workdir)
        assert Run(workdir).steps() == []
    codes, output = process_runs.finish(start(workdir, count, steps, memory))
    assert codes == [0] * count, output
    went_on = int(output[0].split("resuming from step ")[1].split()[0])
    assert reached - 12 <= went_on <= reached
    codes, output = process_runs.finish(start(tmp_path / "whole", count, steps, tmp_path / "other"))
    assert codes == [0] * count, output
    one, two = (linear.leaves(linear.restored(folder).state) for folder in (workdir, tmp_path / "whole"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def _last(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    return max((line["step"] for line in read(file)), default=0) if file.exists() else 0
