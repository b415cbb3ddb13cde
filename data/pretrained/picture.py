"""The picture in the card of a language model: clips of a source, and below them samples for each kind of condition.

    python data/pretrained/picture.py --checkpoint=data/pretrained/lm_arenas --source=CLIPS --out=samples.png

Seed 0 and clips evenly spaced in the validation split: nothing is picked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from poet.evaluation.gallery.clips import spaced
from poet.runs.run import Run
from poet.sampling.generate import Generator
from poet.spec import StoreSpec
from poet.store.raw import RawClip
from poet.store.sources import open_splits

# Every fourth frame is shown, at twice its size.
EVERY, SCALE, GAP = 4, 2, 4


def rows(generator: Generator, clips: list[RawClip]) -> list[np.ndarray]:
    """uint8 [N, T, H, W, 3] each: the clips, samples, and conditions above their samples."""
    video, depth = (np.stack([getattr(clip, name) for clip in clips]) for name in ("video", "depth"))
    captions = [clip.caption for clip in clips]

    def sampled(task: str, **request: object) -> np.ndarray:
        return generator.generate(task, **request).video

    found = [
        video,
        sampled("text_to_video", prompts=captions),
        sampled("image_to_video", prompts=captions, media={"video": video}, conditioning_frames=1),
        sampled("frame_prediction", media={"video": video}, conditioning_frames=5),
    ]
    for task, request in (
        ("inpainting", {"region": "central"}),
        ("stylization", {"prompts": captions, "depths": depth}),
    ):
        made = {name: value for name, value in request.items() if name != "prompts"}
        condition = generator.make_condition(task, video, made.get("depths"), region=made.get("region", ""))
        found += [condition.video, sampled(task, media={"video": video}, **request)]
    return found


def sheet(found: list[np.ndarray]) -> np.ndarray:
    """uint8 [H, W, 3]: a line for each of `found`: every fourth frame of its clips, side by side."""
    lines = []
    for clips in found:
        strips = [np.concatenate(list(clip[::EVERY]), axis=1) for clip in clips]
        lines.append(np.concatenate([np.pad(s, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for s in strips], 1))
    return np.concatenate(lines).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--source", required=True, help="a TFDS folder with depth and a split validation")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    generator = Generator.from_checkpoint(Run.open(options.checkpoint))
    splits = open_splits(StoreSpec(source=options.source), generator.resolved.spec.clip)
    clips = spaced(splits["validation"], options.clips)
    Image.fromarray(sheet(rows(generator, clips))).quantize(256).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
