"""`poet gallery`: samples of every task of a checkpoint on one page."""

from __future__ import annotations

import argparse
import logging

from poet.cli import command
from poet.runs import assets, lease
from poet.runs.run import SPEC, Checkpoint, Run
from poet.spec import UserError
from poet.tasks.registry import SUPER_RESOLUTION
from poet.tasks.resolved import Resolved


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.checkpoint_arguments(parser)
    add = parser.add_argument
    add(
        "--out",
        required=True,
        metavar="FOLDER",
        help="folder of the page, index.html; unchanged sections of an earlier run are reused",
    )
    add(
        "--source",
        default="",
        metavar="CLIPS",
        help="clips for conditions: a folder of videos, or a TFDS folder (default, for shipped weights: "
        "game clips rendered on demand)",
    )
    add(
        "--prompt",
        action="append",
        default=[],
        help="text of each clip, or one for all (repeatable; default: their captions)",
    )
    add("--clips", type=command.number(int, at_least=1, at_most=64), default=2, help="number of clips")
    add(
        "--seeds",
        type=command.number(int, at_least=1, at_most=64),
        default=3,
        help="number of samples of each clip, seeds 0 to N-1",
    )
    add("--quick", action="store_true", help="only a few sections")
    add(
        "--section",
        action="append",
        default=[],
        metavar="NAME",
        help="only this section (repeatable): a task, long, storyboard or upscale",
    )
    add(
        "--upscale",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="super-resolution network that doubles the clips (repeatable; default: the shipped one)",
    )
    command.watermark_argument(parser)


def _run(args: argparse.Namespace) -> None:
    from poet.evaluation.gallery import obeyed
    from poet.evaluation.gallery import run as gallery
    from poet.evaluation.gallery.clips import collect
    from poet.evaluation.gallery.studio import Studio
    from poet.sampling import larger
    from poet.sampling.generate import Generator

    logging.getLogger("poet.sampling.engine").setLevel(logging.WARNING)  # A section has its own line.
    marks = [] if args.watermark is None else [f"SAMPLE.watermark={args.watermark}"]
    run, resolved = command.open_checkpoint(args, [*args.bindings, *marks])
    folder = gallery.check_place(args.out, [run.folder, args.source])
    names = args.section or (gallery.QUICK if args.quick else ())
    gallery.check_names(names)
    upscale = [larger.find(path) for path in args.upscale] or _shipped_upscalers()
    source = args.source or _stand_in(run)
    with lease.hold(folder, what="folder of a gallery"):
        gallery.begin(folder)
        clips = collect(source, resolved.spec.clip, args.clips, folder / gallery.CONDITIONS)
        studio = Studio(
            resolved=resolved,
            load=lambda: Generator.from_checkpoint(run, resolved),
            checkpoint=args.checkpoint,
            made_by={"checkpoint": run.checkpoint.fingerprint},
            clips=clips,
            prompts=_prompts(args.prompt, [clip.caption for clip in clips]),
            seeds=args.seeds,
            upscale=upscale,
        )
        print(gallery.make(studio, obeyed.read_scores(run), folder, names))


def _stand_in(run: Run) -> str:
    from poet.cli import built_in

    return built_in.clips(run)


def _prompts(given: list[str], captions: list[str]) -> list[str]:
    """A text for each clip; UserError where there is none."""
    if len(given) not in (0, 1, len(captions)):
        raise UserError(f"{len(given)} prompts for {len(captions)} clips: give none, one, or one for each clip")
    prompts = given * (len(captions) // len(given)) if given else captions
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("a clip of the source has no caption, or a prompt is empty: give the texts as --prompt")
    return prompts


def _shipped_upscalers() -> list[Run]:
    """The first super-resolution network among the weights that ship, if there is one."""
    folders = sorted((assets.root() / "data" / "pretrained").glob("*/"))
    folders = [folder for folder in folders if (folder / SPEC).is_file()]
    released = (Run.open(folder) for folder in folders if Checkpoint(folder).released)
    return [run for run in released if Resolved(run.checkpoint.spec).network == SUPER_RESOLUTION][:1]


COMMAND = command.Command(
    summary="Show samples of every task of a checkpoint on one page.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example="--checkpoint=data/pretrained/lm_arenas --out=gallery",
    place=105,
)
