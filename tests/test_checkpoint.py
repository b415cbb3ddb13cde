from __future__ import annotations

import errno
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from poet.checkpoints import checkpoint, weights
from poet.distributed import mesh
from poet.runs import exits, manifest
from poet.runs.run import Checkpoint, Run
from poet.spec import CheckpointSpec, Experiment, MeshSpec, ModelSpec, UserError

EXPERIMENT = Experiment(model=ModelSpec(width=96), checkpoint=CheckpointSpec(every=7))


def sharding(devices: int, *dims: str | tuple[str, ...] | None) -> NamedSharding:
    axes = MeshSpec(fsdp=-1, sequence=2 if devices == 8 else 1, tensor=2)
    built = mesh.build(axes, jax.devices()[:devices])
    return NamedSharding(built, P(*dims))


def make_state(seed: int = 0, width: int = 16, devices: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    w = jax.device_put(rng.normal(size=(8, width)).astype(np.float32), sharding(devices, ("fsdp", "sequence")))
    half = jax.device_put(jnp.asarray(rng.normal(size=4), jnp.bfloat16), sharding(devices))
    params = {"w": w, "half": half}
    return {
        "step": jax.device_put(jnp.int32(seed), sharding(devices)),
        "params": params,
        "ema": jax.tree.map(lambda x: x + 1, params),
        "opt_state": jax.tree.map(lambda x: x, optax.adam(0.1).init(params)),
    }


def abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def start(folder: Path, step: int, *, keep: int = 5, state: Any = None) -> checkpoint.Saving:
    return checkpoint.start_save(
        Run(folder),
        step=step,
        state=state or make_state(step),
        iterators={"text/to video": bytes([step, 0, 255])},
        experiment=EXPERIMENT,
        clock={"seconds": 0.1 * step},
        policy=CheckpointSpec(keep=keep),
    )


def save(folder: Path, step: int, **options: Any) -> Path:
    return start(folder, step, **options).wait()


def assert_equal(one: Any, two: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_round_trip_keeps_every_bit_and_the_shardings(tmp_path: Path) -> None:
    state = make_state(3)
    save(tmp_path, 3, state=state)
    found = checkpoint.restore(Run(tmp_path), abstract(state))
    assert_equal(found.state, state)
    assert found.state["params"]["w"].sharding == state["params"]["w"].sharding
    assert (found.step, found.iterators) == (3, {"text/to video": b"\x03\x00\xff"})
    assert found.clock == {"seconds": 0.1 * 3} and found.experiment == EXPERIMENT


def test_a_relative_work_dir_is_as_good_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = make_state()
    save(Path("run"), 3, state=state)
    found = checkpoint.restore(Run("run"), abstract(state))
    assert found is not None
    assert_equal(found.state, state)
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state["params"])
    assert_equal(checkpoint.load_params(Run.open("run"), params), state["params"])


@pytest.mark.parametrize("before, after", [(8, 4), (4, 8), (8, 2)])
def test_another_mesh_restores_the_same_values(tmp_path: Path, before: int, after: int) -> None:
    state = make_state(1, devices=before)
    save(tmp_path, 1, state=state)
    found = checkpoint.restore(Run(tmp_path), abstract(make_state(devices=after))).state
    assert_equal(found, state)
    assert found["params"]["w"].sharding.mesh.size == after


def test_a_state_may_be_donated_while_it_is_being_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is held up until two steps have reused the buffers."""
    go_on = threading.Event()
    real = manifest.write
    monkeypatch.setattr(manifest, "write", lambda *a: (go_on.wait(60), real(*a)))
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state, expected = make_state(3), jax.device_get(make_state(3))
    saving = start(tmp_path, 3, state=state)
    for _ in range(2):
        state = jax.block_until_ready(step(state))
    assert not saving.done() and Run(tmp_path).steps() == []
    go_on.set()
    assert saving.wait() == Run(tmp_path).at(3).path and saving.done()
    assert_equal(checkpoint.restore(Run(tmp_path), abstract(state)).state, expected)


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4):
        save(tmp_path, step, keep=2)
    assert Run(tmp_path).steps() == [4, 30]
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"00000004", "00000030"}
    assert Run(tmp_path).newest().step == 30


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 1, state=make_state(9))
    assert_equal(checkpoint.restore(Run(tmp_path), abstract(make_state())).state, make_state(9))


def test_an_empty_folder_restores_nothing(tmp_path: Path) -> None:
    assert checkpoint.restore(Run(tmp_path), abstract(make_state())) is None
    assert checkpoint.restore(Run(tmp_path / "absent"), abstract(make_state())) is None
    assert Run(tmp_path).newest() is None


@pytest.mark.parametrize("place", ["orbax", "manifest", "rename"])
def test_a_failed_save_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    save(tmp_path, 1, keep=1)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {
        "orbax": (checkpoint.ocp, "save_checkpointables_async"),
        "manifest": (manifest.os, "fsync"),
        "rename": (checkpoint.os, "rename"),
    }
    monkeypatch.setattr(*where[place], fail)
    with pytest.raises(checkpoint.SaveError, match=r"step 2 .*No space left.*\(1\) are intact"):
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
    Run(tmp_path).at(1).verify()


def test_leftovers_of_a_killed_save_are_no_checkpoint(tmp_path: Path) -> None:
    whole = save(tmp_path, 1)
    shutil.copytree(whole, whole.with_name("00000002.tmp"))
    shutil.copytree(whole, whole.with_name("00000000.trash"))
    assert Run(tmp_path).steps() == [1]
    Run(tmp_path).clean()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("victim"), 5)


def every_file(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def is_damaged(path: Path, file: Path) -> bool:
    """True if reading the checkpoint names the file."""
    try:
        Checkpoint(path).verify()
    except manifest.Corrupt as error:
        return file.relative_to(path).as_posix() in str(error)
    return False


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(victim: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from([f for f in every_file(victim) if f.stat().st_size]))
    original = file.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(changed)
    try:
        assert is_damaged(victim, file)
    finally:
        file.write_bytes(original)


def test_any_truncated_or_missing_file_is_found(victim: Path) -> None:
    for file in every_file(victim):
        original = file.read_bytes()
        if original:
            file.write_bytes(original[:-1])
            assert is_damaged(victim, file)
        file.unlink()
        assert is_damaged(victim, file)
        file.write_bytes(original)
    extra = victim / "state/params/extra"
    extra.write_bytes(b"")
    assert is_damaged(victim, extra)
    extra.unlink()
    Checkpoint(victim).verify()


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    for step, name in ((3, "spec.json"), (2, "state/ema/_METADATA")):
        file = Run(tmp_path).at(step).path / name
        file.write_bytes(file.read_bytes()[:-2])
    with caplog.at_level(logging.WARNING):
        found = checkpoint.restore(Run(tmp_path), abstract(make_state()))
    assert found.step == 1
    assert_equal(found.state, make_state(1))
    assert "spec.json was altered" in caplog.text and "state/ema/_METADATA" in caplog.text
    assert (tmp_path / "checkpoints/00000003.corrupt").is_dir() and Run(tmp_path).steps() == [1]


def test_nothing_but_damage_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    """At the next start too, when the damaged ones are set aside."""
    (save(tmp_path, 1) / manifest.NAME).unlink()
    for _ in range(2):
        with pytest.raises(exits.Permanent, match="every checkpoint in .* is damaged .steps 1, set aside"):
            checkpoint.restore(Run(tmp_path), abstract(make_state()))


def test_another_model_size_names_the_leaf_and_where_the_settings_are(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(UserError) as caught:
        checkpoint.restore(Run(tmp_path), abstract(make_state(width=32)))
    message = str(caught.value)
    assert "['w'] is float32[8, 16] in the checkpoint and float32[8, 32] in this run" in message
    assert message.endswith("00000001/spec.json")
    assert Run(tmp_path).steps() == [1]
    with pytest.raises(UserError, match=r"\['params'\]\['w'\].*spec.json"):
        checkpoint.load_params(Run.open(tmp_path), abstract(make_state(width=32)["params"]))


def test_missing_and_extra_leaves_and_dtypes_are_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for change, message in (
        (lambda s: s | {"ema": {"w": s["ema"]["w"]}}, r"\['ema'\]\['half'\] is bfloat16.* absent"),
        (lambda s: s | {"new": {"x": s["step"]}}, r"\['new'\]\['x'\] is absent in the checkpoint"),
        (lambda s: s | {"step": jnp.float32(0)}, r"\['step'\] is int32.* float32"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.restore(Run(tmp_path), abstract(change(make_state())))


def test_parameters_load_alone_from_any_path_to_them(tmp_path: Path) -> None:
    run = tmp_path / "7"  # A work dir may be named by a number.
    for step in (1, 2):
        save(run, step)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), make_state()["params"])
    newest, older = make_state(2), make_state(1)
    for path, key, expected in (
        (run, "params", newest["params"]),
        (run / "checkpoints", "ema", newest["ema"]),
        (run / "checkpoints/00000001", "params", older["params"]),
    ):
        opened = Run.open(path)
        loaded = checkpoint.load_params(opened, target, key)
        assert_equal(loaded, jax.tree.map(lambda x: x.astype(jnp.float32), expected))
        assert all(len(x.devices()) == 1 for x in jax.tree.leaves(loaded))
        assert opened.checkpoint.spec == EXPERIMENT


@pytest.mark.parametrize("released", [False, True])
def test_arrays_that_a_model_was_trained_without_are_the_initial_ones(tmp_path: Path, released: bool) -> None:
    """Those that are not named must be there."""
    params = make_state(1)["params"]
    if released:
        weights.save(tmp_path / "run", EXPERIMENT, params, None, 1)
    else:
        save(tmp_path / "run", 1)
    new = jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=sharding(8, "fsdp"))
    wanted = {**abstract(params), "new": {"first": new}}
    initial = jax.device_put(np.arange(8, dtype=np.float32).reshape(4, 2), new.sharding)
    loaded = checkpoint.load_params(Run.open(tmp_path / "run"), wanted, new={"new.first": initial})
    assert loaded["new"]["first"] is initial
    assert_equal(loaded, {**params, "new": {"first": initial}})
    with pytest.raises(UserError, match="new"):
        checkpoint.load_params(Run.open(tmp_path / "run"), wanted)


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    target = make_state()["params"]
    with pytest.raises(UserError, match="not a checkpoint: it holds no step folder"):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="not a checkpoint: no such folder"):
        Run.open(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no 'emma' \(did you mean ema"):
        checkpoint.load_params(Run.open(save(tmp_path, 1)), target, "emma")


def test_a_damaged_spec_or_parameter_is_refused_on_loading(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    spec = path / "spec.json"
    spec.write_text(spec.read_text().replace("96", "97"))
    with pytest.raises(manifest.Corrupt, match="spec.json was altered"):
        _ = Checkpoint(path).spec
    with pytest.raises(manifest.Corrupt, match="spec.json was altered"):
        checkpoint.load_params(Run.open(path), make_state()["params"])
