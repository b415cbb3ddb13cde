"""`poet launch`: one description of a job, run on this machine, SLURM, TPU VMs, GKE, SkyPilot or in a container."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from poet.cli import command
from poet.spec import UserError, choose

if TYPE_CHECKING:
    from poet.launching.backend import Backend, Launch
    from poet.launching.job import Job

# Where the files of launches lie.
FOLDER = Path("launches")


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("job", metavar="JOB.yaml", help="the description: launch/jobs/ has examples, launch/README.md every field")
    add(
        "--backend",
        default="",
        help="where it runs: local, docker, slurm, tpu, gke, skypilot (default: that of the job)",
    )
    add("--dry_run", action="store_true", help="print every file and command, and run nothing")
    add("--detach", action="store_true", help="leave the job running elsewhere, and print how to follow and stop it")
    add("--stop", default="", metavar="NAME", help="free everything of an earlier launch of this job, by its name")
    add("--no_fit_check", action="store_true", help="do not compile the job's programs for its topology first")
    add("--folder", default=str(FOLDER), metavar="FOLDER", help="where the files of launches are written")


def _run(args: argparse.Namespace) -> int:
    from poet.launching import launch, lint

    started, backend = _described(args)
    plan, job = backend.plan(started), started.job
    lint.check(started, plan)
    if args.stop:
        launch.require_programs(backend.programs, backend.title)
        launch.stop(plan)
        return 0
    if args.detach and plan.here:
        raise UserError(f"--detach: {backend.title}: the job runs in this process, so use nohup or tmux instead")
    _check_settings(job, fit_check=not args.no_fit_check)
    if args.dry_run:
        print("\n".join(launch.text(plan, started.folder)))
        return 0
    launch.require_programs(backend.programs, backend.title)
    launch.write(plan, started.folder)
    print(_how(args, started, plan.log), flush=True)
    code = launch.run(plan, restarts=job.restarts, wait_s=job.wait_s, grace_s=job.grace_s, detach=args.detach)
    print(f"{started.name}: {'started' if args.detach else launch.outcome(code)}")
    return code


def _described(args: argparse.Namespace) -> tuple[Launch, Backend]:
    """The launch that the arguments describe, under a new name or that of an earlier one, and where it runs."""
    from poet.launching import job, launch
    from poet.launching.backend import Launch
    from poet.launching.backends import BACKENDS

    described = job.read(args.job, {name: backend.options for name, backend in BACKENDS.items()})
    name = args.backend or described.job.backend
    backend = choose(name, BACKENDS, "backend")
    identity = args.stop or launch.new_name(described.job.name)
    folder = Path(args.folder).absolute() / identity
    return Launch(job=described.job, options=described.options[name], name=identity, folder=folder), backend


def _how(args: argparse.Namespace, started: Launch, log: str) -> str:
    """How to follow and stop the launch from elsewhere."""
    lines = [f"{started.name}: {started.folder}"] if log else [started.name]
    if log:
        backend = f" --backend={args.backend}" if args.backend else ""
        lines += [f"  its log: {log}", f"  stop it: poet launch {args.job}{backend} --stop={started.name}"]
    return "\n".join(lines)


def _check_settings(job: Job, *, fit_check: bool) -> None:
    """Raises UserError for settings that no process would accept, or programs that do not fit the hardware."""
    from poet.spec import config
    from poet.tasks.resolved import Resolved

    if job.size:
        experiment = config.load(*config.sized(list(job.gin_files), job.size, list(job.bindings)))
    else:
        experiment = config.load(job.gin_files, job.bindings)
    if fit_check and job.command == "train" and job.on_accelerators:
        from poet.launching import fit

        fit.check(Resolved(experiment), job.target)


COMMAND = command.Command(
    summary="Run a described job on this machine, SLURM, TPUs, GKE, SkyPilot or in a container.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="launch/jobs/local.yaml --dry_run",
    place=76,
)
