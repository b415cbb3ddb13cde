"""A batch job of SLURM: queued again when it is preempted or its time ends, after it has saved."""

from __future__ import annotations

import dataclasses
import shlex

from poet.launching import hardware, shell
from poet.launching.backend import PORT, Backend, Launch, check_remote_workdir, command
from poet.launching.plan import Plan, State, Step, by_word
from poet.runs import exits
from poet.spec import Spec, UserError, setting

SCRIPT, EXIT = "job.sh", "exit"
_MARGIN_S = 60
_ITS_INDEX = 'JAX_PROCESS_ID=$SLURM_PROCID exec "$@"'


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmSpec(Spec):
    """What a cluster asks for.

    Attributes:
      account, qos, constraint: of sbatch.
      gpus: generic resource of a node's GPUs, as in gpu:h100; the number is added.
      cpus: of each process, 0: the cluster's default.
      memory: of each node, such as 200G; '': the cluster's default.
      directives: further options of sbatch, such as --exclusive.
      setup: lines of bash before the job, such as source /shared/poet/.venv/bin/activate.
      port: where process 0 listens.
    """

    account: str = setting("", changes="nothing")
    qos: str = setting("", changes="nothing")
    constraint: str = setting("", changes="nothing")
    gpus: str = setting("gpu", changes="nothing")
    cpus: int = setting(0, changes="nothing", at_least=0, at_most=4096)
    memory: str = setting("", changes="nothing")
    directives: tuple[str, ...] = setting((), changes="nothing")
    setup: tuple[str, ...] = setting((), changes="nothing")
    port: int = setting(PORT, changes="nothing", at_least=1024, at_most=65_535)

    def validate(self) -> None:
        self.require(all(d.startswith("-") for d in self.directives), "directives", "give options, such as --exclusive")


def _plan(launch: Launch) -> Plan:
    job = launch.job
    if job.target and job.target.chip.platform == "tpu":
        raise UserError(f"topology: {job.topology} is no hardware of a SLURM cluster: use the backends tpu or gke")
    if job.spot:
        raise UserError("spot: SLURM has partitions for it: name one by queue")
    check_remote_workdir(launch)
    file = str(launch.folder / SCRIPT)
    partition = [Step(argv=("sinfo", "--noheader", f"--partition={job.queue}"), does="looks for the partition")]
    return Plan(
        files={SCRIPT: _script(launch)},
        checks=(
            *(partition if job.queue else []),
            Step(argv=("sbatch", "--test-only", file), does="asks whether the cluster could run it"),
        ),
        start=(Step(argv=("sbatch", file), does="queues the job"),),
        state=Step(
            argv=("squeue", "--noheader", f"--name={launch.name}", "--states=all", "--format=%T"),
            does="asks where the job stands",
        ),
        read_state=by_word(_STATES, absent=State.ENDED),
        result=Step(argv=("cat", str(launch.folder / EXIT)), does="reads the exit code"),
        stop=(Step(argv=("scancel", f"--name={launch.name}"), does="cancels the job"),),
        log=f"tail -f {launch.folder}/log.txt",
    )


_STATES = {
    "PENDING": State.WAITING,
    "REQUEUED": State.WAITING,
    "REQUEUE_HOLD": State.WAITING,
    "COMPLETED": State.FINISHED,
} | dict.fromkeys(("FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"), State.FAILED)


def _nodes(launch: Launch) -> tuple[int, int]:
    """Nodes, and processes of each."""
    job = launch.job
    nodes = hardware.hosts(job.target) if job.target else job.process_count
    if job.process_count % nodes:
        raise UserError(f"processes: {job.process_count} cannot be split evenly among {nodes} nodes")
    return nodes, job.process_count // nodes


def _directives(launch: Launch) -> list[str]:
    job, options = launch.job, launch.options
    nodes, tasks = _nodes(launch)
    gpus = hardware.devices_per_host(job.target) if job.on_accelerators and job.target else 0
    values = {
        "job-name": launch.name,
        "output": f"{launch.folder}/log.txt",
        "open-mode": "append",
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "gres": f"{options.gpus}:{gpus}" if gpus else "",
        "cpus-per-task": options.cpus or "",
        "mem": options.memory,
        "partition": job.queue,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "time": _clock(job.hours) if job.hours else "",
        # To the processes, not to this script: so long before the time ends.
        "signal": f"TERM@{job.grace_s}",
    }
    return [
        *(f"#SBATCH --{name}={value}" for name, value in values.items() if value != ""),
        "#SBATCH --requeue",
        *(f"#SBATCH {directive}" for directive in options.directives),
    ]


def _clock(hours: float) -> str:
    minutes = max(round(hours * 60), 1)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def _script(launch: Launch) -> str:
    job, options = launch.job, launch.options
    return shell.script(
        [
            *_directives(launch),
            "set -euo pipefail",
            *options.setup,
            *shell.exports(job.variables),
            *(_meeting(options.port) if job.process_count > 1 else []),
            "set +e",
            "# In the background, so that bash can hear of a signal to itself and wait on.",
            "trap ':' TERM",
            _srun(launch) + " &",
            "running=$!",
            'wait "$running"',
            "code=$?",
            'while kill -0 "$running" 2>/dev/null; do wait "$running"; code=$?; done',
            *_requeue(job.restarts),
            f'echo "$code" > {shlex.quote(str(launch.folder / EXIT))}',
            'exit "$code"',
        ]
    )


def _meeting(port: int) -> list[str]:
    return [
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f'export JAX_COORDINATOR_ADDRESS="$first:{port}" JAX_NUM_PROCESSES="$SLURM_NTASKS"',
    ]


def _srun(launch: Launch) -> str:
    # The first process that ends may be early: the others may still save, and then have no one to wait for.
    start = ("srun", "--kill-on-bad-exit=0", f"--wait={launch.job.grace_s + _MARGIN_S}")
    # Variables of SLURM are those of each process, so a shell of its own reads them.
    several = ("bash", "-c", _ITS_INDEX, "--") if launch.job.process_count > 1 else ()
    return shell.words((*start, *several, *command(launch.job)))


def _requeue(restarts: int) -> list[str]:
    return [
        f'if [ "$code" -eq {exits.RESTART} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then',
        '  echo "saved after a signal; queued again"',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "  exit",
        "fi",
    ]


BACKEND = Backend(
    title="a SLURM cluster", options=SlurmSpec, programs=("sbatch", "squeue", "scancel", "sinfo"), plan=_plan
)
