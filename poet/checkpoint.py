"""Checkpoints: written atomically, hashed file by file, restored onto any mesh.

A folder of checkpoints holds one folder per step (`00000200/`):

    state/        one Orbax checkpointable per top-level key of the state (params, opt_state, ...)
    iterators/    the position of every batch iterator, the same for all processes
    spec.json     the resolved experiment
    clock.json    what else the loop needs to go on
    MANIFEST      step, shape and dtype of every array, SHA-256 of every file; then its own SHA-256

All of it is written under a temporary name, made durable and renamed: a folder with its final name
is complete.  Every process writes its arrays, in a folder that all of them see; process 0 writes the
rest after them.  Orbax restores flipped bits without complaint, hence the hashes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Mapping
from urllib.parse import quote, unquote

import jax
from orbax.checkpoint import v1 as ocp

from poet import manifest as manifests
from poet import processes, specs, weights
from poet.specs import Experiment, UserError

FORMAT = 1
# What the names of iterator files end in: the process that wrote them.
_ITERATOR = ".0"
# A file of a checkpoint is missing, truncated or altered; the message names it.
CorruptCheckpoint = manifests.Corrupt
_LOG = logging.getLogger(__name__)


class SaveError(RuntimeError):
    """A checkpoint could not be written (disk full, ...); earlier checkpoints are untouched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What `restore` found: `state` lives on the devices of the abstract target."""

    step: int
    state: dict[str, Any]
    iterators: dict[str, bytes]
    clock: dict[str, Any]
    experiment: Experiment


# ------------------------------------------------------------------------------------------ writing


def save(
    directory: Path,
    *,
    step: int,
    state: Mapping[str, Any],
    iterators: Mapping[str, bytes],
    experiment: Experiment,
    clock: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes `directory/<step>` and then deletes all but the newest `keep` checkpoints.

    Returns the new folder.  Every process of a run calls it.

    Raises:
      SaveError: nothing of this checkpoint remains, and no older one was deleted.
    """
    final = directory.absolute() / f"{step:08d}"  # Orbax refuses relative paths.
    temporary = final.with_suffix(".tmp")
    arrays = {key: {"value": value} for key, value in state.items()}

    def finish() -> None:
        _write_iterators(temporary, iterators)
        _write_json(temporary / "spec.json", specs.to_dict(experiment))
        _write_json(temporary / "clock.json", dict(clock))
        fields = {"format": FORMAT, "step": step, "processes": jax.process_count()}
        manifests.write(temporary, fields | {"arrays": _describe(state)})
        _commit(temporary, final)

    try:
        processes.from_first(lambda: _prepare(temporary))
        processes.together(lambda: ocp.save_checkpointables(temporary / "state", arrays))
        processes.from_first(finish)
    except Exception as error:  # Orbax raises many types for one full disk.
        if processes.first():
            shutil.rmtree(temporary, ignore_errors=True)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SaveError(
            f"checkpoint of step {step} could not be written to {directory}: {reason[:300]}; "
            f"earlier checkpoints ({_names(steps(directory))}) are intact"
        ) from error
    if processes.first():
        _delete_old(directory, keep)
    return final


def _prepare(temporary: Path) -> None:
    """An empty temporary folder, whatever an interrupted save of the same step left there."""
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "iterators").mkdir(parents=True)


def _write_iterators(temporary: Path, iterators: Mapping[str, bytes]) -> None:
    for name, position in iterators.items():
        (temporary / "iterators" / f"{quote(name, safe='')}{_ITERATOR}").write_bytes(position)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _describe(tree: Any) -> dict[str, list[Any]]:
    """Leaf path -> [shape, dtype]."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): [list(x.shape), str(x.dtype)] for p, x in leaves}


def _commit(temporary: Path, final: Path) -> None:
    if final.exists():
        _delete(final)
    os.rename(temporary, final)
    manifests.sync_folder(final.parent)


def _delete_old(directory: Path, keep: int) -> None:
    for step in steps(directory)[:-keep]:
        try:
            _delete(directory / f"{step:08d}")
        except OSError as error:
            _LOG.warning("old checkpoint %08d could not be deleted: %s", step, error)


def _delete(path: Path) -> None:
    """Renames first, so that a half-deleted folder never carries a checkpoint's name."""
    trash = path.with_suffix(".trash")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def clean(directory: Path) -> None:
    """Removes what interrupted saves and deletions left; only for the owner of the work dir."""
    for pattern in ("*.tmp", "*.trash"):
        for path in directory.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


