"""TPU VMs: a queued resource whose machines run the job at every boot, or VMs that are already there."""

from __future__ import annotations

import dataclasses
import shlex

from poet.launching import hardware, shell
from poet.launching.backend import Backend, Launch, buckets, check_container, check_remote_workdir, command
from poet.launching.plan import Plan, State, Step, by_word
from poet.runs import exits
from poet.spec import Spec, UserError, setting

SCRIPT = "job.sh"
# What a shell reports of SIGKILL.
_KILLED = 137
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuSpec(Spec):
    """What Google asks for.

    Attributes:
      project, zone: where.
      node: a TPU VM that is already there: it is used, and neither made nor deleted.
      runtime: software of the VMs; '': the one for their chips.
      reserved: the hardware is taken from a reservation of the project.
      network, subnetwork: '': the project's default.
      service_account: of the VMs; it reads the image, writes the bucket, and deletes the queued resource at the end.
      volumes: HOST:CONTAINER of the VMs, for folders that `setup` mounts.
      setup: lines of bash on every VM, before the job.
      results: gs://BUCKET/FOLDER in which the exit code outlives the machines; '': nowhere.
    """

    project: str = setting("", changes="nothing")
    zone: str = setting("", changes="nothing")
    node: str = setting("", changes="nothing")
    runtime: str = setting("", changes="nothing")
    reserved: bool = setting(False, changes="nothing")
    network: str = setting("", changes="nothing")
    subnetwork: str = setting("", changes="nothing")
    service_account: str = setting("", changes="nothing")
    volumes: tuple[str, ...] = setting((), changes="nothing")
    setup: tuple[str, ...] = setting((), changes="nothing")
    results: str = setting("", changes="nothing")

    def validate(self) -> None:
        self.require(not self.results or self.results.startswith("gs://"), "results", "is a folder gs://BUCKET/FOLDER")


def _plan(launch: Launch) -> Plan:
    check_container(launch)
    check_remote_workdir(launch)
    job, options = launch.job, launch.options
    for field in ("project", "zone"):
        if not getattr(options, field):
            raise UserError(f"tpu.{field} is missing: gcloud needs it")
    if job.target is None or job.target.chip.platform != "tpu":
        raise UserError(f"topology: name a TPU, such as v5e-16, not {job.topology!r}")
    if options.node and (job.spot or options.reserved):
        raise UserError("tpu.node is a TPU that you have: drop spot and tpu.reserved, which say how to get one")
    if job.spot and options.reserved:
        raise UserError("spot, tpu.reserved: hardware of a reservation is no spot hardware: drop one")
    checks = tuple(
        Step(argv=("gcloud", "storage", "ls", f"--project={options.project}", bucket), does="looks for the bucket")
        for bucket in sorted({*buckets(job), *_bucket(options.results)})
    )
    return (_on_node if options.node else _queued)(launch, checks)


def _place(launch: Launch) -> tuple[str, ...]:
    return (f"--project={launch.options.project}", f"--zone={launch.options.zone}")


# ------------------------------------------------------------------------------------ a queued resource


def _queued(launch: Launch, checks: tuple[Step, ...]) -> Plan:
    group = ("gcloud", "compute", "tpus", "queued-resources")
    place = _place(launch)
    return Plan(
        files={SCRIPT: _script(launch, ends=_free(launch))},
        checks=checks,
        start=(Step(argv=(*group, "create", launch.name, *place, *_request(launch)), does="asks for the TPU"),),
        state=Step(
            argv=(*group, "describe", launch.name, *place, "--format=value(state.state)"),
            does="asks where the request stands",
        ),
        read_state=by_word(_STATES, absent=State.ENDED),
        result=Step(argv=("gcloud", "storage", "cat", _result(launch)), does="reads the exit code")
        if _result(launch)
        else None,
        stop=(Step(argv=(*group, "delete", launch.name, *place, "--force", "--quiet"), does="gives the TPU back"),),
        again=True,
        log=f"gcloud compute tpus tpu-vm ssh {_first(launch)} {' '.join(place)} --worker=0 "
        f"--command='sudo docker logs --follow {launch.name}'",
    )


_STATES = dict.fromkeys(("ACCEPTED", "CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING"), State.WAITING) | {
    "ACTIVE": State.RUNNING,
    "SUSPENDING": State.RUNNING,
    "SUSPENDED": State.LOST,
    "FAILED": State.LOST,
    "DELETING": State.ENDED,
}


def _result(launch: Launch) -> str:
    """Where the exit code is kept when the machines are gone; '' without a bucket."""
    folder = launch.options.results.rstrip("/")
    return shlex.quote(f"{folder}/{launch.name}.exit") if folder else ""


def _bucket(folder: str) -> list[str]:
    """gs://BUCKET of a folder in it."""
    return ["/".join(folder.split("/")[:3])] if folder else []


def _first(launch: Launch) -> str:
    return f"{launch.name}-0" if launch.job.target.slices > 1 else launch.name


