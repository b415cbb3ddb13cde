"""What a command of `poet` is, and the flags that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from poet.runs.run import Run
from poet.spec import ExportSpec, SampleSpec, UserError
from poet.spec.base import MOST_FRAMES, MOST_SIDE, Setting
from poet.tasks.registry import LANGUAGE_MODEL

if TYPE_CHECKING:
    from poet.tasks.resolved import Resolved

# How a command takes settings -> the text of its help.
FILES, OVERRIDES, NONE = "files", "overrides", "none"
SETTINGS = {
    FILES: "settings: --gin_file=FILE (repeatable; shipped ones: gin/experiments/*.gin), and single values "
    "as --gin.NAME.field=value; `poet describe` prints them all",
    OVERRIDES: "settings: those of the checkpoint; single values as --gin.NAME.field=value",
    NONE: "",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
      summary: what it does, one line.
      run: takes the parsed arguments; returns the exit code, or None for 0.
      arguments: adds its own arguments.
      settings: `FILES`, `OVERRIDES` or `NONE`.
      example: arguments that run, for its help.
      place: the list of commands is in the order of these.
      quiet: whether the terminal shows warnings of this package alone, not how it gets on.
      wraps: whether another command stands behind `--`; its words are `args.rest`.
      publishes: whether its --out, if it has one, is a folder, which may lie at gs:// (`poet.runs.buckets.outbox`).
    """

    summary: str
    run: Callable[[argparse.Namespace], int | None]
    arguments: Callable[[argparse.ArgumentParser], None]
    settings: str
    example: str
    place: int
    quiet: bool = False
    wraps: bool = False
    publishes: bool = True


def number(kind: type, **limits: float) -> Callable[[str], float]:
    """Parses a flag's number; `limits` as those of `poet.spec.base.setting`."""
    declared = Setting(changes="nothing", **limits)

    def parse(text: str) -> float:
        number = kind(text)
        if declared.broken_rule(number):
            raise argparse.ArgumentTypeError(f"{text}: must lie in {declared.range}")
        return number

    parse.__name__ = kind.__name__  # argparse names it where the text is no number.
    return parse


def schedule(kind: type) -> Callable[[str], Any]:
    """Parses a flag's number, or several between commas as a tuple."""

    def parse(text: str) -> Any:
        numbers = tuple(map(kind, text.split(",")))
        return numbers if len(numbers) > 1 else numbers[0]

    parse.__name__ = kind.__name__
    return parse


side = number(int, at_least=0, at_most=MOST_SIDE)
frames = number(int, at_least=0, at_most=MOST_FRAMES)


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Files of settings, or a size."""
    parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="gin file (repeatable)")
    parser.add_argument(
        "--size",
        default="",
        help="model size, which replaces that of the files: tiny, 300m, 1b, 8b, or any other such "
        "as 60m or 3b; without files, VideoPoet's pretraining at that size",
    )


def resolve(args: argparse.Namespace) -> Resolved:
    """The settings of the flags of `config_arguments` and of single values; UserError for a mistake in them."""
    from poet.spec import config
    from poet.tasks.resolved import Resolved

    if args.size:
        return Resolved(config.load(*config.sized(args.gin_file, args.size, args.bindings)))
    if not args.gin_file:
        raise UserError(
            "no settings were given: add --gin_file=FILE, such as --gin_file=gin/experiments/quickstart.gin, "
            "or --size=300m"
        )
    return Resolved(config.load(args.gin_file, args.bindings))


def process_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say which of several processes this is."""
    group = parser.add_argument_group(
        "several processes",
        "Start the same command once for each of them, on machines that see the same files (a training: or the same "
        "bucket).",
    )
    add, environment = group.add_argument, os.environ
    add(
        "--coordinator",
        metavar="HOST:PORT",
        default=environment.get("JAX_COORDINATOR_ADDRESS", ""),
        help="where process 0 listens for the others; 'auto': ask the cluster (TPU pods, Slurm, Open "
        "MPI, Kubernetes), without the two flags below [JAX_COORDINATOR_ADDRESS]",
    )
    add(
        "--processes",
        type=number(int, at_least=1, at_most=2**20),
        metavar="N",
        default=environment.get("JAX_NUM_PROCESSES"),
        help="how many there are [JAX_NUM_PROCESSES]",
    )
    add(
        "--process",
        type=number(int, at_least=0, at_most=2**20),
        metavar="I",
        default=environment.get("JAX_PROCESS_ID"),
        help="which of them this is, 0..N-1 [JAX_PROCESS_ID]",
    )
    add(
        "--coordinator_wait_s",
        type=number(float, above=0, at_most=1e7),
        default=300.0,
        metavar="S",
        help="seconds to wait for all of them",
    )