# ------------------------------------------------------------------------------------------ reading


def steps(directory: Path) -> list[int]:
    """Steps of the committed checkpoints in a folder, ascending; [] if there is no such folder."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and p.is_dir())


def latest(directory: Path) -> Path | None:
    """The newest committed checkpoint of a folder."""
    found = steps(directory)
    return directory / f"{found[-1]:08d}" if found else None


def find(path: str | Path) -> Path:
    """What a user's path means: a checkpoint, the newest of a work dir, or released weights.

    Raises:
      UserError: nothing there is a checkpoint.
    """
    path = Path(path).expanduser().absolute()
    if weights.is_released(path):
        return path
    if path.name.isdigit() and path.is_dir():
        return path
    for directory in (path / "checkpoints", path):
        if newest := latest(directory):
            return newest
    raise UserError(
        f"{path} is not a checkpoint: "
        + ("it holds no step folder such as 00000200" if path.is_dir() else "no such folder")
        + "; give a work dir, or one step below its checkpoints/"
    )


def step_of(path: Path) -> int:
    """Training steps behind what `find` returned."""
    return weights.step_of(path) if weights.is_released(path) else int(path.name)


def verify(path: Path) -> dict[str, Any]:
    """Compares every file of a checkpoint with its manifest and returns the manifest.

    Raises:
      CorruptCheckpoint: names the first file that is missing, altered or not listed.
    """
    _check_format(path)
    return manifests.verify(path)


def _check_format(path: Path) -> dict[str, Any]:
    manifest = manifests.read(path)
    if manifest["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {manifest['format']}, this version reads {FORMAT}"
        )
    return manifest


def restore(
    directory: Path, abstract_state: Mapping[str, Any], experiment: Experiment | None = None
) -> Restored | None:
    """The newest usable checkpoint of a folder, or None if it holds none.

    A damaged checkpoint is set aside as `<step>.corrupt` with a warning; the one before it is used.
    Process 0 looks, all processes read the same one.

    Args:
      abstract_state: ShapeDtypeStructs with the shardings of the current mesh, which may differ
        from the mesh that wrote the checkpoint.
      experiment: the current one, to say what differs when the model does not fit.

    Raises:
      UserError: all checkpoints are damaged, or the newest is of another model.
    """
    step = processes.from_first(lambda: _newest_usable(directory, abstract_state, experiment))
    if step is None:
        return None
    return _read(directory.absolute() / f"{step:08d}", step, abstract_state)


def _newest_usable(
    directory: Path, abstract_state: Mapping[str, Any], experiment: Experiment | None
) -> int | None:
    found = steps(directory)
    for step in reversed(found):
        path = directory.absolute() / f"{step:08d}"
        try:
            manifest = verify(path)
        except CorruptCheckpoint as error:
            _LOG.warning("%s; falling back to the checkpoint before it", error)
            _set_aside(path)
            continue
        _check_arrays(path, manifest, abstract_state, experiment, exact_dtype=True)
        return step
    if found:
        raise UserError(
            f"every checkpoint in {directory} is damaged (steps {_names(found)}); restore the "
            "folder from a copy, or delete it to start from step 0"
        )
    return None


def _set_aside(path: Path) -> None:
    target = path.with_suffix(".corrupt")
    shutil.rmtree(target, ignore_errors=True)
    os.rename(path, target)


def _read(path: Path, step: int, abstract_state: Mapping[str, Any]) -> Restored:
    files = (path / "iterators").glob(f"*{_ITERATOR}")
    return Restored(
        step=step,
        state=_load(path, abstract_state),
        iterators={unquote(file.name.removesuffix(_ITERATOR)): file.read_bytes() for file in files},
        clock=json.loads((path / "clock.json").read_text()),
        experiment=_experiment_of(path),
    )


def _load(path: Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """All processes call it, unless the arrays lie on devices of this one alone."""
    here, leaves = jax.process_index(), jax.tree.leaves(dict(abstract))
    context = ocp.Context()
    if jax.process_count() > 1 and all(x.sharding.is_fully_addressable for x in leaves):
        context.multiprocessing.primary_host = here
        context.multiprocessing.active_processes = {here}
    with context:
        loaded = ocp.load_checkpointables(
            path / "state", {key: {"value": value} for key, value in abstract.items()}
        )
    return {key: loaded[key]["value"] for key in abstract}


def load_experiment(path: str | Path) -> Experiment:
    """The experiment of a checkpoint, of the newest one of a work dir, or of released weights."""
    path = find(path)
    if weights.is_released(path):
        return weights.load_experiment(path)
    manifests.check_file(path, "spec.json", _check_format(path))
    return _experiment_of(path)


def _experiment_of(path: Path) -> Experiment:
    return specs.from_dict(Experiment, json.loads((path / "spec.json").read_text()))


def load_params(path: str | Path, abstract_params: Any, key: str = "params") -> Any:
    """One top-level subtree of the state (`params`, `ema`), for evaluation, sampling and export.

    Args:
      path: a checkpoint, a work dir (its newest checkpoint), or released weights (`params` alone).
      abstract_params: ShapeDtypeStructs; a leaf without a sharding goes to the first local device,
        and a leaf of another dtype is cast.

    Raises:
      UserError: not a checkpoint, damaged, no such subtree, or another model size.
    """
    path = find(path)
    if weights.is_released(path):
        if key != "params":
            raise UserError(f"{path} holds released weights: params alone, no {key!r}")
        return weights.load_params(path, abstract_params)
    manifest = verify(path)
    keys = sorted(p.name for p in (path / "state").iterdir() if p.is_dir())
    if key not in keys:
        raise UserError(f"checkpoint {path} has no {key!r}{specs.near_names(key, keys)}")
    target = {key: jax.tree.map(_placed, abstract_params)}
    _check_arrays(path, manifest, target, None, exact_dtype=False)
    return _load(path, target)[key]


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_arrays(
    path: Path,
    manifest: Mapping[str, Any],
    target: Mapping[str, Any],
    experiment: Experiment | None,
    *,
    exact_dtype: bool,
) -> None:
    """Raises UserError naming the first leaf that differs from what the checkpoint holds."""
    wanted = _describe(target)
    prefixes = tuple(jax.tree_util.keystr((jax.tree_util.DictKey(key),)) for key in target)
    saved = {k: v for k, v in manifest["arrays"].items() if exact_dtype or k.startswith(prefixes)}
    compared = slice(None) if exact_dtype else slice(1)
    for leaf in [*wanted, *(saved.keys() - wanted.keys())]:
        theirs, ours = saved.get(leaf), wanted.get(leaf)
        if theirs and ours and theirs[compared] == ours[compared]:
            continue
        raise UserError(
            f"checkpoint {path} is of another model: {leaf} is {_shape(theirs)} in the checkpoint "
            f"and {_shape(ours)} in this run; {_difference(_experiment_of(path), experiment)}"
        )


def _shape(entry: list[Any] | None) -> str:
    return f"{entry[1]}{entry[0]}" if entry else "absent"


def _difference(theirs: Experiment, ours: Experiment | None) -> str:
    """The settings that shape the arrays, or only those in which two experiments differ."""
    old = _flat(theirs, ("model",) if ours is None else _SHAPING)
    if ours is None:
        return "it was trained with " + ", ".join(f"{k} = {v!r}" for k, v in old.items())
    new = _flat(ours, _SHAPING)
    changed = [f"{k} = {old[k]!r} (now {new[k]!r})" for k in old if old[k] != new[k]]
    return "it was trained with " + (", ".join(changed) or "the same model settings")


_SHAPING = ("model", "vocabulary", "text", "clip", "video_tokenizer", "optimizer")


def _flat(experiment: Experiment, sections: tuple[str, ...]) -> dict[str, Any]:
    values = specs.to_dict(experiment)
    return {f"{s.upper()}.{k}": v for s in sections for k, v in values[s].items()}


def _names(found: list[int]) -> str:
    return ", ".join(map(str, found)) or "none"
