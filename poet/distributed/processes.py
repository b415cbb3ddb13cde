"""Several processes of one run: how they find each other, share out data, and decide together.

Every process runs the same program.  What one of them alone can know or do (a file that is damaged, a
signal, a folder to write) goes through `from_first`, `together` or `Vote`, so that all take the same way.
With one process all of these cost nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from poet.distributed import mesh as mesh_lib
from poet.runs import exits
from poet.spec import Failure, MeshSpec, UserError

T = TypeVar("T")
AUTO = "auto"
# A process that has not been heard of for so long is dead, and ends the run.
HEARTBEAT_S = 30
# How long processes that are done wait for one that is not (process 0 writes tokenizers and reports).
_END_S = 24 * 3600
# How much later JAX would abort a process that waits for the others.
_ABORT_S = 60
# What process 0, where the others' coordinator lives, leaves them to say why they end.
_LAST_WORDS_S = 3.0
# How long a process that ends a hung run waits for the others to say that they live.
_ABSENT_S = 10.0
_LOG = logging.getLogger(__name__)
# Whether `start` found the others.
_joined = False


# ------------------------------------------------------------------------------------------ starting


def start(coordinator: str, count: int | None = None, index: int | None = None, wait_s: float = 300.0) -> None:
    """Joins the processes of a run; before anything touches a device.  One process does nothing.

    Args:
      coordinator: HOST:PORT where process 0 listens; 'auto' asks the cluster (TPU pods, Slurm, Open MPI,
        Kubernetes) for all three; '' is one process.
      count, index: how many processes there are, and which one this is.
      wait_s: how long all of them may take to come.

    Raises:
      UserError: some of the three are missing or impossible, the others did not come in time, or they
        have different numbers of devices.
    """
    options = _options(coordinator, count, index)
    if options is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take over SIGTERM, in every command; the loop has its own way (`Vote`).
    jax.config.update("jax_enable_preemption_service", False)
    join = functools.partial(
        jax.distributed.initialize,
        **options,
        initialization_timeout=round(wait_s) + _ABORT_S,
        heartbeat_timeout_seconds=HEARTBEAT_S,
        shutdown_timeout_seconds=_END_S,
    )
    try:
        _within(wait_s, join)
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(_no_start(coordinator, count, index, wait_s, error)) from error
    global _joined
    _joined = True
    _check_devices()
    _LOG.info("process %d of %d", jax.process_index(), jax.process_count())


def _within(seconds: float, work: Callable[[], Any]) -> None:
    """Runs `work`, and raises TimeoutError where it takes longer; it may then go on for a while.

    JAX aborts a process that cannot join the others in time, so the wait must end before that.
    """
    caught: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError("no answer, or not all of them came")
    if caught:
        raise caught[0]


def _options(coordinator: str, count: int | None, index: int | None) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None for a process on its own."""
    given = {"--coordinator": coordinator or None, "--processes": count, "--process": index}
    missing = [flag for flag, value in given.items() if value is None]
    if coordinator == AUTO:
        if len(missing) < 2:
            raise UserError(
                "--coordinator=auto takes the number and the index of processes from the cluster: "
                "drop --processes and --process, or give --coordinator=HOST:PORT"
            )
        return {}
    if len(missing) == 3:
        return None
    if missing:
        raise UserError(
            f"{' and '.join(missing)} missing: several processes need --coordinator=HOST:PORT (where "
            "process 0 listens), --processes=N and --process=I; or --coordinator=auto in a cluster"
        )
    check_index(index, count)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator}: give HOST:PORT, such as 10.0.0.1:1234")
    options = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    if host in ("localhost", "127.0.0.1"):
        options["coordinator_bind_address"] = coordinator  # By default it would listen everywhere.
    return options


def check_index(index: int, count: int) -> None:
    """Raises UserError unless `index` is one of `count` processes."""
    if count < 1 or not 0 <= index < count:
        raise UserError(f"process {index} of {count}: the index must lie in 0..{max(count, 1) - 1}")


