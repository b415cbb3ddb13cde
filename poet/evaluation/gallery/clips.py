"""The clips for the conditions of a gallery, as files that `poet generate` reads identically.

T frames, H height, W width, F audio samples.
"""

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
      path: the file, with its sound; `depth_path` is a video or picture of its depth in which near is bright.
      video: uint8 [T, H, W, 3].  audio: int16 [F], silence where the source has none.
      depth: distances float32 [T, H, W], all equal where the source has none.
    """

    path: Path
    depth_path: Path
    caption: str
    video: np.ndarray
    audio: np.ndarray
    depth: np.ndarray

    @property
    def digest(self) -> str:
        """A digest of clip and caption."""
        arrays = b"".join(array.tobytes() for array in (self.video, self.audio, self.depth))
        return hashlib.sha256(self.caption.encode() + b"\0" + arrays).hexdigest()[:16]


def collect(path: str, clip: ClipSpec, count: int, folder: Path) -> list[ConditionClip]:
    """`count` clips of a source, evenly spaced in its validation split, else in train; written below `folder`.

    Raises UserError for an invalid source, or one with fewer clips.
    """
    splits = open_splits(StoreSpec(source=path), clip)
    name = "validation" if "validation" in splits else "train"
    found = _spaced(splits[name], count)
    if len(found) < count:
        raise UserError(
            f"{path} gives {len(found)} clips in its split {name}, {count} are needed: ask for fewer by --clips"
        )
    return [_written(raw, clip, folder / f"{number:02d}") for number, raw in enumerate(found)]


def _spaced(source: Source, count: int) -> list[RawClip]:
    """The first usable clip of each of `count` equal parts of the source."""
    bounds = [number * len(source) // count for number in range(count + 1)]
    parts = (usable(source.read(start, stop)) for start, stop in zip(bounds, bounds[1:]))
    return [raw for raw in (next(part, None) for part in parts) if raw is not None]


def _written(raw: RawClip, clip: ClipSpec, stem: Path) -> ConditionClip:
    """Writes the files and reads them back: the conditions are what the files contain after compression."""
    path, depth_path = stem.with_suffix(".mp4"), _write_depth(raw, clip, stem)
    media.write_mp4(path, raw.video, clip.rate_hz, raw.audio, clip.sample_rate_hz)
    found = media.read_clip(path, clip)
    silence = np.zeros(clip.samples, np.int16)
    return ConditionClip(
        path=path,
        depth_path=depth_path,
        caption=raw.caption.strip(),
        video=found.video,
        audio=silence if found.audio is None else found.audio,
        depth=read_depth(depth_path, clip),
    )


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


def read_depth(path: Path, clip: ClipSpec) -> np.ndarray:
    """Distances float32 [T, H, W] of a video or a picture in which near is bright."""
    still = path.suffix == ".png"
    near = media.read_clip(path, clip.replace(frames=1) if still else clip).video
    return 255 - np.broadcast_to(near, (clip.frames, *near.shape[1:])).mean(axis=-1, dtype=np.float32)
