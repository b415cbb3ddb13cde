"""What lies in a folder of checkpoints: each with its size, age and state; found by their names and hashes alone."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poet.runs import manifest
from poet.runs.buckets.files import Entry as File
from poet.runs.buckets.files import Place
from poet.runs.run import CHECKPOINTS, Checkpoint, Run
from poet.spec import UserError

WHOLE, DAMAGED, UNREADABLE = "whole", "damaged", "of another version"
# How folders that are no checkpoints (yet, or any more) end -> what they are.
ENDINGS = {".tmp": "unfinished", ".corrupt": "set aside as damaged", ".trash": "half deleted"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One checkpoint, or a folder of released weights.

    Attributes:
      step: training steps behind it; None where they are not known.
      size_bytes: of all files below the folder.
      written: Unix time in seconds.
      state: `WHOLE`, `DAMAGED`, `UNREADABLE`, or a value of `ENDINGS`.
      problem: what is damaged; '' is nothing.
      metrics: what was measured at this step, by name in the log.
    """

    path: str
    step: int | None
    size_bytes: int
    written: float
    state: str
    problem: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return self.state == WHOLE

    def as_json(self) -> dict[str, Any]:
        """A JSON object of all fields, and the age in seconds."""
        return dataclasses.asdict(self) | {"age_s": max(time.time() - self.written, 0.0)}


def entries(run: Run, *, hashes: bool = True) -> list[Entry]:
    """Every folder among the checkpoints of a run, by step; or the one checkpoint that `Run.open` found.

    Args:
      hashes: compare each file with its hash; otherwise only the manifest itself and that its files are there.
    """
    if run.opened and (run.opened.released or run.opened.path == run.folder.absolute()):
        return [entry(run.opened.path, hashes=hashes)]
    folder = run.opened.path.parent if run.opened else run.checkpoints
    found = folder.iterdir() if folder.is_dir() else ()
    named = [path for path in found if path.is_dir() and path.stem.isdigit()]
    return [entry(path, hashes=hashes) for path in sorted(named, key=lambda path: (int(path.stem), path.suffix))]


def entry(path: Path, *, hashes: bool = True) -> Entry:
    """What is known of one folder; never raises for what is in it."""
    fields: dict[str, Any] = {"path": str(path), "size_bytes": _size_bytes(path), "written": _written(path)}
    if path.suffix in ENDINGS:
        return Entry(step=int(path.stem), state=ENDINGS[path.suffix], **fields)
    checkpoint = Checkpoint(path)
    try:
        found = checkpoint.verify() if hashes else _present(checkpoint)
        return Entry(step=checkpoint.step, state=WHOLE, metrics=found.get("metrics", {}), **fields)
    except manifest.Corrupt as error:
        state, problem = DAMAGED, str(error)
    except UserError as error:
        state, problem = UNREADABLE, str(error)
    step = int(path.name) if path.name.isdigit() else None
    return Entry(step=step, state=state, problem=problem, **fields)


def _present(checkpoint: Checkpoint) -> dict[str, Any]:
    found = checkpoint.manifest()
    for name in found["files"]:
        if not (checkpoint.path / name).is_file():
            raise manifest.Corrupt(f"{checkpoint.path} is damaged: {name} is missing")
    return found


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _written(folder: Path) -> float:
    whole = folder / manifest.NAME
    return os.stat(whole if whole.exists() else folder).st_mtime


def in_bucket(url: str) -> list[Entry]:
    """As `entries` without hashes, of a work dir behind a URL; of its files the manifests alone are fetched.

    Raises:
      UserError: it holds no checkpoints; as `poet.runs.buckets.files.retried`.
    """
    place, steps = Place(url.rstrip("/")), dict[str, dict[str, File]]()
    for name, file in place.listed().items():
        above, step, inner = (*name.split("/", 2), "", "")[:3]
        if above == CHECKPOINTS and step.isdigit():
            steps.setdefault(step, {})[inner] = file
    if not steps:
        raise UserError(f"{url} holds no {CHECKPOINTS}/ with a step folder such as 00000200: give a work dir")
    return [_of_bucket(place, f"{CHECKPOINTS}/{step}", steps[step]) for step in sorted(steps, key=int)]


def _of_bucket(place: Place, folder: str, files: Mapping[str, File]) -> Entry:
    path, whole = f"{place.url}/{folder}", files.get(manifest.NAME)
    fields: dict[str, Any] = {"path": path, "step": int(folder.rpartition("/")[2])}
    fields |= {"size_bytes": sum(file.size for file in files.values())}
    fields |= {"written": max(file.modified for file in ([whole] if whole else files.values()))}
    if not whole:
        return Entry(state=ENDINGS[".tmp"], **fields)
    try:
        found = manifest.parse(place.read(f"{folder}/{manifest.NAME}"), path)
    except manifest.Corrupt as error:
        return Entry(state=DAMAGED, problem=str(error), **fields)
    for name in found["files"]:
        if name not in files:
            return Entry(state=DAMAGED, problem=f"{path} is damaged: {name} is missing", **fields)
    return Entry(state=WHOLE, metrics=found.get("metrics", {}), **fields)
