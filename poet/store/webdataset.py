"""WebDataset shards: tar files whose members of one name, `a/b.mp4` and `a/b.txt`, are one item.

A tar is read once to find its members; items are then read by their place in it, so that ranges
cost what they hold.  Nothing is unpacked and no index is written.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from poet import media
from poet.specs import UserError
from poet.store import folders, remote

SUFFIX = ".tar"
SPLITS = ("train", "validation", "test")
CAPTIONS = ("txt", "json")
SOUNDS = ("wav", "flac")
VIDEOS = tuple(suffix[1:] for suffix in media.VIDEO_SUFFIXES)
FIELD = "STORE.source"
# Tars that are listed at a time: remote ones answer slowly.
THREADS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Members of a tar with the same name; `parts` gives (offset, size in bytes) by suffix."""

    tar: str
    key: str
    parts: dict[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TarCollection:
    """The samples of a split in the order of their tars and members."""

    samples: tuple[Sample, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.samples)

    @contextlib.contextmanager
    def fetch(self, index: int) -> Iterator[remote.Found]:
        sample = self.samples[index]
        video = next((s for s in VIDEOS if s in sample.parts), None)
        if video is None:
            raise remote.Unusable(sample.key, f"no video: only {', '.join(sample.parts)}")
        sound = next((s for s in SOUNDS if s in sample.parts), None)
        caption = _caption(sample)
        with contextlib.ExitStack() as stack:
            paths = {
                part: stack.enter_context(remote.temporary(_read(sample, part), f".{part}"))
                for part in (video, sound)
                if part
            }
            yield remote.Found(
                key=sample.key, caption=caption, video=paths[video], sound=paths.get(sound)
            )


def is_pattern(path: str) -> bool:
    """Whether it names tars itself: one, or a pattern with `*`, `?` or braces."""
    return path.endswith(SUFFIX)


def tars_of(folder: remote.Folder) -> list[str]:
    """The tars in a folder, named by their path in it.

    In one with `captions.jsonl` tars are no shards.
    """
    if folder.size(folders.CAPTIONS_FILE) >= 0:
        return []
    return [file for file in folder.files() if file.endswith(SUFFIX)]


def open_tars(path: str, split: str) -> TarCollection:
    """Opens a split of the tars in a folder or of a pattern such as `gs://b/clips-{000..127}.tar`.

    A tar is of the split that its folder, or its name up to the first '-', is called after (train,
    validation or test); any other is of 'train'.

    Raises:
        UserError: no such tar or split, a damaged tar, or one with two members of one name.
    """
    tars = _find(path)
    chosen = {name: url for name, url in tars.items() if split_of(name) == split}
    folders.check_split(split, sorted({split_of(n) for n in tars}), path, "STORE.splits")
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        listed = list(pool.map(_samples, chosen, chosen.values()))
    samples = tuple(itertools.chain.from_iterable(listed))
    described = [json.dumps([s.key, sorted(s.parts.items())]) for s in samples]
    return TarCollection(samples=samples, fingerprint=folders.digest(described))


def split_of(name: str) -> str:
    """'validation/000.tar' and 'validation-000.tar' are of 'validation', '000.tar' of 'train'."""
    first = name.partition("/")[0] if "/" in name else name.removesuffix(SUFFIX).partition("-")[0]
    return first if first in SPLITS else "train"


def _find(path: str) -> dict[str, str]:
    """Name of every tar, its path from where all of them differ -> its path or URL, sorted."""
    if not is_pattern(path):
        names = tars_of(remote.open_folder(path, FIELD))
        return {name: f"{path.rstrip('/')}/{name}" for name in names}
    head = re.split(r"[*?{\[]", remote.filesystem(path, FIELD)[1])[0].rpartition("/")[0]
    found = [_glob(pattern) for pattern in expand_braces(path)]
    return {
        full.removeprefix(head).lstrip("/"): url
        for full, url in sorted(set(itertools.chain.from_iterable(found)))
    }


def _glob(pattern: str) -> list[tuple[str, str]]:
    """(path on its file system, path or URL) of every tar; a UserError where there is none."""
    files, path = remote.filesystem(pattern, FIELD)
    found = files.glob(path)
    if not found:
        raise UserError(f"{FIELD}: there is no file {pattern}")
    if not remote.is_url(pattern):
        return [(name, name) for name in found]
    return [(name, files.unstrip_protocol(name)) for name in found]


def expand_braces(pattern: str) -> list[str]:
    """'a-{08..10}.tar' -> 'a-08.tar', 'a-09.tar', 'a-10.tar'; '{a,b}' gives both."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        width = len(numbers[1])
        parts = [f"{n:0{width}d}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        parts = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [whole for part in parts for whole in expand_braces(f"{head}{part}{tail}")]


def _samples(name: str, url: str) -> list[Sample]:
    """The samples of one tar in the order of their first members.

    The name of the tar stands in the keys: WebDatasets may count from 0 in every tar.
    """
    stem = name.removesuffix(SUFFIX)
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    for member, offset, size in _members(url):
        folder, _, base = member.rpartition("/")
        key, _, suffix = base.partition(".")
        if not key or not suffix:
            continue
        sample = parts.setdefault(f"{folder}/{key}".lstrip("/"), {})
        if suffix.lower() in sample:
            raise UserError(f"{url} holds two members {member!r}; every name may stand once")
        sample[suffix.lower()] = (offset, size)
    return [Sample(tar=url, key=f"{stem}/{key}", parts=found) for key, found in parts.items()]


def _members(url: str) -> list[tuple[str, int, int]]:
    """(name, offset, size in bytes) of every file in a tar."""
    files, path = remote.filesystem(url, FIELD)
    try:
        with files.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            return [(m.name.removeprefix("./"), m.offset_data, m.size) for m in tar if m.isreg()]
    except tarfile.TarError as error:
        raise UserError(
            f"{url} is damaged, or no uncompressed tar: {error}; fetch or write it again"
        ) from None


def _read(sample: Sample, part: str) -> bytes:
    offset, size = sample.parts[part]
    return remote.read_bytes(sample.tar, offset, offset + size)


def _caption(sample: Sample) -> str:
    """Of the text file, else the field caption or text of the JSON file, else ''."""
    part = next((p for p in CAPTIONS if p in sample.parts), None)
    if part is None:
        return ""
    try:
        text = _read(sample, part).decode()
        return text.strip() if part == "txt" else _json_caption(json.loads(text))
    except ValueError as error:  # what UTF-8 and JSON raise
        raise remote.Unusable(sample.key, f"broken caption: .{part}: {error}") from None


def _json_caption(value: Any) -> str:
    if not isinstance(value, dict):
        raise ValueError("not an object with a caption")
    caption = value.get("caption", value.get("text", ""))
    if not isinstance(caption, str):
        raise ValueError(f"the caption is {caption!r}, not a string")
    return caption
