"""`poet reconstruct`: clips as a video tokenizer rebuilds them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from poet.cli import command
from poet.runs import outputs


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("clips", nargs="+", metavar="CLIP", help="any video file or picture")
    add("--tokenizer", required=True, help="folder of a trained tokenizer")
    command.out_argument(parser)
    add("--fps", type=command.number(float, above=0, at_most=1000), default=8.0, help="frames a second to read")
    add("--height", type=command.side, default=0, help="resize and crop to this (default: that of the clip)")
    add("--width", type=command.side, default=0, help="resize and crop to this (default: that of the clip)")
    add("--frames", type=command.frames, default=0, help="take this many frames (default: all)")
    add("--chunk_frames", type=command.frames, default=16, help="frames per call; the result does not depend on it")
    add("--tile", type=command.side, default=32, help="latents per side of a tile; 0: whole frames, exact")
    add("--overlap", type=command.side, default=8, help="latents by which neighbouring tiles overlap")
    add(
        "--dtype",
        default="",
        choices=("", "float32", "bfloat16"),
        help="dtype of the network (default: that of the tokenizer)",
    )


def _run(args: argparse.Namespace) -> None:
    """Writes the clips, and prints rate, PSNR and speed."""
    from poet.evaluation import reconstruct as rebuilding
    from poet.tokenizers.video.base import VideoTokenizer

    clips = [Path(clip) for clip in args.clips]
    names = rebuilding.names(clips)
    output = outputs.claim_of(args, outputs.RECONSTRUCTION, [args.tokenizer, *clips])
    options = {name: getattr(args, name) for name in ("chunk_frames", "tile", "overlap")}
    tokenizer = VideoTokenizer.load(args.tokenizer, **options)
    if args.dtype:
        tokenizer = tokenizer.in_dtype(args.dtype)
    size = {name: getattr(args, name) for name in ("height", "width", "frames")}
    with output:
        for clip, name in zip(clips, names):
            video = rebuilding.read(clip, tokenizer, rate_hz=args.fps, **size)
            done = rebuilding.reconstruct(tokenizer, video, output.folder / name, name=str(clip), rate_hz=args.fps)
            print(dataclasses.replace(done, path=output.where(done.path)))


COMMAND = command.Command(
    summary="Encode and decode clips with a video tokenizer.",
    run=_run,
    arguments=_arguments,
    settings=command.NONE,
    example="clip.mp4 --tokenizer=data/pretrained/magvit_v2_64x8 --out=rebuilt",
    place=40,
    quiet=True,
)
