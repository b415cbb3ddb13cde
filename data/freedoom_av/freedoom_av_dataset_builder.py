"""TFDS builder of Freedoom-AV: clips of Freedoom's maps with sound, depth, captions and records."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

_FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(1, str(_FOLDER.parent))  # game_clips

from game_clips.builder import GameClips  # noqa: E402


def _maps(split: str) -> tuple[tuple[str, str], ...]:
    """The `(wad, map)` pairs of a split, however this module was loaded."""
    spec = importlib.util.spec_from_file_location("freedoom_av_splits", _FOLDER / "splits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MAPS[split]


class Builder(GameClips):
    """Freedoom-AV. Nothing is downloaded: the engine and its maps come with the package vizdoom."""

    name = "freedoom_av"
    pkg_dir_path = epath.Path(_FOLDER)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    UNIT = "map"
    PROGRAM = _FOLDER / "render.py"

    def __init__(
        self,
        *,
        train_clips_per_map: int = 60,
        validation_clips_per_map: int = 50,
        test_clips_per_map: int = 20,
        max_maps: int | None = None,
        **kwargs: Any,
    ):
        """As `GameClips`: how many clips of each map, and of how many maps of each split."""
        clips = {"train": train_clips_per_map, "validation": validation_clips_per_map, "test": test_clips_per_map}
        super().__init__(clips=clips, max_places=max_maps, **kwargs)

    def places(self, split: str) -> tuple[tuple[str, str], ...]:
        return _maps(split)

    def job(self, place: tuple[str, str]) -> dict[str, str]:
        wad, map_name = place
        return {"wad": wad, "map_name": map_name}
