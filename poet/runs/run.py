"""A run on disk: where everything of it lies, and its checkpoints.

    WORKDIR/
      spec.json       the resolved experiment
      lease.json      who trains here
      checkpoints/    one folder per step (`poet.checkpoints.checkpoint`)
      metrics.jsonl, tensorboard/, samples/   what was logged
      timeline.jsonl  what the time went on, over all restarts
      tokenizer/      what a tokenizer's training made

`Run.to_train(path)` is one to be trained, which may lie in a bucket (`poet.runs.publishing`); `Run.open(path)` one
whose weights are read: of a work dir the newest checkpoint, one step below its checkpoints/, or released weights, here
or behind a URL.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from poet.runs import assets, lease, manifest, outputs, timeline
from poet.runs.buckets import files, mirror
from poet.spec import Experiment, UserError, read_json, read_object

SPEC, WEIGHTS, CHECKPOINTS = "spec.json", "model.safetensors", "checkpoints"
# Among checkpoints: the identity of the run that they are of (`poet.checkpoints.identity`).
IDENTITY = "run.json"
# Of checkpoints.
FORMAT = 1
# What marks a folder as another thing of this program: file -> its name.
_OTHERS = {
    manifest.NAME: "weights, a checkpoint or an export",
    "manifest.json": "a token store",
    ".partial": "an unfinished token store",
}
# What the root of a disk holds.
_OF_DISKS = "lost+found"
# What the name of a damaged checkpoint ends in, once a restore has met it.
DAMAGED = ".corrupt"
_STEP = re.compile(r"[0-9]{8,}")
_PARTS = ("state", "iterators", "clock.json", manifest.NAME)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One folder of weights: a checkpoint of a training, or released weights.

    What is asked of it raises `manifest.Corrupt` where a file that it is read from is missing or altered, and
    UserError where another version wrote it.
    """

    path: Path

    @functools.cached_property
    def released(self) -> bool:
        """Whether these are released weights: a manifest of another kind is that of a frozen tokenizer."""
        if not (self.path / manifest.NAME).is_file():
            return False
        try:
            found = manifest.read(self.path)
        except manifest.Corrupt:
            return (self.path / WEIGHTS).is_file()  # Reading it will say so.
        return WEIGHTS in found["files"] and outputs.kind_of(found) == outputs.WEIGHTS

    @property
    def exported(self) -> bool:
        """Whether it is an export with its programs, whose weights the programs alone read."""
        if self.released or not (self.path / manifest.NAME).is_file():
            return False
        try:
            return outputs.kind_of(manifest.read(self.path)) == outputs.EXPORT
        except manifest.Corrupt:
            return False

    @property
    def step(self) -> int:
        """Training steps behind the weights."""
        if not self.released:
            return int(self.path.name)
        step = self.manifest().get("step")
        if not isinstance(step, int):
            raise manifest.Corrupt(f"{self.path} is damaged: its {manifest.NAME} names no step")
        return step

    @functools.cached_property
    def spec(self) -> Experiment:
        """The experiment that the weights were trained with."""
        if self.released:
            self.verify()
        else:
            manifest.check_file(self.path, SPEC, self.manifest())
        return read_json(Experiment, self.path / SPEC)

    @property
    def networks(self) -> dict[str, str] | None:
        """Fingerprints of the frozen networks that they were trained with (`poet.runs.networks`).

        None where they do not say (written before this was kept).
        """
        return manifest.read(self.path).get("networks")

    @property
    def versions(self) -> dict[str, str]:
        """Of poet, its code and its libraries that wrote it (`poet.runs.versions.of_run`); {} where it does not say."""
        return manifest.read(self.path).get("versions", {})

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured at this step, by name in the log; {} where it does not say."""
        return manifest.read(self.path).get("metrics", {})

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex characters that depend on every file of it."""
        return manifest.fingerprint(self.path)

    def manifest(self) -> dict[str, Any]:
        """The content of the MANIFEST, of a format that this version reads."""
        found = manifest.read(self.path)
        if not self.released and found.get("format") != FORMAT:
            raise UserError(f"checkpoint {self.path} has format {found.get('format')}, this version reads {FORMAT}")
        return found

    def verify(self) -> dict[str, Any]:
        """Compares every file with the manifest and returns it.  A card or a log may lie beside released weights."""
        self.manifest()
        return manifest.check_listed(self.path) if self.released else manifest.verify(self.path)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
      folder: its work dir; what `open` found may also be a folder of checkpoints, one of them, or released weights.
      opened: the checkpoint that `open` found, which stays the same while a training writes others.
      url: where in a bucket the work dir lies, of which `folder` is this machine's copy; '': nowhere.
    """

    folder: Path
    opened: Checkpoint | None = None
    url: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", _local(self.folder))

    @classmethod
    def to_train(cls, path: str | os.PathLike[str]) -> Run:
        """The run of a work dir: a folder, or a URL; touches neither."""
        if not files.is_url(path):
            return cls(Path(path))
        url = os.fspath(path).rstrip("/")
        return cls(mirror.workdir(url), url=url)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Resolves a user's path, from the current folder or among the shipped weights (also by name).

        Of what lies behind a URL a copy is opened (`poet.runs.buckets`).

        Raises:
          UserError: nothing there is a checkpoint.
        """
        places = assets.places(here(path).expanduser())
        folder = next((place for place in places if place.exists()), places[0])
        return cls(folder, _checkpoint_in(folder))

    # ----------------------------------------------------------------------------------------- places

    @property
    def spec_file(self) -> Path:
        """The experiment of the run that was last accepted here."""
        return self.folder / SPEC

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def tokenizer(self) -> Path:
        """The frozen tokenizer that `poet tokenizer-train` leaves."""
        return self.folder / "tokenizer"

    @property
    def metrics(self) -> Path:
        """One line of JSON for what was logged at a step."""
        return self.folder / "metrics.jsonl"

    @property
    def timeline(self) -> Path:
        """What the wall time went on, over all restarts (`poet.runs.timeline`)."""
        return self.folder / timeline.FILE

    @property
    def profiles(self) -> Path:
        """Profiles of a few steps, one folder each (`poet.training.profiling`)."""
        return self.folder / "profiles"

    @property
    def tensorboard(self) -> Path:
        """The same for TensorBoard."""
        return self.folder / "tensorboard"

    @property
    def samples(self) -> Path:
        """Logged images."""
        return self.folder / "samples"

    # ------------------------------------------------------------------------------------ checkpoints

    @property
    def checkpoint(self) -> Checkpoint:
        """The one that `open` found, else the newest one now; UserError if there is none."""
        return self.opened or _checkpoint_in(self.folder.absolute())

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step, which need not be there; its path is absolute."""
        return _at(self.checkpoints, step)

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending; [] if there is no folder of them."""
        return _steps(self.checkpoints)

    def set_aside(self) -> list[int]:
        """Steps of checkpoints that a restore found damaged and renamed, ascending."""
        named = (path for path in self.checkpoints.glob(f"*{DAMAGED}") if _STEP.fullmatch(path.stem))
        return sorted(int(path.stem) for path in named)

    def newest(self) -> Checkpoint | None:
        """The newest committed checkpoint."""
        found = self.steps()
        return self.at(found[-1]) if found else None

    def newest_whole(self) -> Checkpoint | None:
        """The newest checkpoint whose manifest and experiment are intact; its arrays are not checked."""
        for step in reversed(self.steps()):
            found = self.at(step)
            try:
                found.spec  # noqa: B018
            except manifest.Corrupt:
                continue  # Restoring will set it aside and say so.
            return found
        return None

    def put_aside(self, damaged: Checkpoint) -> None:
        """Renames a checkpoint, so that it is none any more; `set_aside` finds it."""
        target = damaged.path.with_suffix(DAMAGED)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(damaged.path, target)

    def clean(self) -> None:
        """Removes what interrupted saves and deletions of checkpoints left; only for who holds the run."""
        endings = (path for ending in ("tmp", "trash") for path in self.checkpoints.glob(f"*.{ending}"))
        for path in endings:
            if _STEP.fullmatch(path.stem) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    # --------------------------------------------------------------------------------------- training

    def check_place(self) -> None:
        """Raises UserError, before anything is written, unless a run may be kept in this folder.

        It is new or empty, or has a spec.json of a run or a checkpoint in it.
        """
        if self.url:
            return self._check_bucket()
        if not self.folder.exists():
            return None
        if not self.folder.is_dir():
            raise UserError(f"--workdir={self.folder} is a file: give a folder")
        names = {path.name for path in self.folder.iterdir()}
        known = self._is_new(names) or _is_experiment(self.spec_file) or bool(self.steps())
        return _refuse_others(self.folder, names, known)

    def _check_bucket(self) -> None:
        found = files.Place(self.url, "--workdir").listed()
        names = {name.partition("/")[0] for name in found}
        _refuse_others(self.url, names, not names or bool({lease.FILE, SPEC} & names or steps_among(found)))

    def _is_new(self, names: set[str]) -> bool:
        """Whether it holds nothing, the lease of a run that was killed early, or a place for checkpoints."""
        inside = {path.name for path in self.checkpoints.iterdir()} if self.checkpoints.is_dir() else set()
        return not names - {lease.FILE, CHECKPOINTS, _OF_DISKS} and not inside - {_OF_DISKS, IDENTITY}


