"""The commands of `poet`: what each takes, what its help says, which job it calls."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from typing import Callable

from poet.spec.base import MOST_BATCH, MOST_FRAMES, MOST_SIDE, Setting
from poet.spec import UserError

# How a command takes settings -> what its help says of them.
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
      log_level: the least of this package's log records that the terminal shows.
    """

    summary: str
    run: Callable[[argparse.Namespace], int | None]
    arguments: Callable[[argparse.ArgumentParser], None]
    settings: str
    example: str
    log_level: int = logging.WARNING

def _number(kind: type, **limits: float) -> Callable[[str], float]:
    """Parses a flag's number; `limits` as those of `poet.spec.base.setting`."""
    declared = Setting(changes="nothing", **limits)

    def parse(text: str) -> float:
        number = kind(text)
        if declared.broken_rule(number):
            raise argparse.ArgumentTypeError(f"{text}: must lie in {declared.range}")
        return number

    parse.__name__ = kind.__name__  # argparse names it where the text is no number.
    return parse


_side = _number(int, at_least=0, at_most=MOST_SIDE)
_frames = _number(int, at_least=0, at_most=MOST_FRAMES)


# --------------------------------------------------------------------------------- configurations


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE", help="gin file (repeatable)"
    )
    parser.add_argument(
        "--size", default="", help="model size laid over the files: tiny, 300m, 1b, 8b, or any such "
        "as 60m or 3b; by itself, VideoPoet's pretraining at that size"
    )


def _experiment(args: argparse.Namespace):
    from poet.spec import config

    if args.size:
        return config.load(*config.sized(args.gin_file, args.size, args.bindings))
    if not args.gin_file:
        raise UserError(
            "no settings were given: add --gin_file=FILE, such as --gin_file=gin/experiments/quickstart.gin, "
            "or --size=300m"
        )
    return config.load(args.gin_file, args.bindings)


def _process_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes",
        "Start the same command once for each of them, on machines that see the same files.",
    )
    add, environment = group.add_argument, os.environ
    add("--coordinator", metavar="HOST:PORT", default=environment.get("JAX_COORDINATOR_ADDRESS", ""),
        help="where process 0 listens for the others; 'auto': ask the cluster (TPU pods, Slurm, Open "
             "MPI, Kubernetes), without the two flags below [JAX_COORDINATOR_ADDRESS]")
    add("--processes", type=_number(int, at_least=1, at_most=2**20), metavar="N", default=environment.get("JAX_NUM_PROCESSES"),
        help="how many there are [JAX_NUM_PROCESSES]")
    add("--process", type=_number(int, at_least=0, at_most=2**20), metavar="I", default=environment.get("JAX_PROCESS_ID"),
        help="which of them this is, 0..N-1 [JAX_PROCESS_ID]")
    add("--coordinator_wait_s", type=_number(float, above=0, at_most=1e7), default=300.0, metavar="S",
        help="how long all of them may take to come (default 300)")


def _start_processes(args: argparse.Namespace) -> None:
    """Joins the other processes, if there are any; all but the first one fall silent."""
    from poet.distributed import processes

    processes.start(args.coordinator, args.processes, args.process, args.coordinator_wait_s)
    if not args.coordinator or processes.first():
        return
    logging.getLogger("poet").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        form = f"%(asctime)s process {processes.index()} %(message)s"
        handler.setFormatter(logging.Formatter(form, "%H:%M:%S"))


def _workdir_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    _process_arguments(parser)
    parser.add_argument(
        "--workdir", required=True, help="checkpoints, metrics and samples; resumed if it exists"
    )


def _checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, help="a work dir, a checkpoint, or a folder of released weights"
    )


def _out_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new or empty folder to write to")
    _overwrite_argument(parser)


def _overwrite_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace what an earlier run of this command wrote there; nothing else is touched",
    )


# --------------------------------------------------------------------------------------- commands


