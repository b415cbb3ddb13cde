"""TFDS builder of Arenas-AV: clips of ViZDoom's scenarios with sound, depth, captions and records."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import types
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

_FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(1, str(_FOLDER.parent))  # game_clips

from game_clips.builder import GameClips  # noqa: E402


def load_arenas() -> types.ModuleType:
    """The table of arenas, however this module was loaded."""
    spec = importlib.util.spec_from_file_location("arenas_av_arenas", _FOLDER / "arenas.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Builder(GameClips):
    """Arenas-AV. Nothing is downloaded: engine, scenarios and sounds come with the package vizdoom.

    `missing` names the scenarios that the installed package lacks; the others are rendered.
    """

    name = "arenas_av"
    pkg_dir_path = epath.Path(_FOLDER)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    UNIT = "arena"
    PROGRAM = _FOLDER / "render.py"

    def __init__(
        self,
        *,
        train_clips_per_arena: int = 300,
        validation_clips_per_arena: int = 24,
        test_clips_per_arena: int = 24,
        max_arenas: int | None = None,
        arenas: tuple[str, ...] = (),
        **kwargs: Any,
    ):
        """As `GameClips`: how many clips of each arena, and of how many, or which, of them.

        Raises:
          ValueError: a setting is out of its range, or a name is not an arena's.
        """
        table = load_arenas()
        if unknown := sorted(set(arenas) - set(table.BY_NAME)):
            raise ValueError(f"unknown arenas {unknown}; there are {sorted(table.BY_NAME)}")
        asked = [name for name in table.BY_NAME if not arenas or name in arenas]
        self._arenas = [arena.name for arena in table.present() if arena.name in asked]
        self.missing = [name for name in asked if name not in self._arenas]
        clips = {"train": train_clips_per_arena, "validation": validation_clips_per_arena, "test": test_clips_per_arena}
        super().__init__(clips=clips, max_places=max_arenas, others={"arenas": self._arenas[:max_arenas]}, **kwargs)

    def places(self, split: str) -> list[str]:
        return self._arenas

    def job(self, place: str) -> dict[str, str]:
        return {"arena": place}
