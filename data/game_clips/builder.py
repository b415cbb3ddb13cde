"""What the TFDS builders of game clips share: features, settings, and clips from worker processes."""

from __future__ import annotations

import abc
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from game_clips import workers as worker_processes

CLIP_FRAMES = 17
CLIP_SAMPLES = 34_000
SIZES = (64, 128, 256)
SPLITS = ("train", "validation", "test")


class GameClips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders. Nothing is downloaded: engine, maps and sounds ship in vizdoom.

    A recipe sets `UNIT` (what a split is made of, such as "map"), `PROGRAM` (its `render.py`),
    `places` and `job`.
    """

    UNIT: str
    PROGRAM: pathlib.Path

    def __init__(
        self,
        *,
        size: int = 64,
        seed: int = 0,
        clips: dict[str, int],
        max_places: int | None = None,
        sound: bool = True,
        workers: int | None = None,
        on_clip: Callable[[], None] = lambda: None,
        others: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        """Settings of the build; TFDS's own arguments follow in `kwargs`.

        Args:
          size: side of the square frames in pixels: 64, 128 or 256. Depth has half this side.
          seed: seed of the whole set; every episode's own seed derives from it.
          clips: split -> clips of each place.
          max_places: use the first so many places of each split alone.
          sound: render sound where OpenAL can be loaded; otherwise the sound is all zeros.
          workers: worker processes, one per CPU unless given. Does not change the result.
          on_clip: called after each clip, for a progress bar.
          others: settings of the recipe's own, kept with the set.

        Raises:
          ValueError: a setting is out of its range.
        """
        if size not in SIZES:
            raise ValueError(f"size is {size}; it must be one of {SIZES}")
        if min(clips.values()) < 1 or (max_places is not None and max_places < 1):
            raise ValueError(
                f"clips per {self.UNIT} are {clips} and max_{self.UNIT}s is "
                f"{max_places}; every one of them must be at least 1"
            )
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        self._workers = workers or os.cpu_count() or 1
        self._on_clip = on_clip
        has_sound = sound and worker_processes.sound_available()
        self.settings = {
            "size": size,
            "seed": seed,
            f"clips_per_{self.UNIT}": clips,
            f"max_{self.UNIT}s": max_places,
            "has_sound": has_sound,
            **(others or {}),
        }
        super().__init__(**kwargs)

    @abc.abstractmethod
    def places(self, split: str) -> Sequence[Any]:
        """What `split` is made of, all of it."""

    @abc.abstractmethod
    def job(self, place: Any) -> dict[str, Any]:
        """The fields that name `place` in the recipe's `Job`."""

    @property
    def _clips(self) -> dict[str, int]:
        return self.settings[f"clips_per_{self.UNIT}"]

    def _chosen(self, split: str) -> Sequence[Any]:
        return self.places(split)[: self.settings[f"max_{self.UNIT}s"]]

    def clip_count(self) -> int:
        return sum(count * len(self._chosen(split)) for split, count in self._clips.items())

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.settings["size"]
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "key": tfds.features.Text(doc=f"split/{self.UNIT}/number"),
                    "video": tfds.features.Tensor(
                        shape=(CLIP_FRAMES, size, size, 3),
                        dtype=np.uint8,
                        encoding="bytes",
                        doc="RGB at 8 frames a second",
                    ),
                    "audio": tfds.features.Tensor(
                        shape=(CLIP_SAMPLES,),
                        dtype=np.int16,
                        encoding="bytes",
                        doc="mono at 16 kHz; the frame of index i is seen at sample 2000 * i",
                    ),
                    "depth": tfds.features.Tensor(
                        shape=(CLIP_FRAMES, size // 2, size // 2),
                        dtype=np.uint8,
                        encoding="bytes",
                        doc="the engine's depth buffer: linear, 0 near, 255 far or beyond",
                    ),
                    "text": tfds.features.Text(doc="caption made from the record alone"),
                    "record": tfds.features.Text(doc="JSON: what the engine knows about the clip"),
                }
            ),
            metadata=tfds.core.MetadataDict(self.settings),
            disable_shuffling=False,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self._clips}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        shared = {
            "split": split,
            "clips": self._clips[split],
            "size": self.settings["size"],
            "seed": self.settings["seed"],
            "sound": self.settings["has_sound"],
        }
        jobs = [{**shared, **self.job(place)} for place in self._chosen(split)]
        for key, example in worker_processes.render_jobs(self.PROGRAM, jobs, self._workers):
            self._on_clip()
            yield key, example
