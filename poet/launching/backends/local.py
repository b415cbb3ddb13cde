"""Processes on this machine."""

from __future__ import annotations

import dataclasses
import socket
import sys
from collections.abc import Iterator

from poet.launching import shell
from poet.launching.backend import Backend, Launch, command
from poet.launching.plan import Plan, Step
from poet.spec import Spec, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSpec(Spec):
    """Nothing to set: the machine is this one."""


def _plan(launch: Launch) -> Plan:
    job = launch.job
    if job.target and job.target.chip.platform == "tpu":
        raise UserError(f"topology: {job.topology} on this machine is found by itself: drop it")
    argv = shell.limited(command(job), job.hours, job.grace_s)
    # This interpreter: `poet` need not be on the path, nor be this one.
    argv = tuple(part for word in argv for part in (_own if word == "poet" else (word,)))
    return Plan(
        here=tuple(
            Step(argv=(*argv, *flags), does=f"process {index}", environment=job.variables | _devices(launch, index))
            for index, flags in enumerate(_places(job.process_count))
        )
    )


_own = (sys.executable, "-m", "poet.cli")


def _places(count: int) -> Iterator[tuple[str, ...]]:
    """The flags that say which of `count` processes one is."""
    if count == 1:
        yield ()
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for index in range(count):
        yield (f"--coordinator={address}", f"--processes={count}", f"--process={index}")


def _devices(launch: Launch, index: int) -> dict[str, str]:
    """Each process has its own GPUs."""
    job = launch.job
    if job.target is None or not job.on_accelerators:
        return {}
    own = job.target.size // job.process_count
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(index * own, (index + 1) * own)))}


BACKEND = Backend(title="processes on this machine", options=LocalSpec, plan=_plan)