def _describe_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument(
        "--devices", type=_number(int, at_least=0, at_most=2**20), default=0, help="plan for this many devices (default: those here)"
    )
    parser.add_argument(
        "--topology", default="", metavar="NAME",
        help="compile every step and the decoding loop for devices that need not be here, and say what "
             "they need: v5e-16, v5p-256, 2xv6e-256, h100-64, cpu-8, ...",
    )
    parser.add_argument(
        "--group", action="append", default=[], dest="groups", metavar="NAME",
        help="of these groups only (repeatable, with --topology)",
    )
    parser.add_argument(
        "--json", action="store_true",
        help="print the resolved spec as JSON; with --topology a line of JSON for each program",
    )
    parser.add_argument("--picture", default="", help="draw the tasks' layouts into this SVG file")
    parser.add_argument(
        "--placement", default="", help="draw how parameters lie on the mesh into this SVG file"
    )
    _overwrite_argument(parser)


def _describe(args: argparse.Namespace) -> None:
    from poet.planning import describe
    from poet.runs import outputs
    from poet.tasks.resolved import Resolved

    for flag in ("picture", "placement"):
        if path := getattr(args, flag):
            outputs.claim_file(path, overwrite=args.overwrite, flag=f"--{flag}")
    resolved = Resolved(_experiment(args))
    if args.picture:
        describe.write_picture(resolved, args.picture)
    if args.placement:
        describe.write_placement(resolved, args.placement, args.devices)
    if args.picture or args.placement:
        return
    describe.run(
        resolved, devices=args.devices, topology=args.topology, groups=args.groups, as_json=args.json
    )


def _tokenizer_train(args: argparse.Namespace) -> int:
    from poet.cli import jobs

    experiment = _experiment(args)
    _start_processes(args)
    return jobs.tokenizer_train(experiment, args.workdir)


def _reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("clips", nargs="+", metavar="CLIP", help="any video file or picture")
    add("--tokenizer", required=True, help="folder of a trained tokenizer")
    _out_argument(parser)
    add("--fps", type=_number(float, above=0, at_most=1000), default=8.0, help="frames a second that are read")
    add("--height", type=_side, default=0, help="resize and crop to this (default: the clip's own)")
    add("--width", type=_side, default=0, help="resize and crop to this (default: the clip's own)")
    add("--frames", type=_frames, default=0, help="take this many frames (default: all)")
    add("--chunk_frames", type=_frames, default=16, help="frames per call; changes nothing else")
    add("--tile", type=_side, default=32, help="latents per side of a tile; 0: whole frames, exact")
    add("--overlap", type=_side, default=8, help="latents that neighbouring tiles share")
    add("--dtype", default="", choices=("", "float32", "bfloat16"), help="run the network in this")


def _reconstruct(args: argparse.Namespace) -> None:
    from poet.cli import tokenizer_jobs

    tokenizer_jobs.reconstruct(args)


TOKENIZER_SETS = ("source", "atari", "natural", "game", "speech", "music", "effects")
TOKENIZER_CODECS = ("x264", "x265", "opus", "none")


def _tokenizer_eval_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    _out_argument(parser)
    add = parser.add_argument
    add("--tokenizer", default="",
        help="folder of a trained tokenizer (VIDEO_TOKENIZER.path or AUDIO_TOKENIZER.path, as "
             "TOKENIZER_TRAIN.modality says)")
    add("--set", action="append", default=[], choices=TOKENIZER_SETS, dest="sets",
        help="what to score on (repeatable, default all there are): of video 'source' is "
             "EVAL.source, EVAL.split; of audio 'game' is that, the others are in EVAL.sounds")
    add("--codec", action="append", default=[], choices=TOKENIZER_CODECS, dest="codecs",
        help="codec to set beside it (repeatable, default all): x264 and x265 at the same rate, "
             "opus at 6 and 12 kbit/s")
    add("--preset", default="slow", help="effort of the video codecs")
    add("--perceptual", default="vgg_hed", help="network of the perceptual distance, '' for none")


def _tokenizer_eval(args: argparse.Namespace) -> None:
    from poet.cli import tokenizer_jobs

    tokenizer_jobs.tokenizer_evaluate(_experiment(args), args)


