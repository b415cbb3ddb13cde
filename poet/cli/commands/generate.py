"""`poet generate`: clips and sound sampled from a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from poet.cli import command, films
from poet.runs import outputs
from poet.runs.run import Run
from poet.spec import UserError
from poet.spec.base import MOST_BATCH

if TYPE_CHECKING:
    from poet.sampling.record import Replay
    from poet.sampling.requests import Request
    from poet.tasks.resolved import Resolved


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.checkpoint_arguments(parser, required=False)
    command.out_argument(parser, required=False)
    _text_arguments(parser)
    _clip_arguments(parser)
    _whole_argument(parser)
    _region_arguments(parser)
    _output_arguments(parser)
    _job_arguments(parser)
    command.sample_arguments(parser)


def _text_arguments(parser: argparse.ArgumentParser) -> None:
    """The task and its texts."""
    add = parser.add_argument
    add("named", nargs="?", default="", metavar="TASK", help="task name; `poet describe` lists them (text_to_video)")
    add("--task", default="", help="the task, as a flag")
    add("--prompt", action="append", default=[], help="text (repeatable)")
    add("--prompt_file", default="", help="file with one prompt per line")
    command.prompt_arguments(parser)


def _clip_arguments(parser: argparse.ArgumentParser) -> None:
    """The clips that samples start from."""
    add = parser.add_argument
    add(
        "--clip",
        action="append",
        default=[],
        metavar="FILE",
        help="condition of the task (repeatable): a video or picture whose frames open the "
        "output, the video that gets a sound, or the sound (wav, mp4, ...) that gets a video",
    )
    add(
        "--conditioning_frames",
        "--known_frames",
        type=command.frames,
        default=0,
        help="frames of --clip that condition the output: 1, 5, 9, 13, ...; for frame_interpolation any number, at "
        "both ends (default: the fewest that the task takes)",
    )
    add(
        "--end",
        action="append",
        default=[],
        metavar="FILE",
        help="video or picture whose first frames are the last ones of frame_interpolation (repeatable; default: the "
        "last frames of --clip)",
    )
    add(
        "--depth",
        action="append",
        default=[],
        metavar="FILE",
        help="depth of --clip for stylization (repeatable): a video or picture in which near is bright; 'flat': "
        "none, so that motion alone counts",
    )


def _whole_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--whole",
        action="store_true",
        help="video_to_audio: a sound for all of --clip, a film of any length, whose coded frames are copied; --out is "
        "then the folder of a film, where an interrupted run goes on (default: the first seconds, a clip of the run)",
    )


def _region_arguments(parser: argparse.ArgumentParser) -> None:
    """What of a clip is generated anew."""
    add = parser.add_argument
    add(
        "--region",
        default="",
        metavar="NAME",
        help="what inpainting fills (central, top_left, dynamic_central) or outpainting keeps (horizontal, "
        "vertical, central, top_left, dynamic_vertical)",
    )
    add(
        "--mask",
        action="append",
        default=[],
        metavar="MASK",
        help="your own region, which inpainting fills and outpainting keeps (repeatable, one for each --clip): "
        "a picture or video in which it is white, a box x0,y0,x1,y1 in pixels of the clip, or two boxes with a "
        "colon between them, for one that moves from the first to the second",
    )
    add(
        "--keep_original",
        "--keep_given",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="copy the pixels of --clip outside the generated region, instead of decoding them",
    )


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    """How many samples, and their files."""
    add = parser.add_argument
    add("--num", type=command.number(int, at_least=1, at_most=10**6), default=1, help="clips per prompt")
    add(
        "--batch",
        type=command.number(int, at_least=1, at_most=MOST_BATCH),
        default=4,
        help="clips sampled together, unless SAMPLE.block decides it (in bfloat16); it changes no sample",
    )
    add(
        "--upscale",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="super-resolution network, or an export with some, that doubles the height and width of the clips "
        "(repeatable, one after the other)",
    )
    add(
        "--format",
        action="append",
        default=[],
        metavar="NAMES",
        help="files to write, as mp4,gif,wav: mp4 (H.264, AAC), webm (VP9, Opus), gif, apng, png (a strip "
        "of the frames), wav, txt (default: mp4, gif and png of a clip, png of a picture, wav of sound)",
    )


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    """Many requests, none, or one from a record."""
    add = parser.add_argument
    add(
        "--requests",
        default="",
        metavar="FILE",
        help="jobs, one JSON object in each line: flags of this command as keys, and a name; files relative to FILE. "
        "Each job writes a folder in --out and a line of FILE.results.jsonl; finished jobs are skipped",
    )
    add("--dry_run", action="store_true", help="print what would be sampled, and an estimate of the time")
    add(
        "--replay",
        default="",
        metavar="FILE",
        help="repeat the generation of a generation.json, samples or a film, byte for byte",
    )


def _run(args: argparse.Namespace) -> int | None:
    for flag in ("out",) if args.replay else ("checkpoint", "out") if not args.dry_run else ("checkpoint",):
        if not getattr(args, flag):
            raise UserError(f"the following arguments are required: --{flag}")
    if args.replay:
        return _replay(args)
    request = _request(args)
    settings = command.generation_bindings(args)
    checkpoint, resolved = command.open_checkpoint(args, settings)
    if args.whole:
        return _whole(args, request, resolved, checkpoint, settings)
    return (_batch if args.requests else _single)(args, request, resolved, checkpoint, settings)


def _request(args: argparse.Namespace) -> Request:
    from poet.sampling.requests import Request

    if args.named and args.task not in ("", args.named):
        raise UserError(f"two tasks were named, {args.named} and --task={args.task}: drop one")
    asked = {field.name: getattr(args, field.name) for field in dataclasses.fields(Request)}
    asked["format"] = [name for text in args.format for name in text.split(",")]
    asked["task"] = args.named or args.task or Request.task
    return Request(**asked)


def _single(
    args: argparse.Namespace, request: Request, resolved: Resolved, checkpoint: Run, settings: Sequence[str]
) -> int | None:
    from poet.sampling import command as generation
    from poet.sampling import jobs

    if args.dry_run:
        print(generation.preview(jobs.admit(request, resolved)))
        return None
    with _claim(args, request, checkpoint) as output:
        written = generation.finished(lambda: generation.run(request, resolved, checkpoint, output.folder, settings))
    return _printed(output, *written)


# Flags of a request that --whole takes; sampling and settings aside.
_WITH_WHOLE = {"named", "task", "clip", "batch"}


def _whole(
    args: argparse.Namespace, request: Request, resolved: Resolved, checkpoint: Run, settings: Sequence[str]
) -> None:
    from poet.sampling.films.dubbing import TASK
    from poet.sampling.films.studio import DUB

    if request.task != TASK or len(request.clip) != 1:
        raise UserError(f"--whole is for the task {TASK} and one film: `poet generate {TASK} --whole --clip=FILE`")
    others = {field.name for field in dataclasses.fields(request)} | {"requests", "dry_run", "overwrite"}
    for name in sorted(_given(args) & others - _WITH_WHOLE):
        raise UserError(f"--whole makes one sound for one film: drop --{name}")
    studio = films.studio_of(checkpoint, resolved, settings, {"has_audio": True})
    films.make(studio, DUB, {"clip": request.clip[0], "seed": studio.sample.seed}, args.out)


def _claim(args: argparse.Namespace, request: Request, checkpoint: Run) -> outputs.Output:
    from poet.sampling import larger

    inputs = [checkpoint.folder, *request.files(), *(larger.find(path).folder for path in request.upscale)]
    return outputs.claim_of(args, outputs.GENERATION, inputs)


def _printed(output: outputs.Output, files: Sequence[Path], failure: UserError | None) -> int | None:
    for path in files:
        print(output.where(path))
    if failure is not None:
        raise failure
    return None


def _batch(
    args: argparse.Namespace, request: Request, resolved: Resolved, checkpoint: Run, settings: Sequence[str]
) -> int | None:
    from poet.sampling import batch_file
    from poet.sampling import command as generation

    batch = batch_file.read(args.requests, args.out, request, resolved, checkpoint, settings, args.overwrite)
    if args.dry_run:
        done = batch.done()
        for line in batch.lines:
            what = f"refused: {line.error}" if line.job is None else generation.preview(line.job)
            print(f"{line.name}: {'done before' if line.name in done else what}")
        return None
    failed = batch.run(overwrite=args.overwrite)
    print(f"{len(batch.lines) - failed} of {len(batch.lines)} jobs are done; results: {batch.results}")
    return 1 if failed else None


def _replay(args: argparse.Namespace) -> int | None:
    from poet.sampling import command as generation
    from poet.sampling import record

    _refuse_beside_replay(args)
    replay = record.read(args.replay)
    args.checkpoint = args.checkpoint or replay.checkpoint
    if replay.film:
        files, folder = films.replay(args, replay)
        print(*files, sep="\n")
        return _compared(replay, record.differing(replay, files, folder))
    checkpoint, resolved = command.open_checkpoint(args, list(replay.settings))
    resolved = generation.as_recorded(resolved, replay)
    record.check(replay, checkpoint)
    with _claim(args, replay.request, checkpoint) as output:
        files, failure = generation.finished(
            lambda: generation.run(replay.request, resolved, checkpoint, output.folder, replay.settings)
        )
        other = record.differing(replay, files, output.folder)
    code = _printed(output, files, failure)
    return _compared(replay, other) or code


def _compared(replay: Replay, other: Sequence[str]) -> int | None:
    print(f"differ from the record: {', '.join(other)}" if other else f"the same bytes as {replay.path} records")
    return 1 if other else None


def _refuse_beside_replay(args: argparse.Namespace) -> None:
    request = _request(args)
    given = [field.name for field in dataclasses.fields(request) if field.name in _given(args)]
    if given or command.generation_bindings(args) or args.requests or args.dry_run:
        first = f"--{given[0]}" if given else "other settings"
        raise UserError(f"a replay takes its request from the record: drop {first}")


def _given(args: argparse.Namespace) -> set[str]:
    """Flags of the request that were given."""
    parser = argparse.ArgumentParser()
    _arguments(parser)
    return {name for name, value in vars(args).items() if parser.get_default(name) != value}


COMMAND = command.Command(
    summary="Sample clips and sound from text, frames and sound.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example='--checkpoint=data/pretrained/lm_arenas --prompt="the player walks forward" --out=clips',
    place=90,
)