def _request(launch: Launch) -> tuple[str, ...]:
    job, options = launch.job, launch.options
    names = hardware.names(job.target)
    several = (f"--node-count={job.target.slices}", f"--node-prefix={launch.name}")
    flags = {"network": options.network, "subnetwork": options.subnetwork, "service-account": options.service_account}
    return (
        f"--accelerator-type={names.google}-{hardware.size(job.target)}",
        f"--runtime-version={options.runtime or names.runtime}",
        *(several if job.target.slices > 1 else (f"--node-id={launch.name}",)),
        *(f"--{name}={value}" for name, value in flags.items() if value),
        *(["--reserved"] if options.reserved else []),
        *(["--spot"] if job.spot else []),
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        f"--metadata-from-file=startup-script={launch.folder / SCRIPT}",
    )


def _free(launch: Launch) -> list[str]:
    """The machines give themselves back, however the script ends, so that nobody has to wait for them."""
    delete = ("gcloud", "compute", "tpus", "queued-resources", "delete", launch.name, *_place(launch))
    keep = f'    echo "$code" | gcloud storage cp - {_result(launch)}'
    return [
        "# shellcheck disable=SC2329  # The trap calls it.",
        "finish() {",
        "  code=$?",
        f'  if [ "$code" -eq {exits.RESTART} ]; then return; fi  # The machine stops: its next boot goes on.',
        f"  worker=$(curl --silent --header 'Metadata-Flavor: Google' {_METADATA}/agent-worker-number)",
        '  if [ "$worker" = 0 ]; then',
        *([keep] if _result(launch) else []),
        f"    {shell.words((*delete, '--force', '--quiet', '--async'), indent='    ')}",
        "  fi",
        "}",
        "trap finish EXIT",
        f"trap 'exit {exits.RESTART}' TERM",
    ]


# ------------------------------------------------------------------------------------ the TPU that is there


def _on_node(launch: Launch, checks: tuple[Step, ...]) -> Plan:
    node, place = launch.options.node, _place(launch)
    group = ("gcloud", "compute", "tpus", "tpu-vm")
    file = f"{launch.name}.sh"

    def everywhere(text: str, does: str) -> Step:
        return Step(argv=(*group, "ssh", node, *place, "--worker=all", f"--command={text}"), does=does)

    look = Step(argv=(*group, "describe", node, *place, "--format=value(state)"), does="looks for the TPU")
    copy = (*group, "scp", str(launch.folder / SCRIPT), f"{node}:{file}", *place, "--worker=all")
    halt = f"sudo docker stop --time={launch.job.grace_s} {launch.name}"
    return Plan(
        files={SCRIPT: _script(launch, ends=[])},
        checks=(*checks, look),
        start=(Step(argv=copy, does="copies the script to its machines"),),
        here=(everywhere(f"sudo bash {file}", "runs the job on all of its machines"),),
        stop=(everywhere(f"{halt}; rm --force {file}", "stops the job, and leaves the TPU"),),
    )


# ---------------------------------------------------------------------------------------------- both


def _script(launch: Launch, ends: list[str]) -> str:
    job, options = launch.job, launch.options
    registry = job.image.split("/")[0]
    access = ("gcloud", "auth", "configure-docker", registry, "--quiet")
    return shell.script(
        [
            "# Runs at every boot: after lost hardware the job goes on from its newest checkpoint.",
            "set -euo pipefail",
            *ends,
            *options.setup,
            *([shell.words(access)] if registry.endswith("docker.pkg.dev") else []),
            "for _ in 1 2 3 4 5 6 7 8 9 10; do",
            f"  docker pull {shlex.quote(job.image)} && break",
            "  sleep 30",
            "done",
            f"for _ in $(seq {job.restarts + 1}); do",
            f"  docker rm --force {launch.name} >/dev/null 2>&1 || true",
            "  code=0",
            f"  {shell.words(_container(launch), indent='  ')} || code=$?",
            '  echo "poet ended with exit code $code"',
            f'  if [ "$code" -ne {_KILLED} ]; then break; fi  # Killed, say for want of memory: once more.',
            "done",
            'exit "$code"',
        ]
    )


def _container(launch: Launch) -> tuple[str, ...]:
    job = launch.job
    flags = ["--coordinator=auto"] if job.process_count > 1 else []
    return (
        *("docker", "run", "--init", f"--name={launch.name}"),
        # The chips are devices of the machine, and slices speak over its network.
        *("--privileged", "--user=0", "--network=host", f"--stop-timeout={job.grace_s}"),
        *(f"--volume={volume}" for volume in launch.options.volumes),
        *(f"--env={name}={value}" for name, value in sorted(job.variables.items())),
        job.image,
        *shell.limited(command(job, *flags), job.hours, job.grace_s),
    )


BACKEND = Backend(title="TPU VMs of Google", options=TpuSpec, programs=("gcloud",), plan=_plan)
