"""Sections of a gallery with films."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poet.evaluation.gallery.studio import Item, Made, Row, Studio
from poet.sampling.films import long, scenes
from poet.sampling.films.sampler import FilmSampler
from poet.sampling.films.storyboard import CONTINUE, Scene, Storyboard


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
        heading = f"{prompts[0]}; from {seconds / 2:.2f} s on: {studio.prompts[-1]}"
        return _films(studio, folder, heading, long.make, wanted)


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
        heading = "; ".join(
            f"{n}: {scene.prompt}" + f" ({scene.camera})" * bool(scene.camera) for n, scene in enumerate(wanted, 1)
        )
        return _films(studio, folder, heading, scenes.make, Storyboard(scenes=wanted))


def _films(studio: Studio, folder: Path, heading: str, make: Callable[..., Any], wanted: Any) -> Made:
    """A film for each seed, of which only the mp4 is kept."""
    items = []
    for seed in range(studio.seeds):
        place, path = folder / f"film_{seed}", folder / f"seed{seed}.mp4"
        sampler = FilmSampler(studio.generator)
        make(sampler, wanted.replace(seed=seed), place, made_by=studio.made_by, sample=studio.sample)
        (place / "film.mp4").rename(path)
        shutil.rmtree(place)
        items.append(Item(label=f"seed {seed}", file=path.name))
    return Made(rows=(Row(heading=heading, items=tuple(items)),), watermark=str(studio.marker))
