"""Which recordings of a collection are used, and which split each of them belongs to."""

from __future__ import annotations

import hashlib
import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar

from poet.media.sound import sound_seconds

SPLITS = ("train", "validation", "test")


class _Recording(Protocol):
    name: str
    path: pathlib.Path
    family: str


class _Collection(Protocol):
    name: str
    minutes: float
    recording_seconds: float
    held_out_every: int


R = TypeVar("R", bound=_Recording)


def choose(collection: _Collection, recordings: Iterable[R], seed: int, dropped: Counter[str]) -> dict[str, list[R]]:
    """Takes families of recordings in the order of their hashes until `minutes` are full.

    Of every `held_out_every` families the first goes to test and the second to validation, so that
    three families are enough for three splits.  What is taken and where it goes follows from the
    names, the lengths that the files state, and the seed.  Files that state none are counted in
    `dropped["unreadable"]`.
    """
    families: dict[str, list[R]] = {}
    for recording in recordings:
        families.setdefault(recording.family or recording.name, []).append(recording)
    ordered = sorted(families, key=lambda name: _hash(seed, collection.name, name))
    chosen: dict[str, list[R]] = {split: [] for split in SPLITS}
    seconds, place = 0.0, 0
    for family in map(families.get, ordered):
        if seconds >= 60 * collection.minutes:
            break
        lengths = [sound_seconds(recording.path) for recording in family]
        readable = [recording for recording, length in zip(family, lengths) if length]
        dropped["unreadable"] += len(family) - len(readable)
        chosen[_split(place % collection.held_out_every)] += readable
        seconds += sum(min(length, collection.recording_seconds) for length in lengths)
        place += bool(readable)
    return chosen


def _hash(seed: int, collection: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{collection}/{name}".encode()).digest()


def _split(place: int) -> str:
    return {0: "test", 1: "validation"}.get(place, "train")
