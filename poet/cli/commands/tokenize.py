"""`poet tokenize`: clips and captions to a token store."""

from __future__ import annotations

import argparse
import functools
import shlex
from typing import TYPE_CHECKING

from poet.cli import command, stores
from poet.spec import UserError

if TYPE_CHECKING:
    from poet.store.runners import Factory, Runner
    from poet.streams import Encoders
    from poet.tasks.resolved import Resolved


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.config_arguments(parser)
    add = parser.add_argument
    add(
        "--runner",
        default="",
        help="Apache Beam runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ... "
        "(default: STORE.workers processes on this machine)",
    )
    add("--beam_options", default="", help="the runner's options, as one string of --name=value")
    add(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="share the work out over a Ray cluster: ray://HOST:10001, auto, or local for one that is started here",
    )
    add("--ray_task", default="", help="what Ray sets apart for each task, as one string: num_cpus=4 num_gpus=1")
    add(
        "--allow_code",
        action="store_true",
        help="let INGEST.nsfw run the Python function that it names; without it such a configuration is refused",
    )
    command.process_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    """Writes the token store STORE.path from STORE.source.

    It holds sound if AUDIO_TOKENIZER.path is set, captions to be written if TEXT.pieces is, and the
    conditions that the tasks of DATA.mixture_rates take.
    """
    resolved = command.resolve(args)
    if args.coordinator:  # They can do without: they meet in STORE.path.
        command.start_processes(args)
    for field in ("source", "path"):
        if not getattr(resolved.spec.store, field):
            raise UserError(f"STORE.{field} is empty: pass --gin.STORE.{field}=FOLDER")
    nsfw = resolved.spec.ingest.nsfw
    if nsfw and not args.allow_code:
        raise UserError(
            f"INGEST.nsfw = {nsfw!r} would run Python code that the configuration names: "
            "look at that function, then pass --allow_code, or --gin.INGEST.nsfw= to do without"
        )
    encoders = stores.load_encoders(resolved)
    stores.write(resolved, encoders, runner_of(resolved, encoders, args), print)


def runner_of(resolved: Resolved, encoders: Encoders | None, args: argparse.Namespace) -> Runner:
    """The runner: Beam's, Ray, worker processes or this process, alone or as one of several.

    Raises:
      UserError: flags that do not go together.
    """
    import jax

    from poet.store import runners
    from poet.tasks.resolved import Resolved

    # A fresh `Resolved`: what this one has computed is not sent to other processes.
    factory, spec = functools.partial(stores.load_encoders, Resolved(resolved.spec)), resolved.spec.store
    count, index = args.processes, args.process
    if (count is None) != (index is None):
        raise UserError("--processes=N and --process=I go together: give both, or neither")
    if count is None:
        count, index = jax.process_count(), jax.process_index()
    if engine := _engine(factory, args):
        if count > 1:
            raise UserError(f"--runner and --ray split the work themselves: start one process, not {count}")
        return engine
    many = spec.workers > 1
    inner = runners.Workers(factory, spec.workers) if many else runners.Serial(encoders)
    if count == 1:
        return inner
    return runners.Distributed(inner, index, count, spec.wait_s)


def _engine(factory: Factory, args: argparse.Namespace) -> Runner | None:
    """The runner that an engine is; None without one."""
    from poet.store import beam, ray

    if args.runner and args.ray:
        raise UserError("--runner is of Beam, --ray of Ray: give one of them")
    for flag, needs in (("beam_options", "runner"), ("ray_task", "ray")):
        if getattr(args, flag) and not getattr(args, needs):
            raise UserError(f"--{flag} needs --{needs}, such as --{needs}={_EXAMPLES[needs]}")
    if args.runner:
        return beam.Beam(factory, args.runner, tuple(shlex.split(args.beam_options)))
    return ray.Ray(factory, args.ray, ray.resources(args.ray_task)) if args.ray else None


_EXAMPLES = {"runner": "DirectRunner", "ray": "local"}

COMMAND = command.Command(
    summary="Encode clips and captions into a token store.",
    run=_run,
    arguments=_arguments,
    settings=command.FILES,
    example="--gin_file=gin/experiments/quickstart.gin --gin.STORE.source=CLIPS"
    " --gin.STORE.path=CODES --gin.CONDITIONING.depth=flat",
    place=50,
)
