"""Checkpoints: written atomically, hashed file by file, restored onto any mesh.

The folder of checkpoints of a run (`poet.runs.run`) holds one folder per step (`00000200/`):

    state/        one Orbax checkpointable per top-level key of the state (params, opt_state, ...)
    iterators/    the position of every batch iterator, the same for all processes
    spec.json     the resolved experiment
    clock.json    what else the loop needs to go on
    MANIFEST      step, shape and dtype of every array, fingerprints of the frozen networks that the codes
                  come from (`poet.runs.networks`), versions of the code, SHA-256 of every file; then its own SHA-256

All of it is written under a temporary name, made durable and renamed: a folder with its final name
is complete.  Every process writes its arrays, in a folder that all of them see; process 0 writes the
rest after them.  Orbax restores flipped bits without complaint, hence the hashes.

A save holds its caller up until the arrays are copied to host memory; a thread does the rest.  It
meets the other processes at barriers of Orbax's alone, which are no programs on devices, so that
nothing can come between the collectives of training steps.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import jax
from orbax.checkpoint import v1 as ocp

from poet import spec as specs
from poet.checkpoints import policy as policies
from poet.checkpoints import stored_arrays, weights
from poet.checkpoints.apart import Apart
from poet.checkpoints.identity import identity, record
from poet.distributed import processes
from poet.runs import exits, versions
from poet.runs import manifest as manifests
from poet.runs import run as runs
from poet.runs.run import Checkpoint, Run
from poet.spec import CheckpointSpec, Experiment, Failure, UserError, limited

# What the names of iterator files end in: the process that wrote them.
_ITERATOR = ".0"
# How long processes that have written their arrays wait for one that has not, or failed to.
_STRAGGLER_S = 300
_LOG = logging.getLogger(__name__)


class SaveError(Failure):
    """A checkpoint could not be written (disk full, ...); earlier checkpoints are untouched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """The result of `restore`: `state` lives on the devices of the abstract target."""

    step: int
    state: dict[str, Any]
    iterators: dict[str, bytes]
    clock: dict[str, Any]
    experiment: Experiment


# ------------------------------------------------------------------------------------------ writing


class Saving:
    """A checkpoint of a run on its way to the disk."""

    def __init__(self, run: Run, final: Path, temporary: Path, work: Callable[[], None]):
        self._run, self._final, self._temporary = run, final, temporary
        self._error: Exception | None = None
        # A daemon: a run that is interrupted at once leaves what a killed one does.
        self._thread = threading.Thread(target=self._write, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, work: Callable[[], None]) -> None:
        begin = time.perf_counter()
        try:
            work()
        except Exception as error:  # Orbax raises many types for one full disk.
            self._error = error
            self._discard()
        else:
            _LOG.info("wrote %s in %.1f s", self._final, time.perf_counter() - begin)

    def _discard(self) -> None:
        if processes.first():
            shutil.rmtree(self._temporary, ignore_errors=True)

    def done(self) -> bool:
        """Whether this process has done its part; the part of process 0 ends after all others."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Waits for the part of this process, however it ends."""
        self._thread.join()

    def wait(self) -> Path:
        """Returns the new folder once it is whole.  Every process of the run calls it.

        Raises:
          SaveError: nothing of this checkpoint remains, and no older one was deleted.
        """
        self.join()
        try:
            processes.together(self._raise)
        except Exception as error:
            self._discard()  # Again: now nobody writes there any more.
            raise _save_error(self._run, self._final, error) from error
        return self._final

    def _raise(self) -> None:
        if self._error:
            raise self._error


def start_save(
    run: Run,
    *,
    step: int,
    state: Mapping[str, Any],
    iterators: Mapping[str, bytes],
    experiment: Experiment,
    clock: Mapping[str, Any],
    policy: CheckpointSpec,
    networks: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    spared: Callable[[], Collection[int]] = tuple,
    apart: Apart | None = None,
) -> Saving:
    """Begins to write `run.at(step)`; the checkpoints that `policy` does not keep are deleted after it.

    `networks` are the fingerprints of what the run's codes come from, `metrics` what was measured at this
    step, by name in the log; None does not say.  The steps that `spared` names then stay in any case.
    `apart`: for processes that see no common folder.

    Returns as soon as `state` is copied and may be donated.  Every process of a run calls it, and
    waits for a save before it begins the next one.

    Raises:
      SaveError: it could not be begun; as that of `Saving.wait`.
    """
    final = run.at(step).path
    temporary = final.with_suffix(".tmp")
    fields = {"format": runs.FORMAT, "step": step, "processes": jax.process_count(), "versions": versions.of_run()}
    fields["arrays"] = stored_arrays.describe(state)
    if networks is not None:
        fields["networks"] = dict(networks)
    if metrics:
        fields["metrics"] = {name: value for name, value in metrics.items() if math.isfinite(value)}

    def finish() -> None:
        write(temporary)
        if not processes.first():
            return
        _write_iterators(temporary, iterators)
        _write_json(temporary / runs.SPEC, specs.to_dict(experiment))
        _write_json(temporary / "clock.json", dict(clock))
        manifests.write(temporary, fields)
        _commit(temporary, final)
        if known := identity(run):
            record(run, known["run"], step)
        _delete_old(run, policy, spared())

    try:
        processes.from_first(lambda: _prepare(run, temporary))
        begin = functools.partial(apart.start, write=_write_alone) if apart else functools.partial(_start, temporary)
        write = processes.together(lambda: begin(state))
    except Exception as error:
        if processes.first():
            shutil.rmtree(temporary, ignore_errors=True)
        raise _save_error(run, final, error) from error
    return Saving(run, final, temporary, finish)


