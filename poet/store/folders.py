"""A folder of media files, with or without `captions.jsonl`, as an ordered list of lines."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from poet import media
from poet.spec import UserError
from poet.store import captions, remote, texts
from poet.store.captions import CAPTIONS_FILE, Line

# It is read whole; lines of twenty million clips.
MAX_CAPTIONS_BYTES = 2**32
# Files that are sampled at a time: remote ones answer slowly.
THREADS = 16
# What is said of the suffixes of media.
_COMMON = (".wav", ".mp3", ".mp4", ".mkv", ".gif", ".png")
# Names that a user may have meant to be CAPTIONS_FILE, in lower case.
_MISNAMED = (CAPTIONS_FILE, "captions.json", "caption.jsonl", "captions.jsonl.txt", "captions.csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaFolder:
    """Media files; their key is their path below the folder.  `notes` name files that are not read."""

    folder: remote.Folder
    lines: tuple[Line, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def stated(self, index: int) -> remote.Stated:
        line = self.lines[index]
        if line.broken:
            return remote.Stated(seconds=0.0, size_bytes=0)
        with self.folder.open(line.file) as stream:
            seconds = media.stated_seconds(stream)
        return remote.Stated(seconds=seconds, size_bytes=self.folder.size(line.file))

    @contextlib.contextmanager
    def fetch(self, index: int, keep: bool = False) -> Iterator[remote.Found]:
        line = self.lines[index]
        if line.broken:
            raise remote.Unusable(line.key, line.broken)
        with self.folder.local(line.file, keep) as video:
            notes = (line.mended,) if line.mended else ()
            yield remote.Found(key=line.key, caption=line.caption, video=video, notes=notes)


def open_media(folder: remote.Folder, split: str, suffixes: Sequence[str]) -> MediaFolder:
    """Raises UserError as `folder_lines`."""
    lines, fingerprint, notes = _lines(folder, split, suffixes, "STORE.splits")
    return MediaFolder(folder=folder, lines=tuple(lines), fingerprint=fingerprint, notes=notes)


def folder_lines(
    folder: pathlib.Path, split: str, suffixes: Sequence[str], field: str
) -> tuple[list[Line], str, tuple[str, ...]]:
    """A split of a folder of media, its fingerprint, and notes on what is not read.

    Args:
        suffixes: of the files that are media, where no `captions.jsonl` names them.
        field: where the user named the split.

    Raises:
        UserError: no such split, no media, or a `captions.jsonl` that means something else.
    """
    return _lines(remote.LocalFolder(name=os.fspath(folder)), split, suffixes, field)


def _lines(
    folder: remote.Folder, split: str, suffixes: Sequence[str], field: str
) -> tuple[list[Line], str, tuple[str, ...]]:
    listed, size = folder.listed(), folder.size(CAPTIONS_FILE)
    if size >= 0:
        path = f"{folder.name.rstrip('/')}/{CAPTIONS_FILE}"
        if size > MAX_CAPTIONS_BYTES:
            raise UserError(f"{path} has {size} bytes, at most {MAX_CAPTIONS_BYTES} are read: split the folder")
        lines = captions.parse(path, folder.read(CAPTIONS_FILE), folder.size)
        named = {line.file for line in lines}
        left = [f for f in _media(listed.files, suffixes) if f not in named]
        notes = not_read(folder.name, f"not named in {CAPTIONS_FILE}", left)
    else:
        lines = _list_media(folder.name, listed.files, suffixes)
        named = {line.file for line in lines}
        left = [f for f in listed.files if f not in named]
        notes = not_read(folder.name, "no media by their names", left)
    check_split(split, sorted({line.split for line in lines}), folder.name, field)
    lines = [line for line in lines if line.split == split]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        described = list(pool.map(lambda line: _described(line, folder), lines))
    return lines, digest(described), notes + _mended(folder.name, lines) + listed.notes


def _mended(name: str, lines: Sequence[Line]) -> tuple[str, ...]:
    """A note that names captions which were repaired."""
    found = [line.mended.partition(": ")[2] for line in lines if line.mended]
    what = f"{name}: {len(found)} captions held half a character, now U+FFFD: {texts.some(found)}"
    return (what,) if found else ()


def not_read(name: str, why: str, left: Sequence[str]) -> tuple[str, ...]:
    """A note that counts and names files which are left unread; none if there are none."""
    return (f"{name}: {len(left)} files are not read, {why}: {texts.by_suffix(left)}",) if left else ()


def _described(line: Line, folder: remote.Folder) -> str:
    size = -1 if line.broken else folder.size(line.file)
    sample = "" if size < 0 else remote.content_sample(lambda: folder.open(line.file))
    return json.dumps([line.file, line.caption or line.broken, size, sample])


class NoSplit(UserError):
    """A source that has no split of this name; the message lists those that it has, `known`."""

    def __init__(self, message: str, known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.known = tuple(known)


def check_split(split: str, known: Sequence[str], where: str | os.PathLike[str], field: str) -> None:
    """Raises NoSplit, listing the splits, unless the source has this one."""
    if not known:
        raise NoSplit(f"{where} holds nothing that can be read as clips or sounds")
    if split not in known:
        value = f"({known[0]!r},)" if field.endswith("splits") else repr(known[0])
        raise NoSplit(f"{where} has no split {split!r}; it has {', '.join(known)}: set {field} = {value}, say", known)


def digest(lines: Sequence[str]) -> str:
    """The fingerprint of a source that these lines describe."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _media(files: Iterable[str], suffixes: Sequence[str]) -> list[str]:
    paths = map(pathlib.PurePosixPath, files)
    return [str(p) for p in paths if p.suffix.lower() in suffixes and not p.name.startswith(".")]


def _list_media(name: str, listed: Sequence[str], suffixes: Sequence[str]) -> list[Line]:
    """Every media file below the folder, in the split 'train' and without a caption."""
    for file in listed:
        if file.lower() in _MISNAMED:
            raise UserError(
                f"{name} holds {file}, which is not read: captions are read from {CAPTIONS_FILE}, a line "
                f"{captions.EXAMPLE} for each clip; rename or remove {file}"
            )
    files = _media(listed, suffixes)
    if not files:
        found = f"; it has {texts.by_suffix(listed)}" if listed else "; it is empty"
        some = ", ".join(suffix for suffix in _COMMON if suffix in suffixes)
        raise UserError(
            f"{name} is neither a TFDS folder (dataset_info.json) nor a folder of media: no "
            f"{CAPTIONS_FILE} and no file ending in {some} or the like{found}"
        )
    return [Line(file=file) for file in files]
