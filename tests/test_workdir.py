"""What a work dir is: everything else is refused, and nothing of the user's is cleaned away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poet import spec as specs
from poet.checkpoints import checkpoint
from poet.runs import manifest, workdir
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
    workdir.check(make(tmp_path / "w", ACCEPTED[name]))
    workdir.check(tmp_path / "not there yet")


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "w", REFUSED[name])
    with pytest.raises(UserError, match="--workdir="):
        workdir.check(folder)


def test_a_place_made_for_checkpoints_is_a_new_work_dir(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()  # Such as the mount point of another disk.
    workdir.check(tmp_path)


def test_a_file_is_no_work_dir(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        workdir.check(tmp_path / "w")


def test_only_what_the_program_makes_is_cleaned_away_or_counts(tmp_path: Path) -> None:
    mine = ["a.tmp/x", "00000009.tmp", "7/x", "00000005/mine", "backup.trash/x", "0000004x.tmp/x"]
    ours = ["00000003.tmp/state/x", "00000004.trash/MANIFEST", "00000002/MANIFEST", "123456789/state/x"]
    folder = make(tmp_path / "checkpoints", dict.fromkeys([*mine, *ours], "x"))
    assert checkpoint.steps(folder) == [2, 123456789]
    checkpoint.clean(folder)
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert left == {*mine, "00000002/MANIFEST", "123456789/state/x"}
