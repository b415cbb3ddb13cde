"""The clips for the conditions of a gallery, as files that `poet generate` reads."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from poet import media
from poet.spec import ClipSpec, StoreSpec, UserError
from poet.store.raw import RawClip, Source, usable
from poet.store.sources import open_splits


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionClip:
    """One clip.

    Attributes:
      path: the file, with its sound, which is silence where the source has none.
      depth_path: a video or picture of its depth in which near is bright; of one grey where the source has none.
    """

    path: Path
    depth_path: Path
    caption: str

    @property
    def digest(self) -> str:
        """A digest of clip and caption."""
        files = self.path.read_bytes() + self.depth_path.read_bytes()
        return hashlib.sha256(self.caption.encode() + b"\0" + files).hexdigest()[:16]


def collect(path: str, clip: ClipSpec, count: int, folder: Path) -> list[ConditionClip]:
    """`count` clips of a source, evenly spaced in its validation split, else in train; written below `folder`.

    Raises UserError for an invalid source, or one with fewer clips.
    """
    splits = open_splits(StoreSpec(source=path), clip)
    name = "validation" if "validation" in splits else "train"
    found = spaced(splits[name], count)
    if len(found) < count:
        raise UserError(
            f"{path} gives {len(found)} clips in its split {name}, {count} are needed: ask for fewer by --clips"
        )
    return [_written(raw, clip, folder / f"{number:02d}") for number, raw in enumerate(found)]


def spaced(source: Source, count: int) -> list[RawClip]:
    """The first usable clip of each of `count` equal parts of the source."""
    bounds = [number * len(source) // count for number in range(count + 1)]
    parts = (usable(source.read(start, stop)) for start, stop in zip(bounds, bounds[1:]))
    return [raw for raw in (next(part, None) for part in parts) if raw is not None]


def _written(raw: RawClip, clip: ClipSpec, stem: Path) -> ConditionClip:
    path, sound = stem.with_suffix(".mp4"), np.zeros(clip.samples, np.int16) if raw.audio is None else raw.audio
    media.write_mp4(path, raw.video, clip.rate_hz, sound, clip.sample_rate_hz)
    return ConditionClip(path=path, depth_path=_write_depth(raw, clip, stem), caption=raw.caption.strip())


def _write_depth(raw: RawClip, clip: ClipSpec, stem: Path) -> Path:
    if raw.depth is None:
        path = stem.with_name(f"{stem.name}_depth.png")
        media.write_png_strip(path, np.full((1, clip.height, clip.width, 3), 128, np.uint8))
        return path
    path, far = stem.with_name(f"{stem.name}_depth.mp4"), np.asarray(raw.depth, np.float32)
    near = 255 - 255 * (far - far.min()) / max(float(np.ptp(far)), 1e-6)
    grey = np.repeat(near.round().astype(np.uint8)[..., None], 3, axis=-1)
    media.write_mp4(path, media.resize_video(grey, clip.height, clip.width), clip.rate_hz)
    return path
