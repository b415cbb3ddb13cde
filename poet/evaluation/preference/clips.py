"""The clips of the systems: found by name, measured, and fitted to one area and one frame rate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from poet import media
from poet.media.film import open_film
from poet.media.suffixes import ANIMATION_SUFFIXES
from poet.sampling import record as generation
from poet.spec import ClipSpec, UserError, limited
from poet.store import captions

SUFFIXES = media.VIDEO_SUFFIXES + ANIMATION_SUFFIXES
NAME, PROMPT = "name", "prompt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """The clips of a system.

    Attributes:
      name: as results call it; raters do not see it.
      files: name of a clip, its path below the folder without the suffix -> the file.
      prompts: name of a clip -> its text, where a record or `captions.jsonl` in the folder has one.
    """

    name: str
    files: Mapping[str, Path]
    prompts: Mapping[str, str]

    def by_prompt(self) -> System:
        """The same clips, called by their prompts; those without one are left out."""
        taken: dict[str, int] = {}
        files, prompts = {}, {}
        for name, file in self.files.items():
            if text := self.prompts.get(name, ""):
                taken[text] = taken.get(text, 0) + 1
                called = f"{text} #{taken[text]}"
                files[called], prompts[called] = file, text
        return System(name=self.name, files=files, prompts=prompts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A file: sides of its upright pictures in square pixels, frames a second, seconds."""

    height: int
    width: int
    rate_hz: float
    seconds: float


# ------------------------------------------------------------------------------------------ finding


def find(folders: Sequence[str], names: Sequence[str] = ()) -> list[System]:
    """The systems of folders of clips.

    Args:
      names: of the systems; by default those of the folders, numbered where two are the same.

    Raises:
      UserError: a folder is missing or has no clip, or there are not two folders, or not a name for each.
    """
    if len(folders) < 2:
        raise UserError("a preference is between two systems: give two folders of clips, or more")
    if names and (len(names) != len(folders) or len(set(names)) != len(names) or not all(names)):
        raise UserError(f"--names={','.join(names)}: give {len(folders)} different names, one for each folder")
    own = [Path(folder).expanduser().resolve().name for folder in folders]
    called = names or [f"{name}-{place}" if own.count(name) > 1 else name for place, name in enumerate(own, 1)]
    return [_system(name, Path(folder).expanduser()) for name, folder in zip(called, folders)]


def _system(name: str, folder: Path) -> System:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of clips")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    files: dict[str, Path] = {}
    for path in sorted(found, key=lambda path: SUFFIXES.index(path.suffix.lower())):
        files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    if not files:
        raise UserError(f"{folder} has no clips: none of its files is a film or an animation by its name")
    return System(name=name, files=dict(sorted(files.items())), prompts=_prompts(folder))


def _prompts(folder: Path) -> dict[str, str]:
    found = generation.prompts(folder)
    file = folder / captions.CAPTIONS_FILE
    if file.is_file():
        size = lambda name: path.stat().st_size if (path := folder / name).is_file() else -1
        found |= {line.file: line.caption for line in captions.parse(str(file), limited(file).read_bytes(), size)}
    return {Path(file).with_suffix("").as_posix(): text for file, text in found.items() if text}


def shared(systems: Sequence[System], by: str = NAME) -> tuple[list[System], list[str], dict[str, list[str]]]:
    """The systems, the names of the clips that all of them have, and system -> the names of its other clips.

    Args:
      by: `NAME`, or `PROMPT`: clips of the same text belong together, the first with the first.

    Raises:
      UserError: no name is shared, or clips of one name have different prompts.
    """
    found = [system.by_prompt() for system in systems] if by == PROMPT else list(systems)
    names = sorted(set.intersection(*(set(system.files) for system in found)))
    if not names:
        some = "; ".join(f"{s.name} has {', '.join([*s.files][:3]) or 'none'}" for s in found)
        other = "" if by == PROMPT else "; --by=prompt pairs clips by their texts"
        raise UserError(f"the systems share no {by} of a clip: {some}{other}")
    for name in names:
        texts = {system.prompts[name] for system in found if name in system.prompts}
        if len(texts) > 1:
            raise UserError(
                f"clips called {name} have different prompts, {' and '.join(map(repr, sorted(texts)))}: use --by=prompt"
            )
    return found, names, {s.name: sorted(set(s.files) - set(names)) for s in found if set(s.files) - set(names)}


def prompt(systems: Sequence[System], name: str) -> str:
    """The text of a clip, '' where no system knows it."""
    return next((system.prompts[name] for system in systems if name in system.prompts), "")


# ----------------------------------------------------------------------------------------- measuring


def measure(path: Path) -> Measured:
    """Decodes a file to measure it; MediaError for one that cannot be read, or holds a single frame."""
    frames = 0
    with open_film(path) as film:
        for frame, _ in film.timed():
            frames, last = frames + 1, frame
        seconds = film.end_s - film.start_s
    if frames < 2:
        raise media.MediaError(path, "a single frame: it has no motion to compare")
    return Measured(
        height=last.height, width=round(last.width * last.aspect), rate_hz=frames / seconds, seconds=seconds
    )


def target(measured: Sequence[Measured]) -> tuple[int, float]:
    """The area in pixels and the frame rate in Hz that all clips can be brought to without making up detail."""
    area = min(one.height * one.width for one in measured)
    return area, round(min(one.rate_hz for one in measured), 3)


def fitted_spec(one: Measured, area: int, rate_hz: float, seconds: float) -> ClipSpec:
    """The format of a file at an area and a rate: its own aspect, even sides."""
    scale = math.sqrt(area / (one.height * one.width))
    height, width = (max(2 * round(side * scale / 2), 2) for side in (one.height, one.width))
    frames = max(int(seconds * rate_hz + 1e-6), 2)
    return ClipSpec(frames=frames, height=height, width=width, rate_hz=rate_hz)


def read(path: Path, spec: ClipSpec, one: Measured) -> tuple[np.ndarray, str]:
    """uint8 [T, H, W, 3] of a file, and what was done to it; '' for nothing."""
    clip = media.read_clip(path, spec, hold=True)
    said = [f"{one.rate_hz:.4g} to {spec.rate_hz:g} Hz"] if abs(one.rate_hz - spec.rate_hz) > 0.01 else []
    return clip.video, ", ".join([*said, *filter(None, [clip.fitted])])
