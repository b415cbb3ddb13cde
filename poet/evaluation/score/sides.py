"""The two sets of clips of `poet score`: what is in them, the one format that they are compared in, and the clips.

Shape suffixes: T frames, H height, W width, 3 colour channels, S samples.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from poet import media
from poet.evaluation.features import SOUND_RATE_HZ
from poet.media.suffixes import ANIMATION_SUFFIXES
from poet.sampling import record as generation
from poet.spec import ClipSpec, UserError
from poet.store import remote
from poet.store.folders import MediaFolder, NoSplit
from poet.store.media_source import MediaSource
from poet.store.raw import RawClip, Skipped, Source, origin
from poet.store.sources import open_source
from poet.store.tfds_source import TfdsSource, tfds_examples, tfds_text

# Rates are the same within this fraction: a GIF has whole hundredths of a second.
SAME_RATE = 0.02
# Frames of a clip that is no still.
_MOVING = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """What a clip is like; `rate_hz` is 0 where nothing says it, as in TFDS folders."""

    frames: int
    height: int
    width: int
    rate_hz: float

    def __str__(self) -> str:
        rate = f" at {self.rate_hz:.4g} Hz" if self.rate_hz else ", of no stated rate"
        return f"{self.frames} frames of {self.height}x{self.width}{rate}"

    def fits(self, other: Format) -> bool:
        """Whether both are the same, an unknown rate being any."""
        same = (self.frames, self.height, self.width) == (other.frames, other.height, other.width)
        rates = self.rate_hz, other.rate_hz
        return same and (0 in rates or abs(rates[0] - rates[1]) <= SAME_RATE * max(rates))

    @property
    def seconds(self) -> float:
        return self.frames / self.rate_hz if self.rate_hz else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """A set of clips before it is read.

    Attributes:
      flag: what names it on the command line.
      formats: of the items, in their order; None of one that cannot be read.
      origins: the different films, maps or episodes that they are of.
      unreadable: key -> why.
    """

    flag: str
    path: str
    split: str
    source: Source
    formats: Sequence[Format | None]
    origins: frozenset[str]
    unreadable: Mapping[str, str]

    @property
    def counted(self) -> list[tuple[Format, int]]:
        """The different formats, the commonest first; rates are rounded, as files give them only nearly."""
        rounded = [dataclasses.replace(f, rate_hz=round(f.rate_hz, 1)) for f in self.formats if f]
        return collections.Counter(rounded).most_common()

    @property
    def described(self) -> str:
        some = [f"{count} x {found}" for found, count in self.counted[:3]]
        more = len(self.counted) - len(some)
        return f"{self.flag} {self.path}: " + ", ".join(some) + (f" and {more} other formats" if more else "")


# ---------------------------------------------------------------------------------------- opening


def open_side(flag: str, path: str, split: str, frames: int = 0) -> Side:
    """Looks at all items of a set.

    Args:
      flag: an option, whose split is that of FLAG_split, or the name of what the command is about: --split.
      split: '' for its only one.
      frames: 1 for stills.

    Raises:
      UserError: no such folder or split, several splits and none is named, or no item that can be read.
    """
    # The number of frames decides alone which suffixes are media.
    clip = ClipSpec(frames=1 if frames == 1 else _MOVING)
    source, split = _opened(flag, path, split, clip)
    looked = _of_files(source) if isinstance(source, MediaSource) else _of_examples(source)
    formats = [found if isinstance(found, Format) else None for found in looked.values()]
    unreadable = {key: found for key, found in looked.items() if isinstance(found, str)}
    if not any(formats):
        reasons = "; ".join(f"{key}: {why}" for key, why in list(unreadable.items())[:3])
        raise UserError(f"{flag} {path} has no clip that can be read{': ' if reasons else ''}{reasons}")
    return Side(
        flag=flag,
        path=path,
        split=split,
        source=source,
        formats=formats,
        origins=frozenset(map(origin, looked)),
        unreadable=unreadable,
    )


def _opened(flag: str, path: str, split: str, clip: ClipSpec) -> tuple[Source, str]:
    if not path or not (remote.is_url(path) or path.startswith("tfds:") or os.path.exists(path)):
        raise UserError(f"{flag} {path!r} does not exist: give a folder of clips, or a TFDS folder")
    try:
        return _single(open_source(path, split, clip)), split
    except NoSplit as error:
        if not split and len(error.known) == 1:
            return _single(open_source(path, error.known[0], clip)), error.known[0]
        if not error.known:
            raise
        option = f"{flag}_split" if flag.startswith("--") else "--split"
        asked = f"has no split {split!r}; it has" if split else "has the splits"
        raise UserError(f"{flag} {path} {asked} {', '.join(error.known)}: give one by {option}") from None


def _single(source: Source) -> Source:
    """Without the animations of a folder that lie beside a film of the same name, as `poet generate` writes them."""
    if not isinstance(source, MediaSource) or not isinstance(source.media, MediaFolder):
        return source
    lines = source.media.lines
    films = {stem(line.file) for line in lines if _suffix(line.file) not in ANIMATION_SUFFIXES}
    kept = [line for line in lines if _suffix(line.file) not in ANIMATION_SUFFIXES or stem(line.file) not in films]
    return dataclasses.replace(source, media=dataclasses.replace(source.media, lines=tuple(kept)))


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _of_files(source: MediaSource) -> dict[str, Format | str]:
    """Key -> the format of an item, or why it cannot be read."""

    def look(index: int) -> tuple[str, Format | str]:
        try:
            with source.media.fetch(index, keep=True) as found:
                return found.key, _format_of(media.probe(found.video))
        except remote.Unusable as error:
            return error.key, error.reason
        except media.MediaError as error:
            return found.key, error.reason

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(pool.map(look, range(len(source))))


def _format_of(picture: media.Picture) -> Format:
    rate_hz = picture.rate_hz if picture.count > 1 else 0.0
    return Format(frames=picture.count, height=picture.height, width=picture.width, rate_hz=rate_hz)


def _of_examples(source: TfdsSource) -> dict[str, Format | str]:
    """Of a TFDS split: every example is read, as its metadata need not state sizes."""
    names = tuple(name for name in ("key", "video") if name in source.features)
    found = {}
    for index, example in enumerate(tfds_examples(source.path, source.split, names, 0, len(source))):
        frames, height, width, _ = example["video"].shape
        key = tfds_text(example.get("key", str(index)))
        found[key] = Format(frames=frames, height=height, width=width, rate_hz=0.0)
    return found


# ----------------------------------------------------------------------------------------- fitting


def clip_of(sides: Sequence[Side], wanted: Format, fit: bool) -> tuple[ClipSpec, list[str]]:
    """The format that all clips are compared in, and what has to be done to them, in words.

    Args:
      wanted: of the flags; 0 is left to the clips.
      fit: clips may be cropped, scaled, cut and taken at another rate.

    Raises:
      UserError: clips differ and `fit` is not set; no rate is known.
    """
    found = [form for side in sides for form, _ in side.counted]
    target = _target(found, wanted)
    if not target.rate_hz and target.frames > 1:
        raise UserError("nothing states the rate of these clips: give --rate_hz")
    odd = [side for side in sides if not all(form.fits(target) for form, _ in side.counted)]
    if odd and not fit:
        raise UserError(
            f"the clips differ from {target}: " + "; ".join(side.described for side in sides) + ". Give clips of one "
            "format, or --fit to crop, scale and cut them to the least of all, or to --frames, --rate_hz, --height, "
            "--width"
        )
    done = [f"{side.described}; fitted to {target}" for side in odd]
    done += [
        f"{side.flag} {side.path} states no rate: taken to be {target.rate_hz:g} Hz"
        for side in sides
        if target.frames > 1 and any(not form.rate_hz for form, _ in side.counted)
    ]
    rate_hz = target.rate_hz or 1.0
    spec = ClipSpec(
        frames=target.frames, height=target.height, width=target.width, rate_hz=rate_hz, sample_rate_hz=SOUND_RATE_HZ
    )
    return spec, done


def _target(found: Sequence[Format], wanted: Format) -> Format:
    """The flags, and for what they leave open the least of all clips."""
    rates = [form.rate_hz for form in found if form.rate_hz]
    rate_hz = wanted.rate_hz or min(rates, default=0.0)
    small = min(found, key=lambda form: (form.height * form.width, form.height))
    frames = [_frames_at(form, rate_hz) for form in found]
    return Format(
        frames=wanted.frames or min(frames),
        height=wanted.height or small.height,
        width=wanted.width or small.width,
        rate_hz=rate_hz,
    )


def _frames_at(form: Format, rate_hz: float) -> int:
    """How many frames it gives at another rate; all of them at its own."""
    if not form.rate_hz or abs(form.rate_hz - rate_hz) <= SAME_RATE * rate_hz:
        return form.frames
    return max(1, int(form.seconds * rate_hz * (1 + 1e-9)))


# ----------------------------------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A clip in the common format.

    Attributes:
      place: its index in the set.
      key: its path below the folder, or its key in the data set.
      group: the film, map or episode that it is of.
      video: uint8 [T, H, W, 3].  sound: int16 [S] at `SOUND_RATE_HZ`, or None.
    """

    place: int
    key: str
    group: str
    caption: str
    video: Any
    sound: Any

    @property
    def stem(self) -> str:
        """The key without a suffix, by which clips of two sets are pairs."""
        return stem(self.key)


