"""A container on this machine."""

from __future__ import annotations

import dataclasses
import os

from poet.launching import shell
from poet.launching.backend import Backend, Launch, command, need
from poet.launching.plan import Plan, Step
from poet.spec import Spec, UserError, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class DockerSpec(Spec):
    """How the container sees this machine.

    Attributes:
      volumes: HOST:CONTAINER[:ro], one for each folder that the job reads or writes.
      user: UID[:GID] that owns what is written; '' is the one who launches.
      memory: of shared memory, such as 8g.
      program: docker, or podman.
    """

    volumes: tuple[str, ...] = setting((), changes="nothing")
    user: str = setting("", changes="nothing")
    memory: str = setting("8g", changes="nothing")
    program: str = setting("docker", changes="nothing", one_of=("docker", "podman"))

    def validate(self) -> None:
        rooted = all(":/" in volume for volume in self.volumes)
        self.require(rooted, "volumes", "give HOST:CONTAINER with absolute paths, such as /data:/data:ro")


def _plan(launch: Launch) -> Plan:
    job, options = launch.job, launch.options
    image = need(launch, "image", "name the image that is run, such as one of launch/Containerfile.train")
    if job.process_count > 1:
        raise UserError("processes: a container here is one process, which drives all devices of the machine: drop it")
    if job.target and job.target.chip.platform == "tpu":
        raise UserError(f"topology: {job.topology} is rented by the backend tpu; on a TPU VM of yours use tpu.node")
    program = options.program
    argv = (
        *(program, "run", "--rm", "--init", f"--name={launch.name}"),
        f"--user={options.user or f'{os.getuid()}:{os.getgid()}'}",
        f"--stop-timeout={job.grace_s}",
        f"--shm-size={options.memory}",
        *(["--gpus=all"] if job.on_accelerators else []),
        *(f"--volume={volume}" for volume in options.volumes),
        *(f"--env={name}={value}" for name, value in sorted(job.variables.items())),
        image,
        *shell.limited(command(job), job.hours, job.grace_s),
    )
    remove = Step(argv=(program, "rm", "--force", launch.name), does="removes the container")
    halt = Step(
        argv=(program, "stop", f"--time={job.grace_s}", launch.name), does="asks the container to save and stop"
    )
    check = Step(
        argv=(program, "run", "--rm", "--entrypoint=python", image, "-c", _DEVICES[job.on_accelerators]),
        does="looks for poet, and for JAX's plugin of the devices, in the image",
    )
    return Plan(checks=(check,), here=(Step(argv=argv, does="runs the job"),), stop=(halt, remove))


# An image without its plugin would train on the CPUs.
_DEVICES = {False: "import poet, jax", True: "import poet, jax, jax_cuda13_plugin"}

BACKEND = Backend(title="a container on this machine", options=DockerSpec, plan=_plan)
