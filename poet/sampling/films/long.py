"""The body of `poet long`: a film of any length from prompts by time, or from what is given of it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.sampling.films import camera
from poet.sampling.films.folder import FilmFolder, Take, write_film
from poet.sampling.films.pieces import Piece
from poet.sampling.films.prompts import Schedule
from poet.sampling.films.sampler import FilmSampler, Wish
from poet.spec import ClipSpec, PromptSpec, SampleSpec, UserError

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongFilm:
    """The request for a film.

    Attributes:
      prompts: as `Schedule.parse` takes them.
      seconds: of the film, with what is given of it.
      opening: a file that it begins with: a picture, or a film of which all frames are kept; '' for none.
      camera: a movement, see `poet.sampling.films.camera`.
      suffix: added to every prompt.
      negative: what guidance steers away from.
      sound_prompt: a text for the sound alone.
      seed: of the noise.
    """

    prompts: tuple[str, ...] = ()
    seconds: float = 10.0
    opening: str = ""
    camera: str = ""
    suffix: str = ""
    negative: str = ""
    sound_prompt: str = ""
    seed: int = 0

    def replace(self, **changes: Any) -> LongFilm:
        """The same with other fields."""
        return dataclasses.replace(self, **changes)

    def check(self) -> None:
        """Raises UserError for prompts that begin after the film, a negative one alone, or an unknown movement."""
        Schedule.parse(self.prompts).check_length(self.seconds)
        if self.negative and not self.prompts:
            raise UserError("a film without a prompt takes no text: drop the negative prompt, or give a prompt")
        camera.phrase(self.camera)


def make(
    sampler: FilmSampler,
    wanted: LongFilm,
    folder: Path,
    *,
    made_by: dict[str, Any],
    sample: SampleSpec,
    words: dict[str, str] | None = None,
) -> list[Path]:
    """Makes a film, or continues the one in the folder; returns its files.

    Args:
      made_by: what else determines it, such as the checkpoint.
      words: for movements of the camera, as `camera.phrase` takes them.

    Raises UserError: the folder has another film, or the checkpoint cannot sample this one.
    """
    wanted.check()
    windows, schedule, place = sampler.windows, Schedule.parse(wanted.prompts), FilmFolder(folder)
    frames, phrase = windows.frames_in(wanted.seconds), camera.phrase(wanted.camera, words)
    spoken = PromptSpec(suffix=wanted.suffix, negative=wanted.negative)

    def wish(seconds: float) -> Wish:
        prompt = spoken.complete(schedule.at(seconds), phrase)
        return Wish(prompt=prompt, negative=spoken.negative_for(bool(prompt)), sound_prompt=wanted.sound_prompt)

    for start in schedule.starts_s:
        sampler.check(wish(start), sample, opened=bool(wanted.opening))
    asked = {name: value for name, value in dataclasses.asdict(wanted).items() if name != "seconds"}
    # A longer film of the same request continues a shorter one.
    request = {**asked, "camera_words": phrase, "sample": sample.noise, "made_by": {**made_by, **sampler.made_by}}
    with place.hold(request):
        progress = _Progress(windows.clips_for(frames, 0), windows.rate_hz)
        place.extend(
            sampler,
            lambda: begin(sampler, wanted.opening),
            frames,
            wish,
            seed=wanted.seed,
            sample=sample,
            on_clip=progress,
        )
        return write_film(folder, [Take(place.pieces, frames, place.given)], windows, sample.unmarked)


def begin(sampler: FilmSampler, path: str) -> Piece:
    """The opening piece of a film, from a file or ('') empty.

    Raises UserError (MediaError) for a file without frames.
    """
    if not path:
        return sampler.begin()
    clip = sampler.generator.resolved.spec.clip
    return sampler.begin(*read_opening(path, clip, has_audio=sampler.sounds is not None))


def read_opening(path: str, clip: ClipSpec, *, has_audio: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """All frames of a file in the clip's format, uint8 [T, H, W, 3], and int16 [S] of their time, None if it is silent.

    Raises UserError (MediaError) for a file that shows nothing.
    """
    found = list(media.read_frames(path, clip))
    video, samples = np.stack([frame for frame, _ in found]), round(len(found) / clip.rate_hz * clip.sample_rate_hz)
    sound = media.read_track(path, clip.sample_rate_hz, samples, found[0][1]) if has_audio else None
    if has_audio and sound is None:
        _LOG.warning("%s has no sound: the film begins with silence", path)
    return video, sound


class _Progress:
    """Says of every clip how long the rest may take."""

    def __init__(self, clips: int, rate_hz: float):
        self._clips, self._rate_hz, self._made, self._began = clips, rate_hz, itertools.count(1), time.monotonic()

    def __call__(self, piece: Piece) -> None:
        made = next(self._made)
        _LOG.info(
            "%.2f s of the film are sampled; %.1f s a clip",
            piece.end.frames / self._rate_hz,
            (time.monotonic() - self._began) / made,
        )