def _tokenize_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    add = parser.add_argument
    add("--runner", default="",
        help="an Apache Beam runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ... "
             "(default: STORE.workers processes here)")
    add("--beam_options", default="", help="the runner's options, as one string of --name=value")
    add("--allow_code", action="store_true",
        help="let INGEST.nsfw run the Python function that it names; without it such a configuration "
             "is refused")
    _process_arguments(parser)


def _tokenize(args: argparse.Namespace) -> None:
    from poet.cli import jobs

    experiment = _experiment(args)
    if args.coordinator:  # They can do without: they meet in STORE.path.
        _start_processes(args)
    jobs.tokenize(experiment, args)


def _store_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=("verify", "repair"),
        help="verify: compare every byte with its hash, without settings; repair: make damaged shards again "
        "from the source, with the settings that `poet tokenize` made the store with",
    )
    parser.add_argument("store", metavar="STORE", help="folder of a token store")
    _config_arguments(parser)


def _store(args: argparse.Namespace) -> None:
    from poet.cli import jobs

    if args.action == "repair":
        args.bindings = [*args.bindings, f"STORE.path={args.store}"]
        jobs.repair_store(_experiment(args))
    elif args.gin_file or args.bindings or args.size:
        raise UserError("verify takes no settings: the store says what it is")
    else:
        jobs.verify_store(args.store)


def _train(args: argparse.Namespace) -> int:
    from poet.cli import jobs

    experiment = _experiment(args)
    _start_processes(args)
    return jobs.train(experiment, args.workdir)


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    _checkpoint_arguments(parser)
    _out_argument(parser)
    parser.add_argument("--scores", default="", metavar="FILE",
        help="write the numbers that a card quotes (likelihood, condition gain) to this JSON file too")
    _process_arguments(parser)
    parser.add_argument("--metric", action="append", default=[], dest="metrics", metavar="NAME",
        help="measure this one alone (repeatable; default: all that what is given allows)")


def _eval(args: argparse.Namespace) -> None:
    from poet.cli import jobs

    _start_processes(args)
    jobs.evaluate(args, args.bindings)


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    _checkpoint_arguments(parser)
    _out_argument(parser)
    add = parser.add_argument
    add("--task", default="text_to_video", help="task name; `poet describe` lists them")
    add("--prompt", action="append", default=[], help="what to show (repeatable)")
    add("--prompt_file", default="", help="one prompt per line")
    add("--negative_prompt", default="", help="what the clip must not look like; needs --guidance above 1")
    add("--clip", action="append", default=[], metavar="FILE",
        help="what the task starts from (repeatable): a video or picture whose frames open the "
             "output, the video to give a sound to, or the sound (wav, mp4, ...) to give a video to")
    add("--conditioning_frames", "--known_frames", type=_frames, default=0,
        help="how many of its frames are given: 1, 5, 9, 13, ...; at both ends for frame_interpolation, any number")
    add("--end", action="append", default=[], metavar="FILE",
        help="what frame_interpolation ends with (repeatable): a video or picture whose first frames are the "
             "last ones; without it those of --clip")
    add("--region", default="", metavar="NAME",
        help="what inpainting fills (central, top_left, dynamic_central) or outpainting keeps (horizontal, "
             "vertical, central, top_left, dynamic_vertical)")
    add("--depth", action="append", default=[], metavar="FILE",
        help="depth of --clip for stylization (repeatable): a video or picture, near is bright")
    add("--num", type=_number(int, at_least=1, at_most=10**6), default=1, help="clips per prompt")
    add("--batch", type=_number(int, at_least=1, at_most=MOST_BATCH), default=4, help="clips decoded together; changes no sample of a model in float32, those of one in bfloat16")
    for name, kind in SAMPLE_FLAGS.items():
        add(f"--{name}", type=kind, default=None, help=f"same as --gin.SAMPLE.{name}")


SAMPLE_FLAGS = {"temperature": float, "top_k": int, "top_p": float, "guidance": float, "seed": int}