def start_processes(args: argparse.Namespace) -> None:
    """Joins the other processes, if there are any; all but the first one log only warnings."""
    from poet.distributed import processes

    processes.start(args.coordinator, args.processes, args.process, args.coordinator_wait_s)
    if not args.coordinator or processes.first():
        return
    logging.getLogger("poet").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        form = f"%(asctime)s process {processes.index()} %(message)s"
        handler.setFormatter(logging.Formatter(form, "%H:%M:%S"))


def workdir_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a training."""
    config_arguments(parser)
    process_arguments(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        help="checkpoints, metrics and samples: a folder, or gs://BUCKET/FOLDER; resumed if it exists",
    )


def checkpoint_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The flag that names weights, see `open_checkpoint`."""
    parser.add_argument(
        "--checkpoint", required=required, default="", help="a work dir, a checkpoint, or a folder of released weights"
    )


# Flags of sampling -> their types and help.
SAMPLE_FLAGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (schedule(float), "0 takes the most probable token"),
    "top_k": (schedule(int), "sample among so many most probable tokens; 0: all"),
    "top_p": (schedule(float), "sample among the most probable tokens of this total probability; 1: all"),
    "min_p": (schedule(float), "drop tokens below this fraction of the highest probability; 0: none"),
    "guidance": (schedule(float), "scale of classifier-free guidance; 1: none"),
    "guidance_cap": (float, "upper bound of the guidance's difference, RMS in nats; 0: none"),
    "guidance_parallel": (float, "fraction of the guidance's difference along the conditional logits to keep; 1: all"),
    "guidance_momentum": (float, "fraction of the difference at the position before to add; 0: none"),
    "row_lag": (int, "sample pictures in fronts: codes by which a row follows the row above; 0: one code at a time"),
    "frame_lag": (int, "steps by which a latent frame follows the one before, with --row_lag; 0: frame by frame"),
    "guided_by": (lambda text: tuple(text.split(",")), "conditions of guidance between commas, such as text,video"),
    "seed": (int, "seed of the noise"),
}


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of sampling; each sets the field of SAMPLE of its name."""
    group = parser.add_argument_group(
        "sampling (default: SAMPLE of the checkpoint)",
        f"{', '.join(SampleSpec.SCHEDULES)} take one number, or one for each latent frame: 1.2,1,0.9,...",
    )
    for name, (kind, text) in SAMPLE_FLAGS.items():
        group.add_argument(f"--{name}", type=kind, default=None, help=text)
    said = "guidance by text in one pass, of a model that was trained with MODEL.guidance_input"
    group.add_argument("--one_pass", action="store_true", default=None, help=said)
    watermark_argument(group)


def watermark_argument(parser: argparse._ActionsContainer) -> None:
    """The flag of files without a watermark."""
    parser.add_argument(
        "--no_watermark",
        action="store_false",
        default=None,
        dest="watermark",
        help="leave out the invisible mark of 32 bits that `poet watermark` finds (SAMPLE.watermark=False)",
    )


def sample_bindings(args: argparse.Namespace) -> list[str]:
    """The gin bindings of the flags of `sample_arguments`."""
    given = {name: getattr(args, name) for name in (*SAMPLE_FLAGS, "one_pass", "watermark")}
    return [f"SAMPLE.{name}={value}" for name, value in given.items() if value is not None]


def prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the texts added to every prompt."""
    add = parser.add_argument
    add(
        "--style",
        default="",
        metavar="NAME",
        help="texts added to every prompt: a preset of gin/prompts, such as videopoet or arenas, or a gin file",
    )
    add("--negative_prompt", default="", help="what it must not look like; needs --guidance above 1")


def generation_bindings(args: argparse.Namespace) -> list[str]:
    """What the flags of `prompt_arguments` and `sample_arguments` bind, between them the single settings.

    Raises UserError for an unknown style.
    """
    from poet.spec import config

    return [*(config.style(args.style) if args.style else []), *args.bindings, *sample_bindings(args)]


def open_checkpoint(
    args: argparse.Namespace, bindings: Sequence[str], network: str = LANGUAGE_MODEL
) -> tuple[Run, Resolved]:
    """The run of a network ('': of any) that --checkpoint names, and its spec with `bindings`.

    `EXPORT` has its defaults, not the values of an earlier export.

    Raises UserError for a checkpoint of another network.
    """
    return open_run(args.checkpoint, bindings, network)


def open_run(path: str, bindings: Sequence[str], network: str = LANGUAGE_MODEL) -> tuple[Run, Resolved]:
    """`open_checkpoint` of a path."""
    from poet.spec import config
    from poet.tasks.resolved import Resolved
    from poet.training import networks

    run = Run.open(path)
    if network:
        networks.expect(run.checkpoint, network)
    return run, Resolved(config.override(run.checkpoint.spec.replace(export=ExportSpec()), bindings))


def out_argument(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """A folder to write to."""
    parser.add_argument(
        "--out", required=required, default="", metavar="FOLDER", help="new or empty folder to write to"
    )
    overwrite_argument(parser)


def overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """The flag that allows to replace an earlier output."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the output of an earlier run of this command; other files are not touched",
    )
