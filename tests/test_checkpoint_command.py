"""`poet checkpoint`: what it says of folders is what was put there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from poet import cli
from poet.checkpoints import checkpoint, comparison, contents, weights
from poet.runs.run import Run
from poet.spec import CheckpointSpec, Experiment, ModelSpec, TrainSpec

EXPERIMENT = Experiment(model=ModelSpec(width=96), checkpoint=CheckpointSpec(every=7))
BEFORE = Path(__file__).parent / "fixtures/written_before"


def make_state(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    params = {
        "blocks": {"w": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32), "scale": jnp.ones(3, jnp.bfloat16)},
        "head": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
    }
    return {"step": jnp.int32(seed), "params": params, "opt_state": optax.adam(0.1).init(params)}


def save(folder: Path, step: int, *, state: Any = None, experiment: Experiment = EXPERIMENT) -> Path:
    return checkpoint.save(
        Run(folder),
        step=step,
        state=state or make_state(step),
        iterators={},
        experiment=experiment,
        clock={},
        policy=CheckpointSpec(keep=9),
        metrics={"validation/loss": 1 / step},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work dir with checkpoints of steps 3 and 5."""
    folder = tmp_path_factory.mktemp("saved")
    save(folder, 3)
    save(folder, 5)
    return folder


@pytest.fixture
def workdir(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


def poet(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    code = cli.main(["checkpoint", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answer(capsys: pytest.CaptureFixture, *words: object) -> dict[str, Any]:
    code, out, err = poet(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def cut(folder: Path) -> str:
    """Cuts the largest file of a checkpoint by a byte, and returns its name."""
    victim = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(victim, victim.stat().st_size - 1)
    return victim.name


# ---------------------------------------------------------------------------------------------- reading


def test_contents_are_what_was_saved(workdir: Path) -> None:
    found = contents.Contents(Run(workdir).at(3))
    leaves = jax.tree_util.tree_leaves_with_path(make_state(3))
    expected = {contents.dotted(jax.tree_util.keystr(path)): np.asarray(leaf) for path, leaf in leaves}
    assert found.parts == ["opt_state", "params", "step"] and "opt_state.0.mu.blocks.w" in expected
    read = dict(found.read())
    assert list(read) == sorted(expected) == list(found.shapes)
    for name, array in expected.items():
        assert read[name].dtype == array.dtype and read[name].tobytes() == array.tobytes(), name
        assert found.shapes[name] == (array.shape, str(array.dtype))


# ----------------------------------------------------------------------------------------- list, verify


def test_a_list_has_every_folder_and_what_it_is(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoints = workdir / "checkpoints"
    name = cut(checkpoints / "00000005")
    for ending in ("00000006.tmp", "00000002.corrupt", "notes"):
        (checkpoints / ending).mkdir()
    found = answer(capsys, "list", workdir)["checkpoints"]
    states = {entry["step"]: entry["state"] for entry in found}
    assert states == {2: "set aside as damaged", 3: "whole", 5: "damaged", 6: "unfinished"}
    whole, damaged = found[1:3]
    assert name in damaged["problem"] and 0 <= whole["age_s"] < 3600
    files = [p for p in (checkpoints / "00000003").rglob("*") if p.is_file()]
    assert whole["size_bytes"] == sum(len(p.read_bytes()) for p in files)
    code, out, _ = poet(capsys, "list", workdir, "--quick")
    assert code == 0 and name not in out and out.count("whole") == 2, "a quick list hashes nothing"


def test_verify_tells_by_its_exit_code(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    assert poet(capsys, "verify", workdir)[0] == 0
    name = cut(workdir / "checkpoints/00000005")
    code, out, err = poet(capsys, "verify", workdir)
    assert code == 1 and name in out and "00000003: whole" in out and "1 of 2" in err
    assert poet(capsys, "verify", workdir / "checkpoints/00000003")[0] == 0
    assert poet(capsys, "verify", workdir / "checkpoints/00000005")[0] == 1


def test_a_run_whose_checkpoints_are_all_damaged_is_listed(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in (workdir / "checkpoints").iterdir():
        (folder / "MANIFEST").unlink()
    assert {e["state"] for e in answer(capsys, "list", workdir)["checkpoints"]} == {"damaged"}


# ------------------------------------------------------------------------------------------------- diff


def test_a_checkpoint_does_not_differ_from_itself(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    copy = shutil.copytree(workdir / "checkpoints/00000003", workdir / "copy/00000003")
    found = answer(capsys, "diff", workdir / "checkpoints/00000003", copy)
    assert found["equal"] and len(found["arrays"]) == 11
    assert poet(capsys, "diff", workdir, workdir)[1].startswith("settings and arrays are equal")


def test_a_difference_is_that_of_numpy(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = make_state(3)
    before, after = np.asarray(state["params"]["head"]), np.asarray(state["params"]["head"]) * 1.5
    state["params"]["head"] = jnp.asarray(after)
    state["params"]["extra"] = jnp.zeros(2)
    turned = EXPERIMENT.replace(train=TrainSpec(steps=77), model=ModelSpec(width=128))
    save(tmp_path, 3, state=state, experiment=turned)
    found = answer(capsys, "diff", saved / "checkpoints/00000003", tmp_path)
    arrays = {a["name"]: a for a in found["arrays"] if not a["equal"]}
    assert set(arrays) == {"params.head", "params.extra"} and not found["equal"]
    difference = np.float64(after) - np.float64(before)
    assert arrays["params.head"]["largest"] == pytest.approx(np.abs(difference).max(), rel=1e-12)
    norms = np.sqrt((difference**2).sum()) / np.sqrt((np.float64(before) ** 2).sum())
    assert arrays["params.head"]["relative"] == pytest.approx(norms, rel=1e-12)
    assert (arrays["params.extra"]["one"], arrays["params.extra"]["two"]) == ("absent", "float32[2]")
    settings = {s["name"]: (s["one"], s["two"], s["refused"]) for s in found["settings"]}
    assert settings == {"MODEL.width": (96, 128, True), "TRAIN.steps": (1000, 77, False)}
    out = poet(capsys, "diff", saved / "checkpoints/00000003", tmp_path)[1]
    assert "a resume refuses it" in out and "2 of 12 arrays differ" in out


floats = hnp.arrays(np.float32, st.integers(0, 6), elements=st.floats(width=32, allow_nan=True))


@given(floats)
def test_nothing_is_far_from_itself(array: np.ndarray) -> None:
    assert comparison.distances(array, array.copy())[0] == 0


@given(floats, st.data())
def test_whatever_changes_is_seen(array: np.ndarray, data: st.DataObject) -> None:
    other = data.draw(hnp.arrays(np.float32, array.shape, elements=st.floats(width=32, allow_nan=True)))
    same = all(a == b or (np.isnan(a) and np.isnan(b)) for a, b in zip(array, other))
    largest, _ = comparison.distances(array, other)
    assert (largest == 0) == same


# ---------------------------------------------------------------------------------------------- convert


def test_a_converted_checkpoint_is_what_export_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert poet(capsys, "convert", BEFORE / "lm", f"--out={tmp_path / 'one'}")[0] == 0
    flags = [f"--checkpoint={BEFORE / 'lm'}", f"--out={tmp_path / 'two'}", "--weights_only"]
    assert cli.main(["export", *flags, "--gin.EXPORT.dtype='float32'"]) == 0
    assert (tmp_path / "one/spec.json").read_bytes() == (tmp_path / "two/spec.json").read_bytes()
    one, two = (weights.read_arrays(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys() and all(one[n].tobytes() == two[n].tobytes() for n in one)


def test_released_weights_change_their_dtype_and_nothing_else(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    half, back = workdir.parent / "half", workdir.parent / "back"
    assert answer(capsys, "convert", workdir, f"--out={half}", "--dtype=bfloat16") == {"written": str(half)}
    assert answer(capsys, "convert", half, f"--out={back}", "--dtype=float32") == {"written": str(back)}
    one, two = Run.open(half).checkpoint, Run.open(back).checkpoint
    assert one.step == two.step == 5 and one.spec == two.spec
    expected = {n.removeprefix("params."): a for n, a in contents.Contents(Run(workdir).at(5)).read("params")}
    for name, array in weights.read_arrays(back / "model.safetensors").items():
        rounded = np.asarray(expected[name], jnp.bfloat16)
        assert array.dtype == np.float32 and np.array_equal(array, rounded.astype(np.float32)), name


@pytest.mark.parametrize(
    "words, said",
    [
        (["diff", "data/pretrained/lm_arenas"], "takes 2 paths"),
        (["list", "data/pretrained/lm_arenas", "--out=x"], "--out"),
        (["convert", "data/pretrained/lm_arenas"], "--out"),
        (["verify", "data/pretrained/lm_arenas", "--quick"], "--quick"),
        (["list", "nowhere/at/all"], "not a checkpoint"),
    ],
)
def test_impossible_wishes_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    code, _, err = poet(capsys, *words)
    assert code == cli.EXIT_USER and said in err


def test_a_part_that_is_not_there_is_named(workdir: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, err = poet(capsys, "convert", workdir, "--part=ema", f"--out={workdir.parent / 'out'}")
    assert code == cli.EXIT_USER and "'ema'" in err and "opt_state, params, step" in err
    assert not (workdir.parent / "out").exists()
