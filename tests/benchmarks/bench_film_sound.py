"""Whether the sound of a whole film (`poet generate video_to_audio --whole`) shows where its clips meet.

    python tests/benchmarks/bench_film_sound.py --weights=data/pretrained/lm_arenas --clip=FILM [--clip=...] --seeds=4

The same films twice: clips that continue each other, and clips sampled each by itself and joined, as a reference that
has seams.  At seams and at every other frame of codes (20 ms at 16 kHz), beyond 0.2 s of a seam:

level: difference of the levels of 50 ms before and after, dB.
phase: what linear prediction (order 32, of the 100 ms before) misses in the next 5 ms, RMS relative to the prediction's
       residual in those 100 ms, dB.  A jump of the wave or of its phase cannot be predicted.
Each is the mean over places, +- one standard error.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.signal

from poet import media
from poet.runs.run import Run
from poet.sampling.films import dubbing
from poet.sampling.films.sampler import FilmSampler, seed_of
from poet.sampling.films.sounds import fitted
from poet.sampling.generate import Generator

ORDER, LEVEL_S, PAST_S, NEXT_S, AWAY_S = 32, 0.05, 0.1, 0.005, 0.2
# In levels of int16: silence is taken for that loud.
FLOOR = 1.0


def level_step(sound: np.ndarray, place: int, rate_hz: int) -> float:
    """Difference of levels about a sample, in dB."""
    size = round(LEVEL_S * rate_hz)
    before, after = (_rms(part) for part in (sound[place - size : place], sound[place : place + size]))
    return abs(20 * np.log10(after / before))


def surprise(sound: np.ndarray, place: int, rate_hz: int) -> float:
    """What linear prediction from the samples before `place` misses after it, in dB above what it missed before."""
    past, ahead = round(PAST_S * rate_hz), round(NEXT_S * rate_hz)
    known = sound[place - past : place].astype(float)
    spectrum = scipy.signal.correlate(known, known, method="fft")[past - 1 : past + ORDER]
    spectrum[0] = spectrum[0] * (1 + 1e-6) + FLOOR  # White noise far below a level keeps silence solvable.
    taps = np.concatenate([[1], -scipy.linalg.solve_toeplitz(spectrum[:-1], spectrum[1:])])
    missed = scipy.signal.lfilter(taps, 1, sound[place - past : place + ahead].astype(float))
    return 20 * np.log10(_rms(missed[past:]) / _rms(missed[ORDER:past]))


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples.astype(float))) + FLOOR**2))


def apart(sampler: FilmSampler, frames: Sequence[np.ndarray], seed: int) -> tuple[np.ndarray, list[int]]:
    """The sound of clips that know nothing of each other, and where they meet."""
    windows, parts = sampler.windows, []
    step = windows.clip_frames
    for number, start in enumerate(range(0, len(frames), step)):
        part = list(frames[start : start + step])
        parts.append(fitted(dubbing.sound_of(sampler, part, seed=seed_of(seed, number)), windows.sample_of(step)))
    return np.concatenate(parts), [windows.sample_of(n * step) for n in range(1, len(parts))]


def whole(sampler: FilmSampler, frames: Sequence[np.ndarray], seed: int) -> tuple[np.ndarray, list[int]]:
    """The sound of clips that continue each other, and where their new samples begin."""
    windows = sampler.windows
    step = windows.new_frames(windows.context)
    begins = itertools.takewhile(lambda frame: frame < len(frames), itertools.count(windows.clip_frames, step))
    # The first samples that are new lie behind the known frames of codes.
    shift = windows.sample_of(windows.frames_of(windows.context)) - windows.known_audio[windows.context] * windows.hop
    return dubbing.sound_of(sampler, frames, seed=seed), [windows.sample_of(frame) - shift for frame in begins]


def table(found: list[tuple[np.ndarray, list[int]]], hop: int, rate_hz: int) -> list[str]:
    """Cells: of each measure, at seams and elsewhere."""
    cells = []
    for measure in (level_step, surprise):
        at, other = [], []
        for sound, seams in found:
            margin, away = round(PAST_S * rate_hz), round(AWAY_S * rate_hz)
            places = range(margin, len(sound) - margin, hop)
            at += [measure(sound, s, rate_hz) for s in seams if margin <= s <= len(sound) - margin]
            other += [measure(sound, p, rate_hz) for p in places if min(abs(p - s) for s in seams) > away]
        cells += [_said(at), _said(other)]
    return cells


def _said(values: list[float]) -> str:
    return f"{np.mean(values):.2f} +- {np.std(values) / len(values) ** 0.5:.2f} ({len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="data/pretrained/lm_arenas")
    parser.add_argument("--clip", action="append", required=True, help="a film (repeatable)")
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    sampler = FilmSampler(Generator.from_checkpoint(Run.open(args.weights)), has_audio=True)
    clip = sampler.generator.resolved.spec.clip
    films = [[frame for frame, _ in media.read_frames(Path(path), clip)] for path in args.clip]
    print("| clips | level at seams, dB | elsewhere | phase at seams, dB | elsewhere |\n|---|---|---|---|---|")
    ways: dict[str, Callable[..., tuple[np.ndarray, list[int]]]] = {"continued": whole, "by themselves": apart}
    for name, way in ways.items():
        found = [way(sampler, film, seed) for film in films for seed in range(args.seeds)]
        print(f"| {name} | {' | '.join(table(found, sampler.windows.hop, clip.sample_rate_hz))} |", flush=True)


if __name__ == "__main__":
    main()