def _refuse_others(place: str | Path, names: Collection[str], known: bool) -> None:
    """Raises UserError where a place holds another thing of this program, or what is not `known` to be a run's."""
    for name, what in _OTHERS.items():
        if name in names:
            raise UserError(f"--workdir={place} holds {what}: give a new folder, or that of a run")
    if not known:
        raise UserError(
            f"--workdir={place} is not empty and not the folder of a run (it holds {', '.join(sorted(names)[:3])}): "
            "give a new folder, or that of a run to resume"
        )


def here(path: str | os.PathLike[str]) -> Path:
    """A user's path to weights on this machine: itself, or the copy of the weights that lie behind a URL.

    Raises:
      UserError: nothing there is a checkpoint, released weights or an export; as `poet.runs.buckets.mirror.fetch`.
    """
    if not files.is_url(path):
        return Path(path)
    url = os.fspath(path)
    return mirror.fetch(url, lambda names: _weights_among(url, names))


def _weights_among(url: str, names: Collection[str]) -> str:
    """The folder of weights among the names below a URL; '' is that of the URL.  What has no MANIFEST is unfinished."""
    if manifest.NAME in names or url.rstrip("/").rsplit("/", 1)[-1].isdigit():
        return ""
    for above in (f"{CHECKPOINTS}/", ""):
        if found := steps_among(names, above):
            return f"{above}{found[-1]}"
    raise UserError(
        f"{url} is not a checkpoint: no {manifest.NAME} lies there, nor in a step folder such as 00000200; give a work "
        "dir, one step below its checkpoints/, or released weights"
    )


