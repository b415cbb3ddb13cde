"""TFDS builder of Freedoom-AV: clips of Freedoom's maps with sound, depth, captions and records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import importlib.util
import os
import pathlib
import sys
import types
from typing import Any

from etils import epath
import numpy as np
import tensorflow_datasets as tfds

_FOLDER = pathlib.Path(__file__).parent
CLIP_FRAMES = 17
CLIP_SAMPLES = 34_000
SIZES = (64, 128, 256)


def load_sibling(name: str) -> types.ModuleType:
    """Loads a module of this folder by its path, however this builder was itself loaded."""
    full_name = f"freedoom_av_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, _FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module
        spec.loader.exec_module(module)
    return sys.modules[full_name]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Freedoom-AV. Nothing is downloaded: the engine and its maps come with the package vizdoom."""

    name = "freedoom_av"
    pkg_dir_path = epath.Path(_FOLDER)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def __init__(self, *, size: int = 64, seed: int = 0, train_clips_per_map: int = 60,
                 validation_clips_per_map: int = 50, test_clips_per_map: int = 20,
                 max_maps: int | None = None, sound: bool = True, workers: int | None = None,
                 on_clip: Callable[[], None] = lambda: None, **kwargs: Any):
        """Settings of the build; TFDS's own arguments follow in `kwargs`.

        Args:
          size: side of the square frames in pixels: 64, 128 or 256. Depth has half this side.
          seed: seed of the whole set; every episode's own seed derives from it.
          train_clips_per_map, validation_clips_per_map, test_clips_per_map: clips of each map.
          max_maps: use the first so many maps of each split alone.
          sound: render sound where OpenAL can be loaded; otherwise the sound is all zeros.
          workers: worker processes, one per CPU unless given. Does not change the result.
          on_clip: called after each clip, for a progress bar.

        Raises:
          ValueError: a setting is out of its range.
        """
        clips = {"train": train_clips_per_map, "validation": validation_clips_per_map,
                 "test": test_clips_per_map}
        if size not in SIZES:
            raise ValueError(f"size is {size}; it must be one of {SIZES}")
        if min(clips.values()) < 1 or (max_maps is not None and max_maps < 1):
            raise ValueError(f"clips per map are {clips} and max_maps is {max_maps}; "
                             "every one of them must be at least 1")
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        self._workers = workers or os.cpu_count() or 1
        self._on_clip = on_clip
        self._render = load_sibling("workers")
        has_sound = sound and self._render.sound_available()
        self.settings = {"size": size, "seed": seed, "clips_per_map": clips, "max_maps": max_maps,
                         "has_sound": has_sound}
        super().__init__(**kwargs)

    def maps(self, split: str) -> tuple[tuple[str, str], ...]:
        """The `(wad, map)` pairs of a split."""
        return load_sibling("splits").MAPS[split][:self.settings["max_maps"]]

    def clip_count(self) -> int:
        return sum(count * len(self.maps(split))
                   for split, count in self.settings["clips_per_map"].items())

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.settings["size"]
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({
                "key": tfds.features.Text(doc="split/wad-map/number"),
                "video": tfds.features.Tensor(
                    shape=(CLIP_FRAMES, size, size, 3), dtype=np.uint8, encoding="bytes",
                    doc="RGB at 8 frames a second"),
                "audio": tfds.features.Tensor(
                    shape=(CLIP_SAMPLES,), dtype=np.int16, encoding="bytes",
                    doc="mono at 16 kHz; the frame of index i is seen at sample 2000 * i"),
                "depth": tfds.features.Tensor(
                    shape=(CLIP_FRAMES, size // 2, size // 2), dtype=np.uint8, encoding="bytes",
                    doc="the engine's depth buffer: linear, 0 near, 255 far or beyond"),
                "text": tfds.features.Text(doc="caption made from the record alone"),
                "record": tfds.features.Text(doc="JSON: what the engine knows about the clip"),
            }),
            metadata=tfds.core.MetadataDict(self.settings),
            disable_shuffling=False,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self.settings["clips_per_map"]}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        jobs = [{"split": split, "wad": wad, "map_name": map_name,
                 "clips": self.settings["clips_per_map"][split], "size": self.settings["size"],
                 "seed": self.settings["seed"], "sound": self.settings["has_sound"]}
                for wad, map_name in self.maps(split)]
        for key, example in self._render.render_jobs(jobs, self._workers):
            self._on_clip()
            yield key, example