def _no_start(coordinator: str, count: int | None, index: int | None, wait_s: float, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if coordinator == AUTO:
        return (
            f"--coordinator=auto found no cluster that JAX knows, or not all of its processes came "
            f"within {wait_s:g} s ({reason}); give --coordinator=HOST:PORT --processes=N --process=I"
        )
    return (
        f"process {index} of {count} found no run at --coordinator={coordinator} within {wait_s:g} s "
        f"({reason}); start all {count} processes with that address, which must be free and within "
        "reach, or raise --coordinator_wait_s"
    )


def _check_devices() -> None:
    counts = [0] * jax.process_count()
    for device in jax.devices():
        counts[device.process_index] += 1
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes have different numbers of devices ({', '.join(map(str, counts))}): give "
            "each as many, for instance with CUDA_VISIBLE_DEVICES"
        )


def index() -> int:
    """The index of this process, 0..N-1."""
    return jax.process_index()


def first() -> bool:
    """Whether this is the process that writes: logs, metrics, specs, manifests, reports."""
    return jax.process_index() == 0


def leave(code: int) -> None:
    """Ends a process that failed among several; returns where there is only one.

    An ordinary exit would wait for the others, which wait for this one.
    """
    if not jax.distributed.is_initialized():
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if _joined and first():
        time.sleep(_LAST_WORDS_S)
    os._exit(code)


def absent(wait_s: float = _ABSENT_S) -> list[int]:
    """Processes that do not come to this call within `wait_s` seconds: they are dead, or stand still.

    Every process that works calls it, from any thread and at most once.
    """
    from jax._src import distributed  # JAX has no public barrier that ends.

    client = distributed.global_state.client
    if client is None:
        return []
    try:
        client.wait_at_barrier("absent", round(wait_s * 1000))
    except Exception as error:  # JAX's own types.
        return sorted(map(int, re.findall(r"^(?:.*/task:)?(\d+)$", str(error), re.M)))
    return []


# --------------------------------------------------------------------------------- slices of the data


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of every global batch that one process feeds: `parts` of `of` equal ones, ascending.

    Processes whose devices hold the same rows have equal slices; all others have nothing in common,
    and together they have everything.
    """

    parts: tuple[int, ...] = (0,)
    of: int = 1

    @property
    def whole(self) -> bool:
        return len(self.parts) == self.of

    def rows(self, batch: int, what: str = "the batch") -> np.ndarray:
        """int64, ascending; UserError unless the batch divides into the parts."""
        if batch % self.of:
            raise UserError(
                f"{what} is {batch}, which cannot be cut into {self.of} equal parts for the devices "
                f"of all processes: make it a multiple of {self.of}"
            )
        return np.arange(batch).reshape(self.of, -1)[list(self.parts)].ravel()


def batch_share(mesh: Mesh) -> Share:
    """This process's slice of batches that are split over the leading axes of a mesh (`BATCH_AXES`)."""
    rows = math.prod(mesh.devices.shape[: len(mesh_lib.BATCH_AXES)])
    shards = mesh.devices.reshape(rows, -1)
    here = jax.process_index()
    own = (i for i, row in enumerate(shards) if any(d.process_index == here for d in row))
    return Share(tuple(own), len(shards))


def global_array(local: np.ndarray, sharding: Sharding, share: Share) -> jax.Array:
    """One batch of all processes, from the own rows of each."""
    if jax.process_count() == 1:
        return jax.device_put(local, sharding)
    batch = len(local) * share.of // len(share.parts)
    rows = share.rows(batch)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(batch)
        begin = int(np.searchsorted(rows, start))
        return local[(slice(begin, begin + stop - start), *index[1:])]

    return jax.make_array_from_callback((batch, *local.shape[1:]), sharding, shard)