def steps_among(names: Collection[str], above: str = f"{CHECKPOINTS}/") -> list[str]:
    """Folders of complete checkpoints among the names of files, ascending by step; `above` ends in '/' or is ''."""
    tails = (name.removeprefix(above).split("/") for name in names if name.startswith(above))
    found = {tail[0] for tail in tails if len(tail) == 2 and tail[1] == manifest.NAME and _STEP.fullmatch(tail[0])}
    return sorted(found, key=int)


def _local(path: str | os.PathLike[str]) -> Path:
    """The folder of a work dir; raises UserError for a URL, which would be taken for a folder of that name."""
    if "://" in os.fspath(path):
        raise UserError(
            f"{path} is a URL: here a folder of a file system is wanted; copy it (gcloud storage rsync), or mount the "
            "bucket (gcsfuse, mountpoint-s3), and give the path"
        )
    return Path(path)


def _at(directory: Path, step: int) -> Checkpoint:
    return Checkpoint(directory.absolute() / f"{step:08d}")


def _steps(directory: Path) -> list[int]:
    """Steps of a folder of checkpoints; a folder without any part of a checkpoint is not one."""
    if not directory.is_dir():
        return []
    named = (p for p in directory.iterdir() if _STEP.fullmatch(p.name) and p.is_dir())
    return sorted(int(p.name) for p in named if any((p / part).exists() for part in _PARTS))


def _checkpoint_in(folder: Path) -> Checkpoint:
    """A folder's weights: itself, or the newest checkpoint of a work dir or of a folder of checkpoints."""
    itself = Checkpoint(folder)
    of_step = folder.name.isdigit() and folder.is_dir() and not (folder / CHECKPOINTS).is_dir()
    if itself.released or of_step:
        return itself
    for directory in (folder / CHECKPOINTS, folder):
        if found := _steps(directory):
            return _at(directory, found[-1])
    if itself.exported:
        raise UserError(
            f"{folder} is an export, for `poet serve` and `poet.serving.runtime.Runtime`: give its checkpoint here"
        )
    raise UserError(
        f"{folder} is not a checkpoint: "
        + ("it holds no step folder such as 00000200" if folder.is_dir() else "no such folder")
        + "; give a work dir, or one step below its checkpoints/"
    )


def _is_experiment(file: Path) -> bool:
    """Whether a file holds an experiment of any version: its sections, or some of them."""
    try:
        values = read_object(file)
    except UserError:
        return False
    known = {field.name for field in dataclasses.fields(Experiment)}
    return {"train", "checkpoint"} <= values.keys() <= known
