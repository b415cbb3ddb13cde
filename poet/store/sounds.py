"""Sources of raw sounds: a TFDS folder with a feature `audio`, or a folder of sound and media.

Sources are read like those of clips (`poet.store.sources`): ordered items by ranges, picklable.
A sound is given whole, mono and at the rate that was asked for; an item that gives none is skipped
with its reason and counted.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from poet import media
from poet.media.sound import to_sound
from poet.spec import UserError
from poet.store import folders, sources, tfds_source
from poet.store.raw import Skipped, read_ahead, say_once

_LOG = logging.getLogger(__name__)

SUFFIXES = tuple(dict.fromkeys(media.SOUND_SUFFIXES + media.VIDEO_SUFFIXES))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawSound:
    """samples: int16 mono (S,), S > 0.  text: a caption or transcript, kind: such as 'speech' or
    'music'; '' if the source has none.  notes: as of `poet.media.sound.Sound`."""

    key: str
    text: str
    kind: str
    samples: np.ndarray
    notes: tuple[str, ...] = ()


class SoundSource(Protocol):
    """One split of a collection.  `fingerprint` changes when its items change; `path` is its
    folder."""

    path: str
    fingerprint: str

    def __len__(self) -> int:
        """Items, those that will be skipped included."""

    def read(self, start: int, stop: int) -> Iterator[RawSound | Skipped]:
        """Yields exactly the items start..stop-1 in their order."""


def open_sounds(
    path: str,
    split: str,
    sample_rate_hz: int,
    *,
    field: str = "TOKENIZER_TRAIN.sources",
    split_field: str = "TOKENIZER_TRAIN.split",
) -> SoundSource:
    """Opens a split of a TFDS folder (`.../name/1.0.0`) or of a folder of sound and media files.

    Args:
        sample_rate_hz: that all sounds are brought to.
        field, split_field: where the user named the folder and the split, for errors.

    Raises:
        UserError: no such folder or split (what exists is listed), an empty split, no audio or no
            word about its rate, or an unknown field in `captions.jsonl`.
    """
    folder, is_tfds = sources.find_folder(path, field)
    source = (_open_tfds if is_tfds else _open_folder)(folder, split, sample_rate_hz, split_field)
    if not len(source):
        raise UserError(f"split {split!r} of {path} is empty; name another in {split_field}")
    return source


# ---------------------------------------------------------------------------------------- counting


def usable(items: Iterable[RawSound | Skipped], where: str) -> list[RawSound]:
    """The sounds among the items; logs what was skipped, and what was done to the others.

    Raises:
        UserError: there is none; `where` names the source.
    """
    items = list(items)
    sounds = [item for item in items if isinstance(item, RawSound)]
    summary_text = summary(items)
    if summary_text:
        _LOG.info("%s: %s", where, summary_text)
    if not sounds:
        first = f"; the first: {items[0].key}: {items[0].reason}" if items else ""
        raise UserError(f"{where} has no sound that can be used: {summary_text or 'it is empty'}{first}")
    return sounds


def summary(items: Iterable[RawSound | Skipped]) -> str:
    """'12 of 340 skipped: undecodable 9, not audio 3; resampled from 44100 Hz 300'.

    Reasons and notes stand with how often they hold, frequent ones first; '' if there are none.
    """
    items = list(items)
    reasons = collections.Counter(item.reason.split(":")[0] for item in items if isinstance(item, Skipped))
    notes = collections.Counter(
        _without_numbers(note) for item in items if isinstance(item, RawSound) for note in item.notes
    )
    parts = [f"{reasons.total()} of {len(items)} skipped: {_counts(reasons)}"] if reasons else []
    return "; ".join(parts + ([_counts(notes)] if notes else []))


def _without_numbers(note: str) -> str:
    """'clipped 3.1 % of samples' -> 'clipped', so that such notes count together."""
    return re.sub(r" [\d.]+ % of samples", "", note)


def _counts(counter: collections.Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


# ------------------------------------------------------------------------------------ media folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSounds:
    """Sound and media files; the path below the folder is the key."""

    path: str
    lines: tuple[folders.Line, ...]
    sample_rate_hz: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, start: int, stop: int) -> Iterator[RawSound | Skipped]:
        return read_ahead(self._read_item, start, stop)

    def _read_item(self, index: int) -> RawSound | Skipped:
        line = self.lines[index]
        if line.broken:
            return Skipped(key=line.key, reason=line.broken)
        try:
            sound = media.read_sound(pathlib.Path(self.path, line.file), self.sample_rate_hz)
        except media.MediaError as error:
            return Skipped(key=line.key, reason=error.reason)
        return RawSound(key=line.key, text=line.caption, kind=line.kind, samples=sound.samples, notes=sound.notes)


def _open_folder(folder: pathlib.Path, split: str, sample_rate_hz: int, split_field: str) -> FolderSounds:
    lines, fingerprint, notes = folders.folder_lines(folder, split, SUFFIXES, split_field)
    for note in notes:
        _LOG.info("%s", note)
    return FolderSounds(path=str(folder), lines=tuple(lines), sample_rate_hz=sample_rate_hz, fingerprint=fingerprint)


# ------------------------------------------------------------------------------------- TFDS folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSounds:
    """A prepared TFDS data set with the feature audio, (S,) or (S, channels), integers of 16 bits
    or floats in [-1, 1]; and where it has them key, text and kind.  `rate_hz` is its own."""

    path: str
    split: str
    sample_rate_hz: int
    rate_hz: int
    length: int
    features: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, stop: int) -> Iterator[RawSound | Skipped]:
        examples = tfds_source.tfds_examples(self.path, self.split, self.features, start, stop)
        return (self._to_sound(index, example) for index, example in enumerate(examples, start))

    def _to_sound(self, index: int, example: Mapping[str, Any]) -> RawSound | Skipped:
        audio = example["audio"]
        text = {name: str(tfds_source.tfds_text(example[name])) for name in example if name != "audio"}
        key = text.get("key", f"{self.split}-{index:08d}")
        try:
            sound = to_sound(audio, self.rate_hz, self.sample_rate_hz)
        except ValueError as error:
            return Skipped(key=key, reason=str(error))
        return RawSound(
            key=key,
            text=text.get("text", text.get("caption", "")),
            kind=text.get("kind", ""),
            samples=sound.samples,
            notes=sound.notes,
        )


def _open_tfds(folder: pathlib.Path, split: str, sample_rate_hz: int, split_field: str) -> TfdsSounds:
    info, fingerprint = tfds_source.tfds_split(folder, split, split_field)
    if "audio" not in info.features:
        raise UserError(f"{folder} has no feature 'audio'; it has {', '.join(info.features)}")
    known = ("key", "audio", "text", "caption", "kind")
    return TfdsSounds(
        path=str(folder),
        split=split,
        sample_rate_hz=sample_rate_hz,
        rate_hz=_rate_hz(info, folder, sample_rate_hz),
        length=info.splits[split].num_examples,
        features=tuple(name for name in known if name in info.features),
        fingerprint=fingerprint,
    )


def _rate_hz(info: Any, folder: pathlib.Path, assumed_hz: int) -> int:
    """The data set's own sample rate: of its metadata, else of the feature's declaration.

    Those with video may lack it, as Freedoom-AV does: they are assumed to have the run's rate.
    """
    metadata = info.metadata if isinstance(info.metadata, Mapping) else {}
    stated = metadata.get("sample_rate_hz", getattr(info.features["audio"], "sample_rate", None))
    if stated is not None:
        if not isinstance(stated, int) or stated < 1:
            raise UserError(
                f"{folder} states a sample rate of {stated!r}; write its Hz as a whole number "
                '"sample_rate_hz" in metadata.json there'
            )
        return stated
    if "video" not in info.features:
        raise UserError(
            f'{folder} does not have the rate of its sound; write {{"sample_rate_hz": 16000}}, or '
            "what it is, to metadata.json there"
        )
    say_once(f"{folder} does not have the rate of its sound: {assumed_hz} Hz is assumed")
    return assumed_hz
