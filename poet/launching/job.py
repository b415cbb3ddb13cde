"""A job as a user describes it, in YAML; a section for each backend holds what only that one needs.

name: pretrain-1b
gin_files: gin/experiments/pretrain_1b.gin
bindings: {DATA.store: /mnt/poet/codes}
workdir: /mnt/poet/runs/pretrain-1b
topology: v5e-256
backend: tpu
tpu: {project: my-project, zone: us-west4-a, setup: [mount /mnt/poet], volumes: ["/mnt/poet:/mnt/poet"]}
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poet.launching import hardware
from poet.planning import topologies
from poet.spec import Spec, UserError, foreign, from_dict, near_names, setting

COMMANDS = ("train", "tokenizer-train", "tokenize", "eval")
# Of these, those that write to a work dir and resume from it.
_WITH_WORKDIR = COMMANDS[:2]
# A label of DNS, which Kubernetes and Google ask for, with space for a suffix that makes it unique.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(Spec):
    """What is run, and on what.

    Attributes:
      name: begins the name of everything that is allocated.
      command: of `poet`, such as train.
      gin_files, size, bindings: its settings, as --gin_file, --size and --gin.NAME.field=value give them.
      arguments: further flags of the command, such as --checkpoint=...
      workdir: of a training; a folder that every process sees, or gs://BUCKET/FOLDER.
      topology: hardware by its name (`poet.planning.topologies`); '': the devices that are there.
      processes: 0 is one for each host of the topology.
      image: a container with poet, for backends that run containers.
      environment: variables of every process.
      queue: a partition of SLURM, a local queue of Kueue.
      spot: hardware that may be taken away at any time, at a lower price.
      hours: after so many (0: no limit) a training saves and the job ends; SLURM queues it again.
      restarts: after lost hardware, how often the whole job may start again.
      wait_s: seconds before such a restart.
      grace_s: seconds from the signal to stop to the kill, in which a training saves.
      backend: where it runs, unless --backend says otherwise.
    """

    name: str = setting(changes="nothing")
    command: str = setting("train", changes="nothing", one_of=COMMANDS)
    gin_files: tuple[str, ...] = setting((), changes="nothing")
    size: str = setting("", changes="nothing")
    bindings: tuple[str, ...] = setting((), changes="nothing")
    arguments: tuple[str, ...] = setting((), changes="nothing")
    workdir: str = setting("", changes="nothing")
    topology: str = setting("", changes="nothing")
    processes: int = setting(0, changes="nothing", at_least=0, at_most=2**16)
    image: str = setting("", changes="nothing")
    environment: dict[str, str] = setting(changes="nothing", default_factory=dict)
    queue: str = setting("", changes="nothing")
    spot: bool = setting(False, changes="nothing")
    hours: float = setting(0.0, changes="nothing", at_least=0, at_most=24 * 365)
    restarts: int = setting(100, changes="nothing", at_least=0, at_most=10**6)
    wait_s: float = setting(60.0, changes="nothing", at_least=0, at_most=86_400)
    grace_s: int = setting(120, changes="nothing", at_least=1, at_most=3600)
    backend: str = setting("local", changes="nothing")

    def validate(self) -> None:
        self.require(bool(_NAME.fullmatch(self.name)), "name", "use 1..40 lower-case letters, digits and hyphens")
        self.require(bool(self.gin_files or self.size), "gin_files", "name a gin file, or a size")
        writes = self.command in _WITH_WORKDIR
        self.require(bool(self.workdir) or not writes, "workdir", f"{self.command} writes there: name a folder")
        self.require(writes or not self.workdir, "workdir", f"{self.command} has no work dir: use arguments")
        flags = all(word.startswith("--") for word in self.arguments)
        self.require(flags, "arguments", "give flags as --name=value")
        names = all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in self.environment)
        self.require(names, "environment", "names of variables are letters, digits and _")
        self._check_hardware()

    def _check_hardware(self) -> None:
        if self.target is None:
            return
        count, hosts = self.process_count, hardware.hosts(self.target)
        devices = self.target.size
        self.require(devices % count == 0, "processes", f"{devices} devices cannot be split evenly among them")
        only = self.target.chip.platform == "tpu" and count != hosts
        self.require(not only, "processes", f"{self.topology} has {hosts} hosts, each with one process: drop it")

    @classmethod
    def gin_name(cls) -> str:
        """Its name in messages."""
        return "job"

    @functools.cached_property
    def target(self) -> topologies.Topology | None:
        """The hardware; None for what is there."""
        return topologies.parse(self.topology) if self.topology else None

    @property
    def process_count(self) -> int:
        return self.processes or (hardware.hosts(self.target) if self.target else 1)

    @property
    def command_line(self) -> tuple[str, ...]:
        """The words of one process, without those that say which process it is."""
        return (
            "poet",
            self.command,
            *(f"--gin_file={file}" for file in self.gin_files),
            *([f"--size={self.size}"] if self.size else []),
            *(f"--gin.{binding}" for binding in self.bindings),
            *([f"--workdir={self.workdir}"] if self.workdir else []),
            *self.arguments,
        )

    @property
    def variables(self) -> dict[str, str]:
        """The environment of one process: JAX fails at once where its devices are missing, instead of using CPUs."""
        if self.target is None:
            return self.environment
        if self.on_accelerators:
            return {"JAX_PLATFORMS": f"{self.target.chip.platform},cpu"} | self.environment
        own = self.target.size // self.process_count
        virtual = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={own}", "JAX_PLATFORMS": "cpu"}
        return virtual | self.environment

    @property
    def on_accelerators(self) -> bool:
        return self.target is not None and self.target.chip.platform != "cpu"


@dataclasses.dataclass(frozen=True)
class Description:
    """A job and the options of every backend, by the backend's name."""

    job: Job
    options: Mapping[str, Spec]


