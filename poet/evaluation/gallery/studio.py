"""Inputs of the sections of a gallery, and their results: rows of files.

N clips, T frames, H height, W width, F audio samples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.evaluation.gallery.clips import ConditionClip
from poet.media.watermark import GIVEN, Marker
from poet.runs.run import Run
from poet.sampling.generate import Generator
from poet.spec import SampleSpec, UserError
from poet.tasks.resolved import Resolved


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One item of the page.  `file` is its name in the section's folder; '' for text only."""

    label: str
    file: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Conditions, and the samples for them."""

    heading: str
    items: tuple[Item, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """The content of a section: rows, commands that make the same samples, and what says whether these are marked."""

    rows: tuple[Row, ...]
    commands: tuple[str, ...] = ()
    watermark: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Studio:
    """Inputs of sections.

    Attributes:
      load: loads the model, when the first section needs it.
      checkpoint: the user's path.
      made_by: identifies the weights.
      prompts: the text of each row.
      upscale: super-resolution networks, applied one after the other.
    """

    resolved: Resolved
    load: Callable[[], Generator]
    checkpoint: str
    made_by: dict[str, Any]
    clips: Sequence[ConditionClip]
    prompts: Sequence[str]
    seeds: int
    upscale: Sequence[Run] = ()

    @functools.cached_property
    def generator(self) -> Generator:
        """The model."""
        return self.load()

    @property
    def marker(self) -> Marker:
        """Of clips that the model makes."""
        clip = self.resolved.spec.clip
        return Marker.of_size(clip.height, clip.width, self.sample.unmarked)

    @property
    def sample(self) -> SampleSpec:
        """Sampling parameters; every sample has its own seed."""
        return self.resolved.spec.sample

    def check_trained(self, *tasks: str) -> None:
        """Raises UserError for a task that the checkpoint was not trained on, if the run has a mixture."""
        seen = {task.name for task in self.resolved.mixture}
        for task in tasks:
            if seen and task not in seen:
                raise UserError(f"the checkpoint was not trained on {task}")


def write(
    studio: Studio,
    stem: Path,
    label: str,
    video: np.ndarray | None,
    audio: np.ndarray | None = None,
    marker: Marker = Marker(GIVEN),
) -> Item:
    """A file of a clip uint8 [T, H, W, 3], a picture [1, H, W, 3] or a sound [F], as an item.

    `marker` puts the watermark into what was made; by default it is a condition, and stays as it is.
    """
    clip = studio.resolved.spec.clip
    video = None if video is None else marker(video)
    if video is None:
        path = stem.with_suffix(".wav")
        media.write_wav(path, audio, clip.sample_rate_hz)
    elif len(video) == 1:
        path = stem.with_suffix(".png")
        media.write_png_strip(path, video)
    else:
        path = stem.with_suffix(".mp4")
        media.write_mp4(path, video, clip.rate_hz, audio, clip.sample_rate_hz)
    return Item(label=label, file=path.name)
