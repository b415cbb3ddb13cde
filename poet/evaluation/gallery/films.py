"""Sections of a gallery with films and upscaled clips."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from poet.evaluation.gallery.studio import Item, Made, Row, Studio, write
from poet.films import long, scenes
from poet.films.sampler import FilmSampler
from poet.films.storyboard import CONTINUE, Scene, Storyboard
from poet.sampling import upscaling
from poet.sampling.superres import Upscaler
from poet.spec import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongSection:
    """A film as long as three clips, whose text changes."""

    title: str = "Long film"
    says: str = "Each clip continues the one before; the text changes half way."
    scored_by: str = "image_to_video"

    def make(self, studio: Studio, folder: Path) -> Made:
        """As `TaskSection.make`."""
        studio.check_trained("text_to_video", self.scored_by)
        clip = studio.resolved.spec.clip
        seconds = 3 * clip.frames / clip.rate_hz
        prompts = studio.prompts[0], f"{seconds / 2:g}: {studio.prompts[-1]}"
        wanted = long.LongFilm(prompts=prompts, seconds=seconds)
        items = []
        for seed in range(studio.seeds):
            place = folder / f"film_{seed}"
            long.make(
                FilmSampler(studio.generator),
                wanted.replace(seed=seed),
                place,
                made_by=studio.made_by,
                sample=studio.sample,
            )
            items.append(_film(place, folder, seed))
        heading = f"{prompts[0]}; from {seconds / 2:.2f} s on: {studio.prompts[-1]}"
        return Made(rows=(Row(heading=heading, items=tuple(items)),))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoryboardSection:
    """Three scenes: a continued one, and one after a cut."""

    title: str = "Storyboard"
    says: str = "One film of three scenes: the second continues the first, the third follows a cut."
    scored_by: str = "image_to_video"

    def make(self, studio: Studio, folder: Path) -> Made:
        """As `TaskSection.make`."""
        studio.check_trained("text_to_video", self.scored_by)
        clip = studio.resolved.spec.clip
        seconds, prompts = clip.frames / clip.rate_hz, studio.prompts
        wanted = (
            Scene(prompt=prompts[0], seconds=seconds, camera="pan left"),
            Scene(prompt=prompts[0], seconds=seconds, transition=CONTINUE, camera="pan right"),
            Scene(prompt=prompts[-1], seconds=seconds),
        )
        items = []
        for seed in range(studio.seeds):
            place = folder / f"film_{seed}"
            board = Storyboard(scenes=wanted, seed=seed)
            scenes.make(FilmSampler(studio.generator), board, place, made_by=studio.made_by, sample=studio.sample)
            items.append(_film(place, folder, seed))
        heading = "; ".join(
            f"{n}: {scene.prompt}" + f" ({scene.camera})" * bool(scene.camera) for n, scene in enumerate(wanted, 1)
        )
        return Made(rows=(Row(heading=heading, items=tuple(items)),))


def _film(place: Path, folder: Path, seed: int) -> Item:
    """Keeps only the film of a film's folder."""
    path = folder / f"seed{seed}.mp4"
    (place / "film.mp4").rename(path)
    shutil.rmtree(place)
    return Item(label=f"seed {seed}", file=path.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpscaleSection:
    """Clips by super-resolution networks."""

    title: str = "Upscaling"
    says: str = "The clips at twice their height and width, or more, by super-resolution networks."
    scored_by: str = "super_resolution"

    def make(self, studio: Studio, folder: Path) -> Made:
        """As `TaskSection.make`."""
        if not studio.upscale:
            raise UserError("no super-resolution weights ship with poet: give yours by --upscale=CHECKPOINT")
        networks = [Upscaler.from_checkpoint(run) for run in studio.upscale]
        video = studio.video()
        networks[0].check(video.shape)
        rows = [[write(studio, folder / f"{n:02d}_clip", "the clip", clip)] for n, clip in enumerate(video)]
        for seed in range(studio.seeds):
            larger = upscaling.chained(networks, video, studio.prompts, seed=seed)
            for n, clip in enumerate(larger):
                rows[n].append(write(studio, folder / f"{n:02d}_seed{seed}", f"seed {seed}", clip))
        return Made(rows=tuple(Row(heading=text, items=tuple(row)) for text, row in zip(studio.prompts, rows)))
