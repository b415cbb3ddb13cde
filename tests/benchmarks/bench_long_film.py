"""Long films, codes carried over beside frames encoded anew: drift over time, on given weights.

    python tests/benchmarks/bench_long_film.py --checkpoint=data/pretrained/lm_arenas --seconds=24 --out=build/long_film

Every way makes films of the same prompts with the same noise, all at once.  Writes
the frames, a strip of each film and curves.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import film_drift
import numpy as np

from poet.runs.run import Run
from poet.sampling.films import sheets
from poet.sampling.films.sampler import FilmSampler, Wish
from poet.sampling.generate import Generator

WAYS = {
    "carried": {},
    "recoded": {"recode": True},
    "carried_sink": {"sink": True},
    "carried_context2": {"context": 2},
    "carried_context4": {"context": 4},
    "recoded_context2": {"context": 2, "recode": True},
}
PROMPTS = (
    "in the brown hall the player walks forward",
    "on the green field the player turns left slowly and walks forward",
    "in the court with coloured pillars the player turns right quickly",
    "in the long corridor the player hardly moves, a soldier in view",
)


@dataclasses.dataclass
class Film:
    """frames uint8 [T, H, W, 3], codes [t, h, w] of its stream, first new frames of clips, seconds of work, and the part
    of the sampled codes that the next clip is given as they were sampled."""

    frames: np.ndarray
    codes: np.ndarray
    seams: list[int]
    work_s: float
    kept: float


def make(sampler: FilmSampler, prompts: Sequence[str], seconds: float) -> list[Film]:
    """A film of each prompt, all of them at once."""
    frames, began, context = sampler.windows.frames_in(seconds), time.monotonic(), sampler.windows.context
    last, wishes = [sampler.begin() for _ in prompts], [Wish(prompt=prompt) for prompt in prompts]
    made, kept, number = [[] for _ in prompts], [[] for _ in prompts], 0
    while last[0].end.frames < frames:
        last = sampler.go_on_each(last, wishes, seed=0, number=number)
        number += 1
        for pieces, piece, part in zip(made, last, kept):
            pieces.append(dataclasses.replace(piece, end=dataclasses.replace(piece.end, decoder=None)))
            recent = np.concatenate([p.video for p in pieces[-context:]])[-(context - 1) :]
            part.append((piece.end.given[1:] == recent).mean())
    work_s = (time.monotonic() - began) / len(prompts)
    return [
        Film(
            np.concatenate([p.frames for p in pieces])[:frames],
            np.concatenate([p.video for p in pieces]),
            np.cumsum([len(p.frames) for p in pieces])[:-1].tolist(),
            work_s,
            float(np.mean(part)),
        )
        for pieces, part in zip(made, kept)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="data/pretrained/lm_arenas")
    parser.add_argument("--seconds", type=float, default=24.0)
    parser.add_argument("--seeds", type=int, default=3, help="films of each prompt")
    parser.add_argument("--ways", nargs="*", default=list(WAYS)[:3], choices=WAYS)
    parser.add_argument("--out", type=Path, default=Path("build/long_film"))
    args = parser.parse_args()
    generator, found = Generator.from_checkpoint(Run.open(args.checkpoint)), {}
    tokenizer = generator.resolved.spec.video_tokenizer
    args.out.mkdir(parents=True, exist_ok=True)
    for way in args.ways:
        sampler = FilmSampler(generator, **WAYS[way], batch=len(PROMPTS) * args.seeds)
        films, rate = make(sampler, PROMPTS * args.seeds, args.seconds), sampler.windows.rate_hz
        np.savez_compressed(args.out / f"{way}.npz", frames=np.stack([f.frames for f in films]))
        curves = [film_drift.curve(f.frames, f.codes, rate, tokenizer.bits, tokenizer.factor[0]) for f in films]
        for number, one in enumerate(films):
            shown = one.frames[:: round(rate)]
            sheets.write(args.out / f"{way}_{number:02d}.png", [shown[at : at + 12] for at in range(0, len(shown), 12)])
        found[way] = {
            f.name: np.mean([[getattr(s, f.name) for s in curve] for curve in curves], axis=0).round(4).tolist()
            for f in dataclasses.fields(film_drift.Second)
        } | {
            "films": len(films),
            "work_s": round(sum(f.work_s for f in films), 1),
            "kept": float(np.mean([f.kept for f in films])),
            "seam_step": float(np.mean([film_drift.seam_step(f.frames, f.seams, tokenizer.factor[0]) for f in films])),
        }
        (args.out / "curves.json").write_text(json.dumps(found, indent=1))
        show(way, found[way])


def show(way: str, curves: dict) -> None:
    """A table of every third second."""
    print(
        f"\n{way}: {curves['films']} films, {curves['work_s']} s of work; {curves['kept']:.3f} of the sampled codes are given as "
        f"they were; a seam's step is {curves['seam_step']:.3f} of other latent frames' steps"
    )
    print("second   " + "".join(f"{name:>10}" for name in (f.name for f in dataclasses.fields(film_drift.Second))))
    for second in range(0, len(curves["pixels"]), 3):
        print(
            f"{second:6}   "
            + "".join(f"{curves[f.name][second]:10.3f}" for f in dataclasses.fields(film_drift.Second)),
            flush=True,
        )


if __name__ == "__main__":
    main()