def read(path: str | Path, sections: Mapping[str, type[Spec]]) -> Description:
    """The description in a YAML file; `sections` are the types of the backends' options by name.

    Raises:
      UserError: no such file, a field that is unknown (with near names) or has another type or value than allowed, or
        fields that contradict each other.
    """
    try:
        return parse(_text(Path(path)), sections)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _text(file: Path) -> str:
    try:
        if not file.is_file():
            raise UserError("not a file" if file.exists() else "no such file")
        return foreign.limited(file, foreign.WRITTEN).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read as UTF-8 text: {error}") from None


def parse(text: str, sections: Mapping[str, type[Spec]]) -> Description:
    """As `read`, from the text itself."""
    values = _mapping(text)
    names = [field.name for field in dataclasses.fields(Job)]
    for key in values:
        if key not in names and key not in sections:
            raise UserError(f"no field is called {key!r}{near_names(str(key), [*names, *sections])}")
    if "name" not in values:
        raise UserError("name is missing: call the job something, such as name: pretrain-1b")
    job = from_dict(Job, {key: _field(key, value) for key, value in values.items() if key in names})
    options = {name: _section(name, kind, values.get(name)) for name, kind in sections.items()}
    return Description(job, options)


def _section(name: str, kind: type[Spec], values: Any) -> Spec:
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{name}: expected fields, got {values!r}")
    try:
        return from_dict(kind, values or {})
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _field(key: str, value: Any) -> Any:
    """Bindings and variables may be a mapping, whose values need no quotes."""
    if key == "bindings" and isinstance(value, dict):
        return tuple(f"{name}={inner}" for name, inner in value.items())
    if key == "environment" and isinstance(value, dict):
        return {name: str(inner) for name, inner in value.items()}
    return value


def _mapping(text: str) -> dict[str, Any]:
    values = foreign.parse_yaml(text)
    if not isinstance(values, dict):
        raise UserError("expected fields such as 'name: pretrain-1b'")
    return values