def save(run: Run, **options: Any) -> Path:
    """`start_save` and the wait for it; returns the new folder."""
    return start_save(run, **options).wait()


def _start(temporary: Path, state: Mapping[str, Any]) -> Callable[[Path], None]:
    """Copies the arrays to host memory; what is returned waits for the files."""
    response = _start_arrays(temporary / "state", state)
    return lambda _: response.result()


def _start_arrays(path: Path, state: Mapping[str, Any]) -> Any:
    """Copies the arrays to host memory and returns Orbax's response, whose `result()` waits for the files.

    A host that is the device is not copied from: Orbax would read the buffers that the next step
    reuses, and that step would have to copy them, one by one.
    """
    if jax.default_backend() == "cpu":
        shardings = jax.tree.map(lambda x: x.sharding, dict(state))
        state = jax.device_put(dict(state), shardings, may_alias=False)
    context = ocp.Context()
    # Weights and moments are noise to a compressor: 15 % fewer bytes for three times the CPU seconds.
    context.array.saving.use_compression = False
    context.asynchronous.timeout_secs = _STRAGGLER_S
    with context:
        return ocp.save_checkpointables_async(path, {k: {"value": v} for k, v in state.items()})


def _write_alone(path: Path, state: Mapping[str, Any]) -> None:
    """Arrays of the host, written by this process without the others.

    By Orbax's earlier interface: the later one asks all processes whether they write to the same path.
    """
    from orbax import checkpoint as v0

    here = v0.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone")
    items = {
        key: v0.PyTreeCheckpointHandler(use_zarr3=True, use_compression=False, multiprocessing_options=here)
        for key in state
    }
    options = v0.CompositeOptions(multiprocessing_options=here)
    handler = v0.CompositeCheckpointHandler(**items, composite_options=options)
    wanted = {key: v0.args.PyTreeSave({"value": value}) for key, value in state.items()}
    with v0.Checkpointer(handler, multiprocessing_options=here) as writer:
        writer.save(path, v0.args.Composite(**wanted))


def _save_error(run: Run, final: Path, error: Exception) -> SaveError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    found = SaveError(
        f"checkpoint of step {int(final.name)} could not be written to {final.parent}: {reason[:300]}; "
        f"earlier checkpoints ({_names(run.steps())}) are intact"
    )
    if code := getattr(error, "exit_code", None):  # As the process that failed has it.
        found.exit_code = code
    return found


def _prepare(run: Run, temporary: Path) -> None:
    """An empty temporary folder, and nothing of what earlier saves left behind."""
    run.clean()
    (temporary / "iterators").mkdir(parents=True)


def _write_iterators(temporary: Path, iterators: Mapping[str, bytes]) -> None:
    for name, position in iterators.items():
        (temporary / "iterators" / f"{quote(name, safe='')}{_ITERATOR}").write_bytes(position)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _commit(temporary: Path, final: Path) -> None:
    if final.exists():
        _delete(final)
    os.rename(temporary, final)
    manifests.sync_folder(final.parent)


def _delete_old(run: Run, policy: CheckpointSpec, spared: Collection[int]) -> None:
    measured = {step: _measured(run.at(step)) for step in run.steps()}
    for step in measured.keys() - policies.kept(measured, policy) - set(spared):
        try:
            _delete(run.at(step).path)
        except OSError as error:
            _LOG.warning("old checkpoint %08d could not be deleted: %s", step, error)


def _measured(found: Checkpoint) -> Mapping[str, float]:
    try:
        return found.metrics
    except manifests.Corrupt:
        return {}


def _delete(path: Path) -> None:
    """Renames first, so that a half-deleted folder never carries a checkpoint's name."""
    trash = path.with_suffix(".trash")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


# ------------------------------------------------------------------------------------------ reading


