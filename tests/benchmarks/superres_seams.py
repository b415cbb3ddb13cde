"""Whether the seams of super-resolution show: steps across tiles and chunks, beside steps elsewhere.

    python tests/benchmarks/superres_seams.py --checkpoint=data/pretrained/superres_arenas

Natural clips of 256x256 and 33 frames, halved, are brought back in tiles and chunks.  The mean absolute difference of
neighbouring pixels (frames) across a seam is divided by the same difference of the truth; so it is at the other borders
of patches (first frames of the other latents).  A seam that does not show has the ratio of the others.  Twice: as the
network's codes decode, and corrected by the input.
"""

from __future__ import annotations

import argparse

import numpy as np

from poet import media
from poet.evaluation.sets import clips as clip_sets
from poet.sampling import larger, superres
from poet.spec import ClipSpec
from poet.streams.low_resolution import SCALE

SIDE, FRAMES = 256, 33


def steps(video: np.ndarray, axis: int, places: list[int]) -> float:
    """Mean |x[p] - x[p - 1]| over these places of an axis of [N, T, H, W, 3]."""
    there, before = (np.take(video, [p - back for p in places], axis).astype(int) for back in (0, 1))
    return float(np.abs(there - before).mean())


def seams(upscaler: superres.Upscaler, frames: int, side: int) -> dict[int, list[int]]:
    """Axis of [N, T, H, W, 3] -> the places where what a later part has made begins."""
    (factor, height, width), spec = upscaler.video_tokenizer.spec.factor, upscaler.experiment.super_resolution
    length = upscaler.experiment.clip.frames
    shared = min(1 + (spec.overlap_time - 1) * factor, length - factor)
    later = [part.start + part.shared for part in superres.chunks(frames, length, shared)[1:]]
    low = side // SCALE
    tiles = [*upscaler._tiles(low // height, low // width)]
    rows = {rows.stop * SCALE * height for rows, _ in tiles} - {side}
    columns = {columns.stop * SCALE * width for _, columns in tiles} - {side}
    return {1: later, 2: sorted(rows), 3: sorted(columns)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--clips", type=int, default=4)
    options = parser.parse_args()
    (upscaler,) = larger.load(larger.find(options.checkpoint))
    clip = ClipSpec(frames=FRAMES, height=SIDE, width=SIDE)
    sets, _ = clip_sets.open_sets(["natural"], clip, options.clips, "", "")
    truth = sets["natural"][: options.clips]
    given = np.stack([media.resize_video(one, SIDE // SCALE, SIDE // SCALE) for one in truth])
    found, factor = seams(upscaler, FRAMES, SIDE), upscaler.video_tokenizer.spec.factor
    print("| correction | seam of | at | ratio there | ratio at other borders |\n|---|---|---|---|---|")
    plain = {"consistency": 0.0, "detail": 1.0, "steadiness": 0.0}
    for kind, settings in (("none", plain), ("that of the checkpoint", {})):
        made = upscaler.changed(**settings).upscale(given, batch=len(given))
        for axis, name in ((1, "chunks"), (2, "tiles, rows"), (3, "tiles, columns")):
            first = 1 if axis == 1 else factor[axis - 1]
            others = sorted({*range(first, truth.shape[axis], factor[axis - 1])} - {*found[axis]})
            there, elsewhere = (steps(made, axis, p) / steps(truth, axis, p) for p in (found[axis], others))
            print(
                f"| {kind} | {name} | {', '.join(map(str, found[axis]))} | {there:.2f} | {elsewhere:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
