"""What every section of a gallery is made with, and what it leaves: rows of files.

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
from poet.evaluation.gallery.clips import Given
from poet.runs.run import Run
from poet.sampling.generate import Generator
from poet.spec import SampleSpec, UserError
from poet.tasks.resolved import Resolved


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One thing on the page.  `file` is its name in the section's folder; '' for a text alone."""

    label: str
    file: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Conditions, and beside them what was sampled for them."""

    heading: str
    items: tuple[Item, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What a section shows: rows, and commands that make the same."""

    rows: tuple[Row, ...]
    commands: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Studio:
    """What sections are made with.

    Attributes:
      load: gives the model when the first section needs it.
      checkpoint: as the user named it.
      made_by: what tells the weights from others.
      prompts: the text for each clip, or for as many rows of their own.
      upscale: networks that double the pictures, each what the one before it made.
    """

    resolved: Resolved
    load: Callable[[], Generator]
    checkpoint: str
    made_by: dict[str, Any]
    clips: Sequence[Given]
    prompts: Sequence[str]
    seeds: int
    upscale: Sequence[Run] = ()

    @functools.cached_property
    def generator(self) -> Generator:
        """The model."""
        return self.load()

    @property
    def sample(self) -> SampleSpec:
        """The settings of sampling, whose seed each result replaces."""
        return self.resolved.spec.sample

    def check_trained(self, *tasks: str) -> None:
        """Raises UserError for a task that the checkpoint never saw; a run without a mixture does not say."""
        seen = {task.name for task in self.resolved.mixture}
        for task in tasks:
            if seen and task not in seen:
                raise UserError(f"the checkpoint was not trained on {task}, so that there is nothing to show")

    def video(self) -> np.ndarray:
        """The clips, uint8 [N, T, H, W, 3]."""
        return np.stack([given.video for given in self.clips])

    def audio(self) -> np.ndarray:
        """Their sounds, int16 [N, F]."""
        return np.stack([given.audio for given in self.clips])


def write(studio: Studio, stem: Path, label: str, video: np.ndarray | None, audio: np.ndarray | None = None) -> Item:
    """A file of a clip uint8 [T, H, W, 3], a picture [1, H, W, 3] or a sound [F], as an item."""
    clip = studio.resolved.spec.clip
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