def restore(run: Run, abstract_state: Mapping[str, Any], apart: Apart | None = None) -> Restored | None:
    """The newest usable checkpoint of a run, or None if it has none.

    A damaged checkpoint is set aside as `<step>.corrupt` with a warning; the one before it is used.
    Process 0 looks, all processes read the same one.

    Args:
      abstract_state: ShapeDtypeStructs with the shardings of the current mesh, which may differ
        from the mesh that wrote the checkpoint.
      apart: for processes that see no common folder.

    Raises:
      exits.Permanent: all checkpoints are damaged.
      UserError: the newest is of another model.
    """
    step = processes.from_first(lambda: _newest_usable(run, abstract_state))
    if step is not None and apart:
        apart.bring(step)
    return None if step is None else _read(run.at(step), abstract_state, alone=apart is not None)


def _newest_usable(run: Run, abstract_state: Mapping[str, Any]) -> int | None:
    for step in reversed(run.steps()):
        checkpoint = run.at(step)
        try:
            stored = checkpoint.verify()["arrays"]
        except manifests.Corrupt as error:
            _LOG.warning("%s; falling back to the checkpoint before it", error)
            run.put_aside(checkpoint)
            continue
        stored_arrays.check(checkpoint.path, stored, abstract_state, exact=True)
        return step
    if damaged := run.set_aside():
        raise exits.Permanent(
            f"every checkpoint in {run.checkpoints} is damaged (steps {_names(damaged)}, set aside as "
            f"*{runs.DAMAGED}); restore one from a copy, or delete the folder to start from step 0"
        )
    return None


def _read(checkpoint: Checkpoint, abstract_state: Mapping[str, Any], *, alone: bool) -> Restored:
    files = (checkpoint.path / "iterators").glob(f"*{_ITERATOR}")
    return Restored(
        step=checkpoint.step,
        state=_load(checkpoint.path, abstract_state, alone=alone),
        iterators={unquote(file.name.removesuffix(_ITERATOR)): limited(file).read_bytes() for file in files},
        clock=json.loads(limited(checkpoint.path / "clock.json").read_text()),
        experiment=checkpoint.spec,
    )


def _load(path: Path, abstract: Mapping[str, Any], *, alone: bool = False) -> dict[str, Any]:
    """All processes call it, unless the arrays lie on devices of this one alone; `alone`: each reads its own folder."""
    here, leaves = jax.process_index(), jax.tree.leaves(dict(abstract))
    context = ocp.Context()
    alone = alone or all(x.sharding.is_fully_addressable for x in leaves)
    if jax.process_count() > 1 and alone:
        context.multiprocessing.primary_host = here
        context.multiprocessing.active_processes = {here}
    with context:
        loaded = ocp.load_checkpointables(path / "state", {key: {"value": value} for key, value in abstract.items()})
    return {key: loaded[key]["value"] for key in abstract}


def load_params(run: Run, abstract_params: Any, key: str = "params", new: Mapping[str, jax.Array] | None = None) -> Any:
    """One top-level subtree of the state (`params`, `ema`), for evaluation, sampling and export.

    Args:
      run: its `checkpoint` is read; of released weights `params` alone.
      abstract_params: ShapeDtypeStructs; a leaf without a sharding goes to the first local device,
        and a leaf of another dtype is cast.
      new: dotted name -> array of the leaves that are not read, but these.

    Raises:
      UserError: not a checkpoint, damaged, no such subtree, or another model size.
    """
    if new:
        return _with(load_params(run, _without(abstract_params, new), key), new)
    checkpoint = run.checkpoint
    path = checkpoint.path
    if checkpoint.released:
        if key != "params":
            raise UserError(f"{path} holds released weights: params alone, no {key!r}")
        return weights.load_params(path, abstract_params)
    stored = checkpoint.verify()["arrays"]
    keys = sorted(p.name for p in (path / "state").iterdir() if p.is_dir())
    if key not in keys:
        raise UserError(f"checkpoint {path} has no {key!r}{specs.near_names(key, keys)}")
    target = {key: jax.tree.map(_placed, abstract_params)}
    stored_arrays.check(path, stored, target, exact=False)
    return _load(path, target)[key]


def _without(tree: Any, names: Collection[str], above: str = "") -> Any:
    """Nested dicts without the leaves of these dotted names."""
    if not isinstance(tree, Mapping):
        return tree
    kept = {k: _without(v, names, f"{above}{k}.") for k, v in tree.items() if f"{above}{k}" not in names}
    return {k: v for k, v in kept.items() if v != {}}


def _with(tree: dict[str, Any], leaves: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Nested dicts, with these arrays at their dotted names."""
    for name, leaf in leaves.items():
        *path, last = name.split(".")
        node = functools.reduce(lambda above, part: above.setdefault(part, {}), path, tree)
        node[last] = leaf
    return tree


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _names(found: list[int]) -> str:
    return ", ".join(map(str, found)) or "none"
