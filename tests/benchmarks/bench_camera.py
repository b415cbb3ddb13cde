"""Does a model move the camera as it is asked to?  The sign of the optical flow of its clips, for each preset.

    python tests/benchmarks/bench_camera.py --checkpoint=data/pretrained/lm_arenas --style=arenas --seeds=2
    python tests/benchmarks/bench_camera.py --checkpoint=data/pretrained/lm_arenas --captions --seeds=4

Each preset is sampled with the same prompts and the same noise as no preset at all.  A row: the part of the clips that
have the sign, with the preset and without; the mean of the measure with it, less that without, and the standard error
of that difference.

--captions: whole captions of Arenas-AV as it is trained on, 'in the brown hall the player turns left quickly', with the
right word and with the opposite one, by the same noise.  A row: the part of the clips with the sign of the right word,
of those with it and of those with the wrong one; the mean of the measure, right less wrong, and its standard error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from poet import media
from poet.runs.run import Run
from poet.sampling.films import camera
from poet.sampling.generate import Generator
from poet.spec import PromptSpec, config
from poet.tasks.resolved import Resolved

PLACES = (
    "in the brown hall",
    "in the hall with yellow lights",
    "in the long corridor",
    "in the round arena",
    "in the long hall",
    "on the green field",
    "in the green maze",
    "in the rooms of many walls",
    "in the court with coloured pillars",
)


# Opposite sentences of the captions: (sentence, sentence, of `Motion` what tells them, its sign under the first).
SENTENCES = (
    ("turns left quickly", "turns right quickly", "x", 1),
    ("turns left", "turns right", "x", 1),
    ("steps left", "steps right", "x", 1),
    ("walks forward", "walks backward", "zoom", 1),
)


def clips(generator: Generator, prompts: list[str], seed: int, batch: int) -> np.ndarray:
    """uint8 [n, T, H, W, 3], one for each prompt."""
    sample = generator.resolved.spec.sample.replace(seed=seed)
    return generator.generate("text_to_video", prompts, sample=sample, batch=batch).video


def by_words(measured: Callable[[list[str], str], list[camera.Motion]]) -> None:
    """Prints the table of --captions."""
    print(f"{'right word':20}{'wrong word':20}{'right':>7}{'wrong':>7}{'difference':>12}{'± s.e.':>8}")
    for *pair, axis, sign in SENTENCES:
        found = [measured([f"{place} the player {words}" for place in PLACES], words) for words in pair]
        first, second = (np.array([getattr(motion, axis) * sign for motion in group]) for group in found)
        gain = first - second
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        for right, wrong, of_right, of_wrong in ((*pair, first, second), (*pair[::-1], -second, -first)):
            shares = f"{np.mean(of_right > 0):7.2f}{np.mean(of_wrong > 0):7.2f}"
            print(
                f"{right:20}{wrong:20}{shares}{gain.mean():12.3f}{error:8.3f}   {axis}, {len(gain)} clips", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="data/pretrained/lm_arenas")
    parser.add_argument("--style", default="arenas")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=9)
    parser.add_argument("--moves", nargs="*", choices=camera.MOVES)
    parser.add_argument("--captions", action="store_true", help="whole captions, by right and wrong words")
    parser.add_argument("--guidance", type=float, help="default: that of the checkpoint")
    parser.add_argument("--out", type=Path, default=Path("build/camera"))
    args = parser.parse_args()
    run = Run.open(args.checkpoint)
    bindings = config.style(args.style) if args.style else []
    bindings += [f"SAMPLE.guidance={args.guidance}"] if args.guidance is not None else []
    resolved = Resolved(config.override(run.checkpoint.spec, bindings))
    generator, words = Generator.from_checkpoint(run, resolved), resolved.spec.prompt.camera
    args.out.mkdir(parents=True, exist_ok=True)

    def measured(prompts: list[str], name: str) -> list[camera.Motion]:
        made = np.concatenate([clips(generator, prompts, seed, args.batch) for seed in range(args.seeds)])
        strip = np.concatenate([media.frame_strip(clip, 4) for clip in made[: len(PLACES)]])
        media.write_png_strip(args.out / f"{name.replace(' ', '_') or 'none'}.png", strip[None])
        return [camera.motion(clip) for clip in made]

    if args.captions:
        return by_words(measured)

    def motions(name: str) -> list[camera.Motion]:
        return measured([PromptSpec().complete(place, camera.phrase(name, words)) for place in PLACES], name)

    without, found = motions(""), {}
    print(
        f"{'movement':14}{'measure':>8}{'agree':>8}{'without':>9}{'difference':>12}{'± s.e.':>8}   ({len(without)} clips each)"
    )
    for name in args.moves or [name for name in camera.MOVES if name in words or not words]:
        move, with_it = camera.MOVES[name], motions(name)
        gain = np.array([getattr(a, move.axis) - getattr(b, move.axis) for a, b in zip(with_it, without)])
        agree, by_chance = (np.mean([m.agrees(name) for m in group]) for group in (with_it, without))
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        found[name] = {
            "axis": move.axis,
            "sign": move.sign,
            "agree": agree,
            "without": by_chance,
            "gain": gain.mean(),
            "error": error,
        }
        print(f"{name:14}{move.axis:>8}{agree:8.2f}{by_chance:9.2f}{gain.mean():12.3f}{error:8.3f}", flush=True)
        (args.out / "camera.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
