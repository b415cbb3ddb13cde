"""What a backend is.  A file of `poet.launching.backends` that declares `BACKEND` is one, called as the file is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poet.launching.job import Job
from poet.launching.plan import Plan
from poet.runs import assets
from poet.spec import Spec, UserError

# Where processes of one job meet, unless the platform has a port of its own.
PORT = 8476


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What a plan is made from.

    Attributes:
      job: what is run.
      options: the section of this backend.
      name: of everything that is allocated, unique.
      folder: absolute, where the plan's files lie.
    """

    job: Job
    options: Any
    name: str
    folder: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """A place where jobs run.

    Attributes:
      title: what it is, a few words.
      options: the type of its section in a description.
      programs: what must be installed here.
      plan: raises UserError for a job that cannot run there.
    """

    title: str
    options: type[Spec]
    programs: tuple[str, ...] = ()
    plan: Callable[[Launch], Plan]


def command(job: Job, *flags: str) -> tuple[str, ...]:
    """The words of one process, under a supervisor that starts it again after a crash."""
    return ("poet", "supervise", "--", *job.command_line[1:], *flags)


def need(launch: Launch, field: str, why: str) -> str:
    """A field of the job that this backend cannot do without; UserError where it is empty."""
    value = getattr(launch.job, field)
    if not value:
        raise UserError(f"{field} is missing: {why}")
    return value


def check_container(launch: Launch) -> None:
    """Raises UserError for a job that a container on another machine cannot run: no image, files of this machine."""
    need(launch, "image", "this backend runs containers: name an image, with its tag or digest")
    for file in launch.job.gin_files:
        if not (Path(file).is_absolute() or (assets.root() / file).exists()):
            raise UserError(
                f"gin_files: {file} is not in the image: use a shipped file with bindings, or the absolute path of a "
                "file that was built into the image"
            )


def check_remote_workdir(launch: Launch) -> None:
    """Raises UserError for a work dir that dies with the machine."""
    job = launch.job
    if "://" not in job.workdir:
        if job.workdir and not Path(job.workdir).is_absolute():
            raise UserError(f"workdir: {job.workdir} is relative: name a mounted, absolute path, or gs://BUCKET/FOLDER")
        return
    if not job.workdir.startswith("gs://"):
        raise UserError(
            f"workdir: {job.workdir} is no folder, and of buckets those at gs:// alone are written: mount it"
        )


def buckets(job: Job) -> list[str]:
    """The buckets, as gs://NAME, that a job's settings name."""
    words = [job.workdir, *(binding.partition("=")[2] for binding in job.bindings)]
    found = [word for word in words if word.startswith("gs://")]
    return sorted({"/".join(word.split("/")[:3]) for word in found})
