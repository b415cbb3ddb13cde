"""Files cut as a protocol asks: so many frames, the first or the central ones, at the file's own rate, or their sound.

Shape suffixes: T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.evaluation.benchmarks.presets import CENTRE, Form
from poet.evaluation.features import SOUND_RATE_HZ
from poet.evaluation.score.sides import Item
from poet.media import MediaError
from poet.media.film import open_film
from poet.spec import ClipSpec
from poet.store.folders import digest

# A still that stands where a protocol scores sound alone, and for what was read before.
_NO_PICTURE = np.zeros((1, 8, 8, 3), np.uint8)


def frames(path: Path, form: Form, cut: str) -> np.ndarray:
    """uint8 [T, H, W, 3]: whole frames in their order, cropped about the centre, resized bicubically.

    Raises:
      MediaError: unreadable, or too short.
    """
    with open_film(path) as film:
        found = [frame for frame, _ in film.timed()]
        if len(found) < form.frames:
            raise MediaError(path, f"too short: it has {len(found)} frames, {form.frames} are needed")
        first = (len(found) - form.frames) // 2 if cut == CENTRE else 0
        kept = found[first : first + form.frames]
        return np.stack([media.resize_image(f.pixels(), form.height, form.width, f.aspect) for f in kept])


@dataclasses.dataclass(kw_only=True)
class Cut:
    """A side of `poet score`: files in a form.

    Attributes:
      files: name -> file.
      seconds: of sound; 0 reads pictures.
      captions: name -> text.
      unreadable: name -> why; it grows as clips are read.
      is_known: whether all that is needed of a clip is known by its name, so that it is not decoded.
    """

    path: str
    files: Mapping[str, Path]
    form: Form
    cut: str
    seconds: float = 0.0
    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    is_known: Callable[[str], bool] = lambda name: False

    @property
    def clip(self) -> ClipSpec:
        """The format; a rate that is not known counts as 1 Hz, for networks that read frames as they come."""
        form = self.form
        return ClipSpec(frames=form.frames, height=form.height, width=form.width, rate_hz=form.rate_hz or 1.0)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Item]:
        return self._items(list(enumerate(self.files)))

    def some(self, place: int) -> list[Item]:
        """The clip at a place; none where it cannot be read."""
        return list(self._items([(place, list(self.files)[place])]))

    def _items(self, places: Sequence[tuple[int, str]]) -> Iterator[Item]:
        for place, name in places:
            try:
                video, sound = (_NO_PICTURE, None) if self.is_known(name) else self._read(self.files[name])
            except MediaError as error:
                self.unreadable[name] = str(error)
                continue
            caption = self.captions.get(name, "")
            yield Item(place=place, key=name, group=name, caption=caption, video=video, sound=sound)

    def _read(self, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
        if not self.seconds:
            return frames(file, self.form, self.cut), None
        track = media.read_track(file, SOUND_RATE_HZ, round(self.seconds * SOUND_RATE_HZ), 0.0)
        if track is None:
            raise MediaError(file, "no sound")
        return _NO_PICTURE, np.asarray(track)

    @property
    def manifest(self) -> dict[str, Any]:
        """The set in JSON."""
        sizes = [f"{name} {file.stat().st_size}" for name, file in self.files.items()]
        return {
            "path": self.path,
            "split": "",
            "fingerprint": digest(sizes),
            "items": len(self),
            "unreadable": dict(sorted(self.unreadable.items())),
            "cut": f"the {self.cut} {self.form}",
        }
