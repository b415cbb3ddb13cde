"""The pictures of a language model's card and of the README: clips of a source, and below them samples for each
kind of condition.

    python data/pretrained/picture.py --checkpoint=data/pretrained/lm_arenas --source=CLIPS --out=samples.png \
        --moving=samples.webp --upscale=data/pretrained/superres_arenas

Seed 0 and clips evenly spaced in the validation split: nothing is picked.  The still picture shows every fourth
frame, the moving one all frames; with --upscale its frames were brought to twice their size by that network.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from poet.conditioning import regions
from poet.evaluation.gallery.clips import spaced
from poet.runs.run import Run
from poet.sampling import larger, superres
from poet.sampling.generate import Generator
from poet.spec import StoreSpec
from poet.store.raw import RawClip
from poet.store.sources import open_splits

# Every fourth frame is shown, at twice its size.
EVERY, SCALE, GAP = 4, 2, 4
# Of the moving picture: pixels of the labels beside its rows, and its quality.
MARGIN, QUALITY = 132, 60


def rows(generator: Generator, clips: list[RawClip]) -> dict[str, np.ndarray]:
    """Label -> uint8 [N, T, H, W, 3]: the clips, samples, and conditions above their samples."""
    video, depth = (np.stack([getattr(clip, name) for clip in clips]) for name in ("video", "depth"))
    captions = [clip.caption for clip in clips]

    def sampled(task: str, **request: object) -> np.ndarray:
        return generator.generate(task, **request).video

    found = {
        "a clip of the game": video,
        "text to video": sampled("text_to_video", prompts=captions),
        "its first frame\nto video": sampled(
            "image_to_video", prompts=captions, media={"video": video}, conditioning_frames=1
        ),
        "its first\nfive frames\ncontinued": sampled("frame_prediction", media={"video": video}, conditioning_frames=5),
    }
    for task, labels, request in (
        ("inpainting", ("a hole", "the hole filled"), {"region": "central"}),
        ("stylization", ("flow and depth", "flow, depth\nand text to video"), {"prompts": captions, "depths": depth}),
    ):
        made = {name: value for name, value in request.items() if name != "prompts"}
        condition = generator.make_condition(task, video, made.get("depths"), region=made.get("region", ""))
        found |= {labels[0]: condition.video, labels[1]: sampled(task, media={"video": video}, **request)}
    hole = regions.area("central", video.shape[1:4])
    # As `poet generate` writes it: what was given stays as it was.
    found["the hole filled"] = np.stack([regions.keep(*pair, hole) for pair in zip(found["the hole filled"], video)])
    return found


def sheet(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint8 [H, W, 3]: a line for each of `found`: every fourth frame of its clips, side by side."""
    lines = []
    for clips in found.values():
        strips = [np.concatenate(list(clip[::EVERY]), axis=1) for clip in clips]
        lines.append(np.concatenate([np.pad(s, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for s in strips], 1))
    return np.concatenate(lines).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def frames(found: Mapping[str, np.ndarray]) -> list[Image.Image]:
    """The moments of a moving picture: a labelled line for each of `found`, its clips side by side."""
    moments = len(next(iter(found.values()))[0])
    padding = ((0, 0), (0, GAP), (0, GAP), (0, 0))
    lines = [np.concatenate([np.pad(c, padding, constant_values=255) for c in clips], 2) for clips in found.values()]
    return [_labelled([line[time] for line in lines], list(found)) for time in range(moments)]


def _labelled(lines: list[np.ndarray], labels: list[str]) -> Image.Image:
    height, width = (sum(len(line) for line in lines), lines[0].shape[1])
    page = Image.new("RGB", (MARGIN + width, height), "white")
    for number, (line, label) in enumerate(zip(lines, labels)):
        page.paste(Image.fromarray(line), (MARGIN, number * len(line)))
        ImageDraw.Draw(page).multiline_text((4, number * len(line) + 8), label, fill="black", font_size=14)
    return page


def enlarged(found: Mapping[str, np.ndarray], upscale: str) -> dict[str, np.ndarray]:
    """`found` at twice its size: by a super-resolution network, or each pixel as four."""
    if not upscale:
        return {label: clips.repeat(SCALE, axis=2).repeat(SCALE, axis=3) for label, clips in found.items()}
    networks = larger.load(larger.find(upscale))
    return {label: superres.chained(networks, clips) for label, clips in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--source", required=True, help="a TFDS folder with depth and a split validation")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, help="the still picture, a .png")
    parser.add_argument("--moving", type=Path, help="the moving picture, a .webp")
    parser.add_argument("--upscale", default="", help="super-resolution weights for the moving picture")
    options = parser.parse_args()
    generator = Generator.from_checkpoint(Run.open(options.checkpoint))
    spec = generator.resolved.spec.clip
    splits = open_splits(StoreSpec(source=options.source), spec)
    found = rows(generator, spaced(splits["validation"], options.clips))
    Image.fromarray(sheet(found)).quantize(256).save(options.out, optimize=True)
    if options.moving:
        first, *others = frames(enlarged(found, options.upscale))
        duration = round(1000 / spec.rate_hz)
        first.save(
            options.moving, save_all=True, append_images=others, duration=duration, loop=0, quality=QUALITY, method=6
        )


if __name__ == "__main__":
    main()
