"""`poet generate`: clips and sound made by a checkpoint."""

from __future__ import annotations

import argparse
import logging

from poet.cli import command
from poet.runs import outputs
from poet.runs.run import Run
from poet.spec.base import MOST_BATCH


def _arguments(parser: argparse.ArgumentParser) -> None:
    command.checkpoint_arguments(parser)
    command.out_argument(parser)
    add = parser.add_argument
    add("--task", default="text_to_video", help="task name; `poet describe` lists them")
    add("--prompt", action="append", default=[], help="what to show (repeatable)")
    add("--prompt_file", default="", help="one prompt per line")
    add("--negative_prompt", default="", help="what the clip must not look like; needs --guidance above 1")
    add("--clip", action="append", default=[], metavar="FILE",
        help="what the task starts from (repeatable): a video or picture whose frames open the "
             "output, the video to give a sound to, or the sound (wav, mp4, ...) to give a video to")
    add("--conditioning_frames", "--known_frames", type=command.frames, default=0,
        help="how many of its frames are given: 1, 5, 9, 13, ...; at both ends for frame_interpolation, any number")
    add("--end", action="append", default=[], metavar="FILE",
        help="what frame_interpolation ends with (repeatable): a video or picture whose first frames are the "
             "last ones; without it those of --clip")
    add("--region", default="", metavar="NAME",
        help="what inpainting fills (central, top_left, dynamic_central) or outpainting keeps (horizontal, "
             "vertical, central, top_left, dynamic_vertical)")
    add("--mask", action="append", default=[], metavar="MASK",
        help="a region of your own in its place, which inpainting fills and outpainting keeps (repeatable, one for each "
             "--clip): a picture or video in which it is white, or a box x0,y0,x1,y1 in pixels of the clip, or two with a "
             "colon between them, from the one to the other")
    add("--keep_given", action=argparse.BooleanOptionalAction, default=True,
        help="outside what is painted the given pixels come back bit by bit; without it as the tokenizer decodes them")
    add("--depth", action="append", default=[], metavar="FILE",
        help="depth of --clip for stylization (repeatable): a video or picture, near is bright")
    add("--num", type=command.number(int, at_least=1, at_most=10**6), default=1, help="clips per prompt")
    add("--batch", type=command.number(int, at_least=1, at_most=MOST_BATCH), default=4, help="clips decoded together, where SAMPLE.block leaves it open (a model in float32 does); changes no sample")
    add("--upscale", action="append", default=[], metavar="CHECKPOINT",
        help="double the height and width of the clips by this super-resolution network (repeatable, one after the other)")
    command.sample_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    from poet.sampling import command as generation

    args.checkpoint, resolved = command.open_checkpoint(args, [*args.bindings, *command.sample_bindings(args)])
    args.upscale = [Run.open(path) for path in args.upscale]
    read = [*args.clip, *args.end, *args.depth, *args.mask, *(run.folder for run in args.upscale)]
    inputs = [args.checkpoint.folder, args.prompt_file, *read]
    output = outputs.claim_of(args, outputs.GENERATION, inputs)
    args.out = str(output.folder)
    with output:
        written = generation.run(args, resolved)
    for path in written:
        print(output.where(path))


COMMAND = command.Command(
    summary="Make clips and sound from text, frames and sound.",
    run=_run,
    arguments=_arguments,
    settings=command.OVERRIDES,
    example='--checkpoint=data/pretrained/lm_arenas --prompt="the player walks forward" --out=clips',
    place=90,
    log_level=logging.INFO,
)
