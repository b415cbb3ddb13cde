"""TFDS builder of Open-Sounds: excerpts of freely licensed speech, music and effects."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

_FOLDER = pathlib.Path(__file__).parent
SAMPLE_RATE_HZ = 16_000


def load_sibling(name: str) -> types.ModuleType:
    """Loads a module of this folder by its path, however this builder was itself loaded."""
    return _load(f"open_sounds_{name}", _FOLDER / f"{name}.py")


def load_packages() -> types.ModuleType:
    """The fetching and unpacking of Debian packages, which Open-Clips shares."""
    return _load("open_clips_packages", _FOLDER.parent / "open_clips" / "packages.py")


def _load(full_name: str, path: pathlib.Path) -> types.ModuleType:
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module
        spec.loader.exec_module(module)
    return sys.modules[full_name]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Open-Sounds: mono sound at 16 kHz; no recording is in two splits."""

    name = "open_sounds"
    pkg_dir_path = epath.Path(_FOLDER)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def __init__(
        self,
        *,
        seed: int = 0,
        without: Sequence[str] = (),
        workers: int = 1,
        packages_dir: str = "",
        on_excerpt: Callable[[], None] = lambda: None,
        **kwargs: Any,
    ):
        """Settings of the build; TFDS's own arguments follow in `kwargs`.

        Args:
          seed: seed of the choice of recordings and of the splits.
          without: packages to leave out.
          workers: threads that decode; the set does not depend on it.
          packages_dir: folder that keeps downloaded packages; '' takes `open_sounds_packages` in
            `data_dir`.
          on_excerpt: called after each excerpt, for a progress bar.

        Raises:
          ValueError: `workers` is below 1, or `without` names another package, or all.
        """
        collections = load_sibling("recordings").COLLECTIONS
        packages = sorted({collection.package for collection in collections})
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        if unknown := sorted(set(without) - set(packages)):
            raise ValueError(f"without names {', '.join(unknown)}; the packages are {', '.join(packages)}")
        if set(without) == set(packages):
            raise ValueError("without names every package; leave one of them in")
        self.settings = {"sample_rate_hz": SAMPLE_RATE_HZ, "seed": seed, "without": " ".join(sorted(set(without)))}
        self.dropped: Counter[str] = Counter()
        self._collections = [c for c in collections if c.package not in without]
        self._workers = workers
        self._on_excerpt = on_excerpt
        self._packages_dir = packages_dir
        self._unpacked = contextlib.ExitStack()
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "key": text(doc="collection/recording, with /part of it or +further recordings"),
                    "audio": tfds.features.Tensor(
                        shape=(None,), dtype=np.int16, encoding="bytes", doc="mono at 16 kHz, 2 to 6 seconds"
                    ),
                    "text": text(doc="what is said, or a label; may be empty"),
                    "kind": text(doc="speech, music or effects"),
                    "recordings": tfds.features.Sequence(text(), doc="names in the collection"),
                    "recorded_rate_hz": tfds.features.Scalar(
                        np.int32, doc="the lowest sample rate of the recordings' files"
                    ),
                    "source": text(doc="Debian package and its version"),
                    "licence": text(doc="SPDX identifier"),
                }
            ),
            metadata=tfds.core.MetadataDict(self.settings),
        )

    def download_and_prepare(self, **kwargs: Any) -> None:
        with self._unpacked:  # unpacked packages go when the splits are written
            super().download_and_prepare(**kwargs)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # packages come through apt-get
        packages, splits = load_packages(), load_sibling("splits")
        folder = pathlib.Path(self._packages_dir or f"{self._data_dir_root}/open_sounds_packages")
        names = dict.fromkeys(name for c in self._collections for name in (c.package, *c.further_packages))
        versions = packages.fetch(names, folder)
        target = pathlib.Path(self._unpacked.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        roots = {name: packages.unpack(name, folder, target) for name in names}
        chosen = {
            c.name: splits.choose(c, c.find(roots), self.settings["seed"], self.dropped) for c in self._collections
        }
        sources = {c.name: f"{c.package} {versions[c.package]}" for c in self._collections}
        return {split: self._generate_examples(split, chosen, sources) for split in splits.SPLITS}

    def _generate_examples(
        self, split: str, chosen: dict[str, dict[str, list]], sources: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        cutting = load_sibling("excerpts")
        for collection in self._collections:
            for excerpt in cutting.excerpts(
                chosen[collection.name][split],
                most_seconds=collection.recording_seconds,
                spoken=collection.kind == "speech",
                workers=self._workers,
                dropped=self.dropped,
            ):
                self._on_excerpt()
                key = f"{collection.name}/{excerpt.key}"
                yield (
                    key,
                    {
                        "key": key,
                        "audio": excerpt.audio,
                        "text": excerpt.text,
                        "kind": collection.kind,
                        "recordings": excerpt.recordings,
                        "recorded_rate_hz": excerpt.rate_hz,
                        "source": sources[collection.name],
                        "licence": collection.licence,
                    },
                )
