"""Local snapshots: the state of this process in the memory of its machine, every few steps.

A tier below the checkpoints of `poet.checkpoints.checkpoint`: it survives the death of processes, not that of machines,
and costs training only the copy to host memory.  Each process writes the shards that its own devices hold, in one
file of safetensors, and keeps two of them: a process that is killed while it writes has the one before, and processes
whose newest steps differ have one in common.  A restart reads the newest step that all processes have, on the same
mesh and with the same settings; otherwise there is the newest checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from poet import spec as specs
from poet.checkpoints import shards
from poet.checkpoints.checkpoint import Restored
from poet.checkpoints.identity import identity, record
from poet.distributed import processes
from poet.runs.run import Run
from poet.spec import Experiment, UserError, compat

_KEPT = 2
_ENDING = ".safetensors"
_LOG = logging.getLogger(__name__)


class Snapshots:
    """The snapshots of one process of a run; without CHECKPOINT.local it does nothing.

    A snapshot that cannot be written (memory full) is logged, and training goes on.
    """

    def __init__(self, run: Run, experiment: Experiment, made_with: Mapping[str, str] | None = None):
        self._run, self._experiment, self._policy = run, experiment, experiment.checkpoint
        self._made_with = dict(made_with or {})
        self._thread: threading.Thread | None = None
        self._folder: Path | None = None
        if self._policy.local:
            self._check_place()

    def _check_place(self) -> None:
        try:
            Path(self._policy.local).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._policy.local):
                pass
        except OSError as error:
            raise UserError(
                f"CHECKPOINT.local = {self._policy.local!r} cannot be written to ({error.strerror}): give a folder in "
                "memory, such as '/dev/shm/poet', or '' for no local snapshots"
            ) from None

    def due(self, step: int) -> bool:
        """Whether a snapshot is taken at this step; the same for all processes."""
        return bool(self._policy.local) and step % self._policy.local_every == 0

    def take(self, step: int, state: Any, iterators: Mapping[str, bytes], clock: Mapping[str, Any]) -> None:
        """Copies the state to host memory and writes it beside the steps that follow.

        `state` may be donated when this returns.  Where the snapshot before is still being written, there is none.
        """
        if self._thread and self._thread.is_alive():
            _LOG.info("no snapshot of step %d: the one before is still being written", step)
            return
        arrays = shards.held(state)
        fields = {
            "step": step,
            "experiment": specs.to_dict(self._experiment),
            "made_with": self._made_with,
            "clock": dict(clock),
            "iterators": {name: position.hex() for name, position in iterators.items()},
        }
        self._thread = threading.Thread(target=self._write, args=(step, arrays, fields), name="snapshot", daemon=True)
        self._thread.start()

    def restore(self, abstract: Mapping[str, Any]) -> Restored | None:
        """The newest snapshot that all processes have, or None where it is not newer than the newest checkpoint.

        Args:
          abstract: ShapeDtypeStructs with their shardings; every process calls it.
        """
        if not self._policy.local:
            return None
        identity, newest, went_back = processes.from_first(self._identify)
        self._folder = self._place(identity)
        if went_back:
            self.clear()
        found = {file.step: file for file in self._files() if file.step > newest and self._fits(file, abstract)}
        step = processes.newest_of_all(found)
        if step is None:
            return None
        file = found[step]
        _LOG.info("step %d is in the memory of this machine: no checkpoint is read", step)
        return Restored(
            step=step,
            state=file.load(abstract),
            iterators={name: bytes.fromhex(position) for name, position in file.fields["iterators"].items()},
            clock=file.fields["clock"],
            experiment=file.experiment,
        )

    def clear(self) -> None:
        """Deletes all snapshots of this process: its run is over, or goes on from an earlier step."""
        if self._thread:
            self._thread.join()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---------------------------------------------------------------------------------------- files

    def _identify(self) -> tuple[str, int, bool]:
        """(the identity of this run's checkpoints, the newest step, whether there was a newer one).

        A new run in the same place never meets snapshots of the old one, nor does one whose user deleted the newest
        checkpoint to go back.
        """
        known, newest = identity(self._run), max(self._run.steps(), default=0)
        name = str(known.get("run") or secrets.token_hex(8))
        record(self._run, name, newest)
        return name, newest, newest < known.get("newest", 0)

    def _place(self, identity: str) -> Path:
        """The folder of this process: copies of a work dir have others."""
        own = hashlib.sha256(f"{identity} {self._run.folder.resolve()}".encode()).hexdigest()[:16]
        return Path(self._policy.local) / own / f"{jax.process_index()}-of-{jax.process_count()}"

    def _write(self, step: int, arrays: dict[str, np.ndarray], fields: dict[str, Any]) -> None:
        from safetensors.numpy import save_file

        assert self._folder is not None
        final = self._folder / f"{step:08d}{_ENDING}"
        temporary = final.with_suffix(".tmp")
        begin = time.perf_counter()
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for old in sorted(self._folder.glob(f"*{_ENDING}"))[: -(_KEPT - 1)]:
                old.unlink()
            sums = {name: zlib.crc32(np.ascontiguousarray(a).view(np.uint8).data) for name, a in arrays.items()}
            save_file(arrays, temporary, {"poet": json.dumps(fields | {"crc32": sums})})
            os.rename(temporary, final)
        except Exception as error:  # OSError, or safetensors' own type for a full disk.
            temporary.unlink(missing_ok=True)
            _LOG.warning("no snapshot of step %d in %s: %s", step, self._folder, error)
        else:
            _LOG.debug("snapshot of step %d in %.2f s", step, time.perf_counter() - begin)

    def _files(self) -> list[_File]:
        assert self._folder is not None
        found = (_File.open(path) for path in sorted(self._folder.glob(f"*{_ENDING}")))
        return [file for file in found if file]

    def _fits(self, file: _File, abstract: Mapping[str, Any]) -> bool:
        """Whether a snapshot continues this run: its settings, its networks and its mesh."""
        turned = {d.changes for d in compat.every_difference(file.experiment, self._experiment)}
        alike = turned <= {"course", "nothing"} and file.fields["made_with"] == self._made_with
        return alike and file.holds(abstract)


@dataclasses.dataclass(frozen=True)
class _File:
    """A snapshot whose bytes are whole."""

    step: int
    experiment: Experiment
    fields: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def open(cls, path: Path) -> _File | None:
        """None for a damaged file, and for whatever else lies there."""
        from safetensors import SafetensorError, safe_open
        from safetensors.numpy import load_file

        try:
            with safe_open(path, "np") as file:
                fields = json.loads(file.metadata()["poet"])
            experiment, arrays = specs.from_dict(Experiment, fields["experiment"]), load_file(path)
            whole = all(zlib.crc32(a.view(np.uint8).data) == fields["crc32"][n] for n, a in arrays.items())
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # UserError, of another version, is one.
            whole = False
        if not whole:
            _LOG.warning("the snapshot %s is damaged", path)
            return None
        return cls(fields["step"], experiment, fields, arrays)

    def holds(self, abstract: Mapping[str, Any]) -> bool:
        """Whether every shard that this process needs is here."""
        for name, leaf in shards.leaves(abstract):
            for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values():
                found = self.arrays.get(shards.key(name, index, leaf.shape))
                if found is None or found.dtype != leaf.dtype:
                    return False
        return True

    def load(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        def array(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            shard: Callable[[Any], np.ndarray] = lambda index: self._shard(name, index, leaf.shape)
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)

        leaves = [array(name, leaf) for name, leaf in shards.leaves(abstract)]
        return jax.tree.unflatten(jax.tree.structure(dict(abstract)), leaves)

    def _shard(self, name: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
        sizes = [len(range(*part.indices(size))) for part, size in zip(index, shape)]
        return self.arrays[shards.key(name, index, shape)].reshape(sizes)
