"""A sound for a whole film of any length, by `video_to_audio` clip after clip; its frames stay as they are.

A clip overlaps the one before it by the conditioning latent frames of `Windows`.  The sound in the overlap is not
sampled again: its codes open the sound of the later clip at every level, so what follows continues it, and the frames
of the later clip are all seen at once.

    FOLDER/
      film.json     the request
      clips/        the codes of the sound of each clip; existing ones are reused
      film.mp4      the film's own coded frames with the sound (film.mkv where mp4 does not take them)
      film.wav      the sound

T frames, L levels and F frames of audio codes, S samples.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.media.suffixes import STILL_SUFFIXES
from poet.runs import arrays
from poet.sampling import record
from poet.sampling.films.folder import CLIPS, FILM, FilmFolder
from poet.sampling.films.sampler import FilmSampler, check_trained, seed_of
from poet.sampling.films.sounds import fitted
from poet.sampling.films.windows import Windows
from poet.spec import SampleSpec, UserError

_LOG = logging.getLogger(__name__)
TASK = "video_to_audio"
SOUND = "film.wav"
# (number of a clip, what samples its codes) -> int32 [L, F]: what keeps codes between runs.
Kept = Callable[[int, Callable[[], np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dub:
    """The request: the file of a film, and the seed of the noise."""

    clip: str
    seed: int = 0


def clips_of(frames: Iterable[np.ndarray], windows: Windows) -> Iterator[np.ndarray]:
    """Clips uint8 [T, H, W, 3] that cover a film, each opening with the last frames of the one before it.

    The last frame of the film stands for those that its last clip lacks.
    """
    held: list[np.ndarray] = []
    step, count = windows.new_frames(windows.context), 0
    for frame in frames:
        held.append(frame)
        if len(held) == windows.clip_frames:
            yield np.stack(held)
            held, count = held[step:], count + 1
    if len(held) > (windows.clip_frames - step if count else 0):
        yield np.stack(held + held[-1:] * (windows.clip_frames - len(held)))


def sound_of(
    sampler: FilmSampler,
    frames: Iterable[np.ndarray],
    *,
    seed: int,
    sample: SampleSpec | None = None,
    kept: Kept = lambda number, sampled: sampled(),
) -> np.ndarray:
    """The sound of a film, int16 [S]: as long as its clips are, so at least as long as its frames.

    Args:
      sampler: of films with sound; its `windows` say how clips overlap.
      frames: uint8 [H, W, 3] in the format of the run's clips; they are read once, a clip at a time.
      seed: of the film; each clip has noise of its own.
      sample: default: that of the checkpoint; its seed is not used.
      kept: gives the codes of a clip that an earlier run sampled.

    Raises UserError: the checkpoint was not trained on `video_to_audio`, or the film has no frame.
    """
    check(sampler)
    sounds, windows, parts = sampler.sounds, sampler.windows, []
    sample = sample or sampler.generator.resolved.spec.sample
    end, covered = sounds.begin(None, 0).end, windows.clip_frames
    for number, clip in enumerate(clips_of(frames, windows)):
        own = sample.replace(seed=seed_of(seed, number))
        codes = kept(number, lambda: _codes(sampler, clip, end.given, own))  # noqa: B023 (called at once)
        added = sounds.add(end, codes, covered)
        parts.append(added.samples)
        end, covered = added.end, covered + windows.new_frames(windows.context)
    if not parts:
        raise UserError("the film has no frame: give one with pictures")
    return np.concatenate([*parts, sounds.rest(end, covered - windows.new_frames(windows.context))])


def check(sampler: FilmSampler) -> None:
    """Raises UserError unless the checkpoint can give films a sound."""
    check_trained(sampler.generator.resolved, TASK)
    if sampler.sounds is None:
        raise UserError("the sampler makes silent films: it needs has_audio=True")


def _codes(sampler: FilmSampler, clip: np.ndarray, given_LxF: np.ndarray, sample: SampleSpec) -> np.ndarray:
    """int32 [L, F]: the codes of a clip's sound, which open with the given ones."""
    generator, latents = sampler.generator, sampler.windows.context if given_LxF.shape[1] else 0
    engine = generator.engine(TASK, sample, latents)
    condition = engine.condition_codes({"video": clip[None]})
    known = given_LxF.reshape(1, -1)
    tokens = generator.tokens(TASK, 1, condition=condition, known=known, latents=latents, sample=sample)
    return engine.plan.layout.parse(tokens)["audio"].reshape(len(given_LxF), -1)


def make(sampler: FilmSampler, wanted: Dub, folder: Path, *, made_by: dict[str, Any], sample: SampleSpec) -> list[Path]:
    """Gives a film a sound, or goes on with it in the folder; returns the film and its sound.

    Args:
      made_by: what else determines it, such as the checkpoint.

    Raises UserError: the folder has another film, the file shows none, or the checkpoint cannot do it.
    """
    check(sampler)
    if Path(wanted.clip).suffix.lower() in STILL_SUFFIXES:
        raise UserError(f"{wanted.clip} is a picture, which has no length: give a film, or drop --whole")
    clip, seconds = sampler.generator.resolved.spec.clip, media.probe(wanted.clip).seconds
    asked = {**dataclasses.asdict(wanted), "film": record.digest(wanted.clip)}
    request = {**asked, "sample": sample.noise, "made_by": {**made_by, **sampler.made_by}}
    with FilmFolder(folder).hold(request):
        kept = _Kept(folder / CLIPS, sampler.windows.clips_for(sampler.windows.frames_in(seconds)))
        frames = (frame for frame, _ in media.read_frames(wanted.clip, clip))
        whole = sound_of(sampler, frames, seed=wanted.seed, sample=sample, kept=kept)
        sound = fitted(whole, round(seconds * clip.sample_rate_hz))
        media.write_wav(folder / SOUND, sound, clip.sample_rate_hz)
        return [media.dub_whole(wanted.clip, folder / FILM, sound, clip.sample_rate_hz), folder / SOUND]


class _Kept:
    """Codes of clips as files, and a line of the log for each that is sampled."""

    def __init__(self, folder: Path, clips: int):
        self._folder, self._clips = folder, clips

    def __call__(self, number: int, sampled: Callable[[], np.ndarray]) -> np.ndarray:
        path, began = self._folder / f"{number:05d}.npy", time.monotonic()
        if path.exists():
            return arrays.read_npy(path)
        codes = sampled()
        with media.replacing(path) as file, open(file, "wb") as out:
            np.save(out, codes)
        _LOG.info("clip %d of %d has its sound: %.1f s", number + 1, self._clips, time.monotonic() - began)
        return codes