def _generate(args: argparse.Namespace) -> None:
    from poet.cli import jobs

    given = {name: getattr(args, name) for name in SAMPLE_FLAGS}
    flags = [f"SAMPLE.{name}={value}" for name, value in given.items() if value is not None]
    jobs.generate(args, [*args.bindings, *flags])


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _checkpoint_arguments(parser)
    _out_argument(parser)
    parser.add_argument(
        "--weights_only",
        action="store_true",
        help="only safetensors + spec: a checkpoint to give away, without optimizer state",
    )
    parser.add_argument(
        "--check",
        default="",
        metavar="FILE",
        help="run the export in a process of its own, compare it with the checkpoint, write FILE",
    )


def _export(args: argparse.Namespace) -> None:
    from poet.cli import jobs

    jobs.export(args, args.bindings)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="folder of a quickstart run")


def _report(args: argparse.Namespace) -> None:
    from poet.cli import jobs

    jobs.report(args.workdir)


COMMANDS: dict[str, Command] = {
    "describe": Command(
        summary="Print what a run is: settings, mesh, memory and work per device.",
        run=_describe,
        arguments=_describe_arguments,
        settings=FILES,
        example="--gin_file=gin/experiments/quickstart.gin",
    ),
    "tokenizer-train": Command(
        summary="Train a video or audio tokenizer.",
        run=_tokenizer_train,
        arguments=_workdir_arguments,
        settings=FILES,
        example="--gin_file=gin/experiments/tokenizer_64.gin --gin.TOKENIZER_TRAIN.source=CLIPS"
        " --workdir=runs/tokenizer",
        log_level=logging.INFO,
    ),
    "tokenizer-eval": Command(
        summary="Score a video or audio tokenizer beside codecs.",
        run=_tokenizer_eval,
        arguments=_tokenizer_eval_arguments,
        settings=FILES,
        example="--gin_file=gin/experiments/tokenizer_64.gin"
        " --tokenizer=data/pretrained/magvit_v2_64 --gin.EVAL.source=CLIPS --out=scores",
        log_level=logging.INFO,
    ),
    "reconstruct": Command(
        summary="Encode and decode clips with a video tokenizer.",
        run=_reconstruct,
        arguments=_reconstruct_arguments,
        settings=NONE,
        example="clip.mp4 --tokenizer=data/pretrained/magvit_v2_64 --out=rebuilt",
    ),
    "tokenize": Command(
        summary="Turn clips and captions into a token store.",
        run=_tokenize,
        arguments=_tokenize_arguments,
        settings=FILES,
        example="--gin_file=gin/experiments/quickstart.gin --gin.STORE.source=CLIPS"
        " --gin.STORE.path=CODES --gin.CONDITIONING.depth=flat",
        log_level=logging.INFO,
    ),
    "store": Command(
        summary="Check a token store, or mend it: damaged shards and records are named.",
        run=_store,
        arguments=_store_arguments,
        settings=FILES,
        example="verify CODES",
        log_level=logging.INFO,
    ),
    "train": Command(
        summary="Pretrain the language model on a token store.",
        run=_train,
        arguments=_workdir_arguments,
        settings=FILES,
        example="--gin_file=gin/experiments/quickstart.gin --gin.DATA.store=CODES --workdir=runs/mine",
        log_level=logging.INFO,
    ),
    "eval": Command(
        summary="Evaluate a checkpoint.",
        run=_eval,
        arguments=_eval_arguments,
        settings=OVERRIDES,
        example="--checkpoint=runs/mine --out=scores",
        log_level=logging.INFO,
    ),
    "generate": Command(
        summary="Make clips and sound from text, frames and sound.",
        run=_generate,
        arguments=_generate_arguments,
        settings=OVERRIDES,
        example='--checkpoint=data/pretrained/lm_arenas --prompt="the player walks forward" --out=clips',
        log_level=logging.INFO,
    ),
    "export": Command(
        summary="Write programs and weights that run without this package.",
        run=_export,
        arguments=_export_arguments,
        settings=OVERRIDES,
        example="--checkpoint=data/pretrained/lm_arenas --out=exported",
        log_level=logging.INFO,
    ),
    "report": Command(
        summary="Write the report page of a quickstart run.",
        run=_report,
        arguments=_report_arguments,
        settings=NONE,
        example="--workdir=runs/quickstart",
    ),
}