def replicated(value: Any, mesh: Mesh) -> jax.Array:
    """A host value, equal on all processes, on every device of a mesh."""
    value, sharding = np.asarray(value), NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def whole(array: jax.Array) -> np.ndarray:
    """The value of an array on every process; all of them must ask."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, programs run on one device of this process, whatever mesh is set outside."""
    with jax.set_mesh(mesh_lib.build(MeshSpec(), jax.local_devices()[:1])):
        yield


# --------------------------------------------------------------------------------- deciding together


def from_first(decide: Callable[[], Any]) -> Any:
    """The result of `decide` on process 0 (a value of JSON), on every process.

    An exception of it is raised everywhere, so that nobody waits for a process that gave up.
    """
    if jax.process_count() == 1:
        return decide()
    answer, caught = {}, None
    if first():
        try:
            answer = {"value": decide()}
        except Exception as error:
            answer = {"error": str(error), "user": isinstance(error, UserError), "code": exits.of(error)}
            caught = error
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if caught:
        raise caught
    if "error" in answer:
        error = (UserError if answer["user"] else RuntimeError)(answer["error"])
        error.exit_code = answer["code"]
        raise error
    return answer["value"]


def _broadcast(data: bytes) -> bytes:
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    size = 1 << max(length, 1024).bit_length()  # Few sizes, few programs.
    buffer = np.zeros(size, np.uint8)
    if first():
        buffer[:length] = np.frombuffer(data, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))[:length])


def together(work: Callable[[], T]) -> T:
    """Runs `work` on every process; where one of them fails, all of them raise, and end with the exit code of the first
    that failed."""
    if jax.process_count() == 1:
        return work()
    result, caught = None, None
    try:
        result = work()
    except Exception as error:
        caught = error
    codes = multihost_utils.process_allgather(np.array(exits.of(caught) if caught else exits.FINISHED))
    if caught:
        raise caught
    if failed := np.flatnonzero(codes).tolist():
        error = Failure(f"process {', '.join(map(str, failed))} failed; see its own messages")
        error.exit_code = int(codes[failed[0]])
        raise error
    return result


def everywhere(true: bool) -> bool:
    """Whether something is true on every process; all of them ask."""
    return jax.process_count() == 1 or bool(multihost_utils.process_allgather(np.array(true)).all())


def tell(name: str, value: str) -> None:
    """Says something to who hears that name, once, from any thread."""
    _client().key_value_set(name, value)


def hear(name: str, wait_s: float = 3600.0) -> str:
    """What another process told, or tells within `wait_s` seconds; Failure if nothing."""
    try:
        return _client().blocking_key_value_get(name, round(wait_s * 1000))
    except Exception as error:  # JAX's own types.
        raise Failure(f"no process told {name} within {wait_s:g} s: {str(error).splitlines()[0][:200]}") from None


def _client() -> Any:
    from jax._src import distributed  # JAX has no public way between two processes without their devices.

    return distributed.global_state.client


def newest_of_all(steps: Iterable[int]) -> int | None:
    """The greatest number that every process names, of the two greatest of each; None is none.  All of them ask."""
    own = (sorted(steps, reverse=True) + [-1, -1])[:2]
    if jax.process_count() == 1:
        return own[0] if own[0] >= 0 else None
    named = multihost_utils.process_allgather(np.array(own, np.int32))
    common = set.intersection(*(set(row) for row in named.tolist())) - {-1}
    return max(common, default=None)


class Vote:
    """Whether any process says yes.  The answer comes with the next question, so that nobody waits.

    All processes get the same answers, question by question.  One process gets its own at once.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._devices = mesh.size
        self._asked: jax.Array | None = None

    def __call__(self, yes: bool) -> bool:
        if jax.process_count() == 1:
            return yes
        votes = jax.make_array_from_callback((self._devices,), self._sharding, lambda index: np.array([yes], np.int32))
        previous, self._asked = self._asked, _most(votes)
        return previous is not None and bool(previous)


@jax.jit
def _most(votes: jax.Array) -> jax.Array:
    return votes.max()