def stem(key: str) -> str:
    """'a/b.mp4' -> 'a/b'."""
    path = PurePosixPath(key.partition("#")[0])
    return str(path.with_suffix("")) if path.suffix.lower() in media.picture_suffixes(1) else str(path)


class Clips:
    """A set that is read in the common format.  `unreadable` grows as clips fail."""

    def __init__(self, side: Side, clip: ClipSpec) -> None:
        self.side, self.clip = side, clip
        self.source = _opened(side.flag, side.path, side.split, clip)[0]
        self.unreadable: dict[str, str] = dict(side.unreadable)
        self.prompts = generation.prompts(side.path)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Item]:
        return self._items(0, len(self))

    def some(self, place: int) -> list[Item]:
        """The clip at a place; none where it cannot be read."""
        return list(self._items(place, place + 1))

    def _items(self, start: int, stop: int) -> Iterator[Item]:
        for place, found in enumerate(self.source.read(start, stop), start=start):
            if isinstance(found, Skipped):
                self.unreadable.setdefault(found.key, found.reason)
            else:
                yield self._item(place, found)

    def _item(self, place: int, found: RawClip) -> Item:
        return Item(
            place=place,
            key=found.key,
            # Where all are of one origin, nothing says which depend on each other.
            group=origin(found.key) if len(self.side.origins) > 1 else found.key,
            caption=found.caption or self.prompts.get(found.key, ""),
            video=found.video,
            sound=found.audio,
        )

    @property
    def manifest(self) -> dict[str, Any]:
        """The set in JSON."""
        return {
            "path": self.side.path,
            "split": self.side.split,
            "fingerprint": self.source.fingerprint,
            "items": len(self),
            "unreadable": dict(sorted(self.unreadable.items())),
            "formats": {str(form): count for form, count in self.side.counted},
        }


def open_all(
    named: Sequence[tuple[str, str, str]], wanted: Format, fit: bool
) -> tuple[list[Clips], ClipSpec, list[str]]:
    """Sets in their one format: (flag, path, split) of each -> the sets, the format, and what is done to the clips.

    Raises:
      UserError: as `open_side` and `clip_of`.
    """
    opened = [open_side(*names, wanted.frames) for names in named]
    clip, done = clip_of(opened, wanted, fit)
    return [Clips(side, clip) for side in opened], clip, done


def content_hash(value: Any) -> str:
    """16 hex characters of an array or a string."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()[:16]
    digest = hashlib.sha256(f"{value.dtype} {value.shape}".encode())
    digest.update(value.tobytes())
    return digest.hexdigest()[:16]
