"""A run on disk: which folders are one, which checkpoint is meant, and that nothing of the user's is cleaned away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poet import spec as specs
from poet.runs import assets, manifest
from poet.runs import run as runs
from poet.runs.run import Run
from poet.spec import Experiment, UserError

RUN = {"spec.json": json.dumps(specs.to_dict(Experiment()))}
ACCEPTED = {
    "empty": {},
    "killed before its first step": {"lease.json": ""},
    "a run": RUN | {"lease.json": "", "metrics.jsonl": "", "notes of mine.txt": "x"},
    "a run whose spec was lost": {"checkpoints/00000007/MANIFEST": "x", "spec.json": "{"},
}
REFUSED = {
    "released weights": {"model.safetensors": "x", **RUN, manifest.NAME: "x"},
    "a checkpoint": {"state/x": "x", **RUN, "clock.json": "{}", manifest.NAME: "x"},
    "a token store": {"manifest.json": "{}"},
    "an unfinished token store": {".partial/plan.json": "{}"},
    "another program's spec": {"spec.json": '{"openapi": "3.0"}'},
    "a spec that is none": {"spec.json": "[" * 5000},
    "the user's own": {"thesis.tex": "x"},
    "the user's own checkpoints": {"checkpoints/00000007/mine.txt": "x", "checkpoints/a.tmp/x": "x"},
    "a tokenizer without hashes": {"model.safetensors": "x", "spec.json": '{"bits": 10}'},
}


def make(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_work_dir_is_recognised(tmp_path: Path, name: str) -> None:
    Run(make(tmp_path / "w", ACCEPTED[name])).check_place()
    Run(tmp_path / "not there yet").check_place()


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "w", REFUSED[name])
    with pytest.raises(UserError, match="--workdir="):
        Run(folder).check_place()


def test_a_place_made_for_checkpoints_is_a_new_work_dir(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()  # Such as the mount point of another disk.
    Run(tmp_path).check_place()


def test_a_file_is_no_work_dir(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        Run(tmp_path / "w").check_place()


def test_only_what_the_program_makes_is_cleaned_away_or_counts(tmp_path: Path) -> None:
    mine = ["a.tmp/x", "00000009.tmp", "7/x", "00000005/mine", "backup.trash/x", "0000004x.tmp/x"]
    ours = ["00000003.tmp/state/x", "00000004.trash/MANIFEST", "00000002/MANIFEST", "123456789/state/x"]
    folder = make(tmp_path / "checkpoints", dict.fromkeys([*mine, *ours], "x"))
    run = Run(tmp_path)
    assert run.steps() == [2, 123456789]
    run.clean()
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert left == {*mine, "00000002/MANIFEST", "123456789/state/x"}


def write_checkpoint(folder: Path, step: int, **fields: object) -> Path:
    """All of a checkpoint but its arrays."""
    make(folder, {"spec.json": json.dumps(specs.to_dict(experiment(step))), "clock.json": "{}"})
    manifest.write(folder, {"format": runs.FORMAT, "step": step} | fields)
    return folder


def experiment(step: int) -> Experiment:
    return Experiment(train=Experiment().train.replace(steps=step))


@pytest.fixture
def two(tmp_path: Path) -> Run:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    run = Run(tmp_path / "run")
    for step in (3, 12):
        write_checkpoint(run.at(step).path, step, networks={"video": f"of {step}"})
    return run


def test_every_path_to_a_checkpoint_opens_it(two: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two.folder.parent)
    for path, step in (("run", 12), (two.checkpoints, 12), (two.at(3).path, 3), ("run/checkpoints/00000003", 3)):
        found = Run.open(path).checkpoint
        assert (found.step, found.path, found.released) == (step, two.at(step).path, False)
        assert found.spec == experiment(step) and found.networks == {"video": f"of {step}"}


def test_an_opened_checkpoint_stays_while_training_goes_on(two: Run) -> None:
    opened = Run.open(two.folder)
    write_checkpoint(two.at(20).path, 20)
    assert (opened.checkpoint.step, two.checkpoint.step, two.newest().step) == (12, 20, 20)
    assert two.newest().networks is None


def test_the_newest_whole_one_is_found_behind_damaged_ones(two: Run) -> None:
    (two.at(12).path / "spec.json").write_text("{}")
    assert (two.newest().step, two.newest_whole().step) == (12, 3)
    with pytest.raises(manifest.Corrupt, match="spec.json was altered"):
        Run.open(two.folder).checkpoint.spec.replace()
    (two.at(3).path / manifest.NAME).unlink()
    assert two.newest_whole() is None


def test_another_format_is_refused(two: Run) -> None:
    write_checkpoint(two.at(30).path, 30, format=runs.FORMAT + 1)
    with pytest.raises(UserError, match=f"has format {runs.FORMAT + 1}, this version reads {runs.FORMAT}"):
        two.newest().verify()


def test_shipped_weights_open_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lm_arenas", "data/pretrained/lm_arenas"):
        run = Run.open(name)
        assert run.folder == run.checkpoint.path == assets.root() / "data/pretrained/lm_arenas"
        assert run.checkpoint.released and run.checkpoint.step > 0 and "video" in run.checkpoint.networks
    make(tmp_path / "lm_arenas", {"notes": "x"})  # What lies here goes before what ships.
    with pytest.raises(UserError, match="not a checkpoint: it holds no step folder"):
        Run.open("lm_arenas")


def test_a_frozen_tokenizer_is_no_run() -> None:
    with pytest.raises(UserError, match="magvit_v2_64x8 is not a checkpoint"):
        Run.open("magvit_v2_64x8")


@pytest.mark.parametrize("url", ["gs://bucket/runs/mine", "s3://bucket/x"])
def test_a_url_is_refused_and_makes_no_folder_of_its_name(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a URL: .*copy it"):
        Run(url)
    assert not list(tmp_path.iterdir())
