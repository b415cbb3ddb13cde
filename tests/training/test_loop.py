from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from poet.checkpoints import checkpoint
from poet.runs import exits, lease
from poet.runs.lines import read
from poet.runs.run import Run
from poet.spec import UserError
from poet.training import compiled, loop
from poet.training.schedule import GroupSchedule
from poet.training.trainable import Hook, Report

pytestmark = pytest.mark.usefixtures("no_tensorboard")

TIMINGS = {"data_wait", "goodput", "seconds", "eta_s"} | {
    f"{name}_per_s" for name in ("steps", "clips", "tokens", "flops")
}


def log(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without the fields that a clock decides."""
    lines = read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def assert_same_run(one: Path, two: Path) -> None:
    a, b = linear.restored(one), linear.restored(two)
    assert (a.step, a.iterators) == (b.step, b.iterators)
    x, y = linear.leaves(a.state), linear.leaves(b.state)
    assert x.keys() == y.keys()
    for name in x:
        assert x[name].dtype == y[name].dtype and x[name].tobytes() == y[name].tobytes(), name
    assert log(one) == log(two)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 12 steps."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "clu.metric_writers", None)
        hook = Hook(name="probe", every=3, fn=probe)
        assert linear.run(workdir, 12, hooks=[hook]) is loop.Outcome.FINISHED
    return workdir


def probe(state: dict, step: int) -> Report:
    return Report(scalars={"step": int(state["step"]), "w": float(state["params"]["w"].sum())})


def test_two_halves_equal_one_run_bit_for_bit(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said beside it: a run whose length has changed has another cosine from here on."""
    data = linear.batches()
    hook = Hook(name="probe", every=3, fn=probe)
    linear.run(tmp_path, 6, data=data, hooks=[hook])
    again = linear.batches()
    assert "jumps" not in caplog.text
    linear.run(tmp_path, 12, data=again, hooks=[hook])
    assert "the learning rate jumps from 0.001 to 0.00689 at step 6" in caplog.text
    assert_same_run(whole, tmp_path)
    for name in linear.BATCH:
        joined = data[name].seen + again[name].seen
        assert joined == list(range(len(joined)))


def test_a_checkpoint_holds_the_iterators_of_its_step(whole: Path) -> None:
    found = linear.restored(whole)
    schedule = GroupSchedule(linear.SHARES, seed=1)
    drawn = [schedule(step) for step in range(found.step)]
    positions = {name: int(position) for name, position in found.iterators.items()}
    assert positions == {name: drawn.count(name) for name in linear.BATCH}


def test_hooks_see_the_state_of_their_step_and_lines_never_repeat(whole: Path) -> None:
    lines = log(whole)
    assert [x["probe/step"] for x in lines if x["kind"] == "probe"] == [3, 6, 9, 12]
    assert [x["step"] for x in lines if x["kind"] == "train"] == list(range(1, 13))


def test_what_training_starts_from_is_looked_at_once_where_a_hook_asks(tmp_path: Path) -> None:
    hooks = [Hook(name="probe", every=3, fn=probe, at_start=True)]
    linear.run(tmp_path, 3, hooks=hooks)
    linear.run(tmp_path, 6, hooks=hooks)
    assert [x["step"] for x in log(tmp_path) if x["kind"] == "probe"] == [0, 3, 6]


def test_each_step_draws_its_own_key_from_seed_and_step(whole: Path) -> None:
    for line in log(whole):
        if line["kind"] == "train":
            key = jax.random.fold_in(jax.random.key(3), line["step"] - 1)
            noise = next(v for k, v in line.items() if k.endswith("/noise"))
            assert noise == pytest.approx(float(jax.random.normal(key, ())), rel=1e-6)


def test_the_loop_learns(whole: Path, tmp_path: Path) -> None:
    linear.run(tmp_path, 80, every=1000)
    losses = [line["loss"] for line in log(tmp_path)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_state_lies_on_the_mesh_as_the_rules_say(whole: Path) -> None:
    state = linear.restored(whole).state
    adam = next(s for s in jax.tree.leaves(state["opt_state"], is_leaf=_is_adam) if _is_adam(s))
    for tree in (state["params"], adam.mu, adam.nu):
        assert tree["w"].sharding.spec == jax.P(("fsdp", "sequence"), "tensor")
        assert tree["w"].addressable_shards[0].data.shape == (linear.IN // 4, linear.OUT // 2)
        assert tree["b"].sharding.spec == jax.P("tensor")


def _is_adam(node: object) -> bool:
    return hasattr(node, "mu")


def test_fresh_moments_are_sharded_like_their_parameters(tmp_path: Path) -> None:
    seen = {}

    def look(state: dict, step: int) -> Report:
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            seen[jax.tree_util.keystr(path)] = leaf.sharding.spec
        return Report()

    linear.run(tmp_path, 1, hooks=[Hook(name="look", every=1, fn=look)])
    moments = {k: v for k, v in seen.items() if k.endswith("['w']")}
    assert len(moments) == 3 and set(moments.values()) == {jax.P(("fsdp", "sequence"), "tensor")}


def test_a_run_goes_on_with_half_the_devices(whole: Path, tmp_path: Path) -> None:
    linear.run(tmp_path, 8)
    linear.run(tmp_path, 12, devices=4)
    a, b = (linear.leaves(linear.restored(path).state) for path in (whole, tmp_path))
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    data = linear.batches()
    before = (whole / "metrics.jsonl").read_bytes()
    assert linear.run(whole, 12, data=data) is loop.Outcome.FINISHED
    assert not data["short"].seen and (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_identically(whole: Path, tmp_path: Path, number: int) -> None:
    """At step 5 neither a checkpoint nor the probe is due; at step 6 the probe is owed."""
    handler = signal.getsignal(number)
    hooks = [Hook(name="probe", every=3, fn=probe)]
    data = linear.batches()
    stop = 5 if number == signal.SIGTERM else 6
    original = data["long"].__class__.__next__

    def draw(self: linear.Batches) -> dict:
        if sum(d.position for d in data.values()) == stop - 1:
            os.kill(os.getpid(), number)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear.Batches, "__next__", draw)
        assert linear.run(tmp_path, 12, data=data, hooks=hooks) is loop.Outcome.PREEMPTED
    assert signal.getsignal(number) is handler
    assert Run(tmp_path).steps()[-1] == stop
    assert linear.run(tmp_path, 12, hooks=hooks) is loop.Outcome.FINISHED
    assert_same_run(whole, tmp_path)


def test_nan_in_a_batch_stops_the_run_and_is_never_saved(tmp_path: Path) -> None:
    data = linear.batches()
    data["long"].poison = 5
    with pytest.raises(loop.TrainingDiverged, match="step 8, group long") as caught:
        linear.run(tmp_path, 20, data=data, every=1)
    assert "nan" in str(caught.value)
    found = linear.restored(tmp_path)
    assert found.step == 7
    assert all(np.isfinite(leaf).all() for leaf in linear.leaves(found.state).values())


def test_parameters_spoilt_behind_a_finite_loss_are_not_saved(tmp_path: Path) -> None:
    def spoil(state: dict) -> dict:
        w = jnp.where(state["step"] == 4, jnp.inf, state["params"]["w"])
        return state | {"params": state["params"] | {"w": w}}

    with pytest.raises(loop.TrainingDiverged, match=r"\['params'\]\['w'\].*4 steps"):
        linear.run(tmp_path, 20, model=linear.trainable(spoil), every=2)
    assert Run(tmp_path).steps() == [2]


def test_a_failed_save_costs_a_checkpoint_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be begun, and one that fails behind the back of the loop."""
    begin, write = checkpoint.ocp.save_checkpointables_async, checkpoint.manifests.write

    def fail_at(step: int, real: Callable[..., Any]) -> Callable[..., Any]:
        def save(path: Path, *rest: Any) -> Any:
            return _no_space() if f"{step:08d}" in str(path) else real(path, *rest)

        return save

    monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", fail_at(4, begin))
    monkeypatch.setattr(checkpoint.manifests, "write", fail_at(6, write))

    def wait(state: dict, step: int) -> Report:
        """The second failure is there after step 7, and seen before the line of step 8 is written."""
        if step == 7:
            _wait_until(lambda: all(t.name != "checkpoint" for t in threading.enumerate()))
        return Report()

    hooks = [Hook(name="wait", every=1, fn=wait)]
    linear.run(tmp_path, 10, every=2, keep=2, hooks=hooks)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000008", "00000010"]
    failures = [x["checkpoint_failures"] for x in log(tmp_path) if x["kind"] == "train"]
    assert failures[:6] == [0, 0, 0, 0, 1, 1] and failures[7:] == [2, 2, 2]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first save takes until step 5 is done; the second one, due at step 4, waits for it."""
    real, done = checkpoint.manifests.write, []

    def write(folder: Path, fields: dict[str, Any]) -> None:
        deadline = time.monotonic() + 60
        while "00000002" in str(folder) and len(done) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        real(folder, fields)

    def note(state: dict, step: int) -> Report:
        if step < 4:
            done.append(step)
            assert Run(tmp_path).steps() == []
        if step == 4:
            threading.Timer(0.3, done.append, [step]).start()
        if step > 4:
            assert Run(tmp_path).steps()[0] == 2
        return Report()

    monkeypatch.setattr(checkpoint.manifests, "write", write)
    linear.run(tmp_path, 6, every=2, keep=9, hooks=[Hook(name="note", every=1, fn=note)])
    assert done[:3] == [1, 2, 3] and Run(tmp_path).steps() == [2, 4, 6]


def test_an_error_of_the_run_waits_for_the_save_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint.manifests.write

    def slowly(*arguments: Any) -> None:
        time.sleep(0.5)
        real(*arguments)

    def fail(state: dict, step: int) -> Report:
        if step == 3:
            raise ZeroDivisionError
        return Report()

    monkeypatch.setattr(checkpoint.manifests, "write", slowly)
    with pytest.raises(ZeroDivisionError):
        linear.run(tmp_path, 6, every=2, hooks=[Hook(name="fail", every=1, fn=fail)])
    assert linear.restored(tmp_path).step == 2


def test_a_failed_last_save_is_an_error_and_keeps_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear.run(tmp_path, 4)
    monkeypatch.setattr(checkpoint.os, "rename", _no_space)
    with pytest.raises(checkpoint.SaveError, match="step 8.*No space left.*intact"):
        linear.run(tmp_path, 8)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000004"]


def _no_space(*args: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole: Path, tmp_path: Path) -> None:
    linear.run(tmp_path, 8, hooks=[Hook(name="probe", every=3, fn=probe)])
    victim = next((tmp_path / "checkpoints/00000008/state/params").rglob("manifest.ocdbt"))
    victim.write_bytes(victim.read_bytes()[:-1])
    linear.run(tmp_path, 12, hooks=[Hook(name="probe", every=3, fn=probe)])
    assert_same_run(whole, tmp_path)


def test_a_batch_of_another_shape_or_name_is_refused(tmp_path: Path) -> None:
    class Short(linear.Batches):
        def __next__(self) -> dict[str, np.ndarray]:
            return {"x": super().__next__()["x"][:, 1:]}

    data = {name: Short(name) for name in linear.BATCH}
    with pytest.raises(ValueError, match=r"batch has \['x'\], needs \['x', 'y'\]"):
        linear.run(tmp_path, 2, data=data)


def test_missing_groups_and_uneven_batches_are_refused_before_device_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no batches for the groups .'long'."):
        linear.run(tmp_path, 2, data={"short": linear.Batches("short")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(linear.BATCH, "long", 6)
        with pytest.raises(UserError, match="batch of 6 cannot be split over 4"):
            linear.run(tmp_path, 2)


def test_a_step_that_cannot_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After what it needs, and where its program came from, was logged."""

    class Small:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 64}

    monkeypatch.setattr(compiled.jax, "local_devices", lambda: [Small()])
    refused = pytest.raises(UserError, match="one step of group short needs .* GiB on each device")
    with caplog.at_level(logging.INFO, "poet"), refused:
        linear.run(tmp_path, 2)
    assert re.search(r"group short: .* compiled in [\d.]+ s \(cache: [01] hits, [01] misses\)", caplog.text)


def test_one_trainer_per_workdir(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from poet.runs import lease\n"
        "with lease.hold(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"in use by another.*pid {holder.pid} on "):
            linear.run(tmp_path, 2)
        holder.kill()
    with lease.hold(tmp_path):  # The dead holder's lease is taken over.
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()


def child(workdir: Path, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, linear.__file__, str(workdir), *map(str, arguments)], stderr=subprocess.PIPE
    )


def test_sigterm_ends_a_command_with_its_own_code(tmp_path: Path) -> None:
    """The signal comes while step 5 is due: that step is finished, then saved out of turn."""
    with child(tmp_path, 12, 4) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == exits.RESTART, errors.decode()[-2000:]
    assert Run(tmp_path).steps()[-1] == 5


@pytest.mark.fault
def test_kill_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    """Five SIGKILLs, each some time after start-up, then a run to the end."""
    steps, delay_s = 60, 0.05
    with child(tmp_path / "whole", steps) as process:
        errors = process.communicate()[1]
    assert process.returncode == 0, errors.decode()[-2000:]
    rng, killed = random.Random(0), 0
    while killed < 5:
        with child(tmp_path / "torn", steps, 0, delay_s) as process:
            if not _wait_for_line(tmp_path / "torn", process):
                break
            time.sleep(rng.uniform(0, 1.0))
            process.kill()
        killed += 1
    assert killed >= 3
    with child(tmp_path / "torn", steps) as process:
        errors = process.communicate()[1]
    assert process.returncode == 0, errors.decode()[-2000:]
    assert_same_run(tmp_path / "whole", tmp_path / "torn")
    assert {p.suffix for p in (tmp_path / "torn/checkpoints").iterdir()} == {""}


def _wait_for_line(workdir: Path, process: subprocess.Popen) -> bool:
    """True once the process has logged a step, False if it ended before."""
    path = workdir / "metrics.jsonl"
    before = path.read_bytes().count(b"\n") if path.exists() else 0
    while process.poll() is None:
        if path.exists() and path.stat().st_mtime_ns and path.read_bytes().count(b"\n") != before:
            return True
        time.sleep(0.02)
    return False


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.fault
def test_a_full_disk_costs_checkpoints_only(tmp_path: Path) -> None:
    """On a real file system of 2 MB that fills up and empties again."""
    mounted = tmp_path / "checkpoints"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mounted)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    filler = mounted / "filler"

    def fill(state: dict, step: int) -> Report:
        if step == 5:
            _wait_until(lambda: Run(tmp_path).steps() == [2, 4])
            with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(4096))
        if step == 9:
            _wait_until(lambda: not list(mounted.glob("*.tmp")))
            assert Run(tmp_path).steps() == [2, 4]
            Run(tmp_path).at(4).verify()
            filler.unlink()
        return Report()

    try:
        linear.run(tmp_path, 12, every=2, hooks=[Hook(name="fill", every=1, fn=fill)])
        assert sorted(p.name for p in mounted.iterdir()) == ["00000010", "00000012"]
        assert log(tmp_path)[-2]["checkpoint_failures"] == 2
        assert linear.restored(tmp_path).step == 12
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
