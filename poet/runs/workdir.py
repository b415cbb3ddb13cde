"""What a work dir is: a new or empty folder, or that of an earlier run, which its content tells."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from poet.runs import lease, manifest
from poet.spec import Experiment, UserError, read_object

SPEC, CHECKPOINTS = "spec.json", "checkpoints"
# What marks a folder as another thing of this program: file -> its name.
_OTHERS = {
    manifest.NAME: "weights, a checkpoint or an export",
    "manifest.json": "a token store",
    ".partial": "an unfinished token store",
}
# What the root of a disk holds.
_OF_DISKS = "lost+found"
_STEP = re.compile(r"[0-9]{8,}")
_PARTS = ("state", "iterators", "clock.json", manifest.NAME)


def check(folder: Path) -> None:
    """Raises UserError, before anything is written, unless a run may be kept in this folder.

    It is new or empty, or has a spec.json of a run or a checkpoint in it.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--workdir={folder} is a file: give a folder")
    names = {path.name for path in folder.iterdir()}
    for name, what in _OTHERS.items():
        if name in names:
            raise UserError(f"--workdir={folder} holds {what}: give a new folder, or that of a run")
    if _is_new(folder, names) or _is_experiment(folder / SPEC) or steps(folder / CHECKPOINTS):
        return
    some = ", ".join(sorted(names)[:3])
    raise UserError(
        f"--workdir={folder} is not empty and not the folder of a run (it holds {some}): give a new "
        "folder, or that of a run to go on with"
    )


def steps(directory: Path) -> list[int]:
    """Steps of the committed checkpoints in a folder, ascending; [] if there is no such folder.

    A folder with the name of a step that has no part of a checkpoint is somebody else's.
    """
    if not directory.is_dir():
        return []
    named = (p for p in directory.iterdir() if _STEP.fullmatch(p.name) and p.is_dir())
    return sorted(int(p.name) for p in named if any((p / part).exists() for part in _PARTS))


def leftovers(directory: Path) -> list[Path]:
    """Folders of checkpoints that an interrupted save or deletion left half done."""
    endings = (path for ending in ("tmp", "trash") for path in directory.glob(f"*.{ending}"))
    return [path for path in endings if _STEP.fullmatch(path.stem) and path.is_dir()]


def _is_new(folder: Path, names: set[str]) -> bool:
    """Whether it holds nothing, the lease of a run that was killed early, or a place for checkpoints."""
    place = folder / CHECKPOINTS
    inside = {path.name for path in place.iterdir()} if place.is_dir() else set()
    return not names - {lease.FILE, CHECKPOINTS, _OF_DISKS} and not inside - {_OF_DISKS}


def _is_experiment(file: Path) -> bool:
    """Whether a file holds an experiment of any version: its sections, or some of them."""
    try:
        values = read_object(file)
    except UserError:
        return False
    known = {field.name for field in dataclasses.fields(Experiment)}
    return {"train", "checkpoint"} <= values.keys() <= known
