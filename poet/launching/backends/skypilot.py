"""A managed job of SkyPilot, which finds a cloud with the hardware and starts again after a preemption."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from poet.launching import hardware, shell
from poet.launching.backend import PORT, Backend, Launch, check_container, check_remote_workdir, command
from poet.launching.plan import Plan, State, Step
from poet.runs import exits
from poet.spec import Spec, UserError, setting

TASK = "task.yaml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkySpec(Spec):
    """What SkyPilot asks for.

    Attributes:
      infra: a cloud, or cloud/region or cloud/region/zone; '': the cheapest.
      disk_gb: of each machine, 0: SkyPilot's default.
      mounts: CONTAINER: BUCKET URL, mounted on every machine.
      setup: lines of bash before the job.
    """

    infra: str = setting("", changes="nothing")
    disk_gb: int = setting(0, changes="nothing", at_least=0, at_most=65_536)
    mounts: dict[str, str] = setting(changes="nothing", default_factory=dict)
    setup: tuple[str, ...] = setting((), changes="nothing")


def _plan(launch: Launch) -> Plan:
    check_container(launch)
    check_remote_workdir(launch)
    target = launch.job.target
    if target is None:
        raise UserError("topology is missing: SkyPilot rents hardware by its name, such as h100-8")
    if target.slices > 1:
        raise UserError(f"topology: SkyPilot rents single slices, not {target.name}: use the backends tpu or gke")
    return Plan(
        files={TASK: _yaml(_task(launch))},
        checks=(Step(argv=("sky", "check"), does="looks for clouds that are set up"),),
        start=(
            Step(
                argv=("sky", "jobs", "launch", "--yes", f"--name={launch.name}", "--detach-run", _file(launch)),
                does="starts the managed job",
            ),
        ),
        state=Step(argv=("sky", "jobs", "queue", "--all", "--output=json"), does="asks where the job stands"),
        read_state=lambda output: _state(output, launch.name),
        stop=(Step(argv=("sky", "jobs", "cancel", "--yes", f"--name={launch.name}"), does="cancels the managed job"),),
        log=f"sky jobs logs --name {launch.name}",
    )


def _file(launch: Launch) -> str:
    return str(launch.folder / TASK)


def _state(output: str, name: str) -> State:
    rows = json.loads(output or "[]")
    status = next((row["status"] for row in rows if row.get("job_name") == name), None)
    if status is None:
        return State.ENDED
    if status.startswith("FAILED") or status.startswith("CANCEL"):
        return State.FAILED
    known = {"SUCCEEDED": State.FINISHED, "PENDING": State.WAITING, "STARTING": State.WAITING}
    return known.get(status, State.RUNNING)


def _task(launch: Launch) -> dict[str, Any]:
    job, options = launch.job, launch.options
    task = {
        "name": launch.name,
        "num_nodes": _nodes(launch),
        "resources": _resources(launch),
        "envs": job.variables,
        "file_mounts": {place: {"source": url, "mode": "MOUNT"} for place, url in options.mounts.items()},
        "setup": "\n".join(options.setup),
        "run": _run(launch),
    }
    return {name: value for name, value in task.items() if value}


def _nodes(launch: Launch) -> int:
    """SkyPilot counts the hosts of a TPU slice as one node."""
    target = launch.job.target
    return hardware.hosts(target) if target.chip.platform == "cuda" else 1


def _resources(launch: Launch) -> dict[str, Any]:
    job, options = launch.job, launch.options
    resources = {
        "infra": options.infra,
        "accelerators": _accelerators(launch),
        "image_id": f"docker:{job.image}",
        "use_spot": job.spot,
        "disk_size": options.disk_gb,
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [exits.RESTART]},
    }
    return {name: value for name, value in resources.items() if value}


def _accelerators(launch: Launch) -> str:
    target = launch.job.target
    if target.chip.platform == "cpu":
        return ""
    name = hardware.names(target).sky
    if target.chip.platform == "cuda":
        return f"{name}:{hardware.devices_per_host(target)}"
    return f"{name}-{hardware.size(target)}:1"


def _run(launch: Launch) -> str:
    job = launch.job
    several = job.process_count > 1
    tpus = job.target.chip.platform == "tpu"
    meeting = [
        'first=$(printf "%s\\n" "$SKYPILOT_NODE_IPS" | head -n 1)',
        f'export JAX_COORDINATOR_ADDRESS="$first:{PORT}"',
        'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"',
    ]
    argv = shell.limited(command(job, *(["--coordinator=auto"] if several and tpus else [])), job.hours, job.grace_s)
    return "\n".join([*(meeting if several and not tpus else []), shell.words(argv)]) + "\n"


def _yaml(values: Any) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, width=1000)


BACKEND = Backend(title="the clouds of SkyPilot", options=SkySpec, programs=("sky",), plan=_plan)
