"""Files of a collection wherever they lie: a folder, or what fsspec opens (gs://, s3://, ...).

Folders of both kinds answer the same questions.  PyAV is given a file on this machine's disk: of
what lies elsewhere, a copy that goes when it was read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from poet.runs.buckets.files import filesystem, is_url
from poet.spec import UserError
from poet.store import texts

GB = 10**9
# Bytes of a file that are copied at a time.
COPIED_AT_ONCE = 2**23
# Bytes at each place where a file's content is sampled.
SAMPLE_BYTES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """One item of a collection, to be decoded.

    video: a file on this machine.  sound: another one that holds its sound, or None.  notes: what was
    done to its caption, the kind before a colon.
    """

    key: str
    caption: str
    video: pathlib.Path
    sound: pathlib.Path | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stated:
    """Properties of a file before it is read: by its header (0 if missing) and its size."""

    seconds: float
    size_bytes: int


class Unusable(Exception):
    """An item that gives no file to decode; says why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason


class Collection(Protocol):
    """An ordered, picklable list of items; `fingerprint` changes when they do.  `notes` are lines on what
    is not read, for the user."""

    fingerprint: str
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def stated(self, index: int) -> Stated:
        """The header of an item's video; empty if it cannot be read."""

    def fetch(self, index: int, keep: bool = False) -> contextlib.AbstractContextManager[Found]:
        """The files of an item, which stay until the block ends.

        Args:
            keep: a copy stays for whoever reads another part of the file next.

        Raises:
            Unusable: it has none.
        """


def content_sample(open_file: Callable[[], contextlib.AbstractContextManager[IO[bytes]]]) -> str:
    """16 hex digits of a file's length and its first, middle and last 4 KiB; '' if it cannot be read.

    Containers keep at their ends what changes with any other content of the same length.
    """
    try:
        with open_file() as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(size).encode())
            for start in sorted({0, max(size // 2 - SAMPLE_BYTES // 2, 0), max(size - SAMPLE_BYTES, 0)}):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()[:16]


class Folder(Protocol):
    """Files below a folder, named by their path relative to it with '/'."""

    name: str

    def read(self, file: str) -> bytes: ...

    def size(self, file: str) -> int:
        """Bytes, or -1 where there is no such file."""

    def listed(self) -> Listed:
        """All files."""

    def local(self, file: str, keep: bool = False) -> contextlib.AbstractContextManager[pathlib.Path]:
        """The file on this machine's disk, while the block lasts; `keep` as of `copied`."""

    def open(self, file: str) -> IO[bytes]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """files: sorted.  notes: lines on what is below the folder and no file."""

    files: list[str]
    notes: tuple[str, ...] = ()


def open_folder(path: str | os.PathLike[str], field: str, max_copied_gb: float = 0.0) -> Folder:
    """A folder of this machine, or one behind a URL, of which larger files than that are not copied.

    Raises:
        UserError: as `filesystem`, or there is no such folder behind the URL.
    """
    if not is_url(os.fspath(path)):
        return LocalFolder(name=os.fspath(path))
    files, root = filesystem(os.fspath(path), field)
    root = root.rstrip("/")
    try:
        listed = files.find(root, detail=True)
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"{field} = {path!r} cannot be read: {error}") from None
    sizes = {name[len(root) :].lstrip("/"): entry["size"] for name, entry in listed.items()}
    if not sizes:
        raise UserError(f"{field} = {path!r} is not a folder, or an empty one")
    return RemoteFolder(name=os.fspath(path), sizes=sizes, max_copied_gb=max_copied_gb)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalFolder:
    name: str

    def read(self, file: str) -> bytes:
        return pathlib.Path(self.name, file).read_bytes()

    def size(self, file: str) -> int:
        try:
            found = os.stat(os.path.join(self.name, file))
        except (OSError, ValueError):  # too long a name, a NUL in it
            return -1
        return found.st_size if stat.S_ISREG(found.st_mode) else -1

    def listed(self) -> Listed:
        """Links to folders are followed; a folder that is reached twice is read once."""
        walk = _Walk(self.name)
        walk.run()
        return walk.listed()

    def open(self, file: str) -> IO[bytes]:
        return open(os.path.join(self.name, file), "rb")

    @contextlib.contextmanager
    def local(self, file: str, keep: bool = False) -> Iterator[pathlib.Path]:
        del keep
        # From the root on: nothing at its head can be taken for a protocol or an option.
        yield pathlib.Path(self.name, file).absolute()


class _Walk:
    """Lists a folder.  Folders come before links to them, so that links never rename what lies here."""

    def __init__(self, root: str) -> None:
        self._root, self._seen = root, set[tuple[int, int]]()
        self._files: list[str] = []
        self._odd: list[str] = []
        self._unread: list[str] = []
        self._links: list[str] = []

    def run(self) -> None:
        self._folder("")
        for link in self._links:  # grows while it is read
            self._folder(link)

    def listed(self) -> Listed:
        found = (("neither files nor folders", self._odd), ("folders that cannot be opened", self._unread))
        notes = (f"{self._root}: {len(n)} {why}: {texts.some(sorted(n))}" for why, n in found if n)
        return Listed(files=sorted(self._files), notes=tuple(notes))

    def _folder(self, name: str) -> None:
        pending = [name]
        while pending:
            name = pending.pop()
            try:
                at = os.stat(os.path.join(self._root, name))
                entries = sorted(os.scandir(os.path.join(self._root, name)), key=lambda e: e.name)
            except OSError:
                self._unread.append(name)
                continue
            if (at.st_dev, at.st_ino) in self._seen:
                continue
            self._seen.add((at.st_dev, at.st_ino))
            for entry in entries:
                path = f"{name}/{entry.name}" if name else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_dir():
                    self._links.append(path)
                elif entry.is_file():
                    self._files.append(path)
                else:
                    self._odd.append(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """`sizes` are those of all files when the folder was opened: listing once spares a request for
    every file."""

    name: str
    sizes: dict[str, int]
    max_copied_gb: float = 0.0

    def read(self, file: str) -> bytes:
        return read_bytes(self._url(file))

    def size(self, file: str) -> int:
        return self.sizes.get(file, -1)

    def listed(self) -> Listed:
        return Listed(files=sorted(self.sizes))

    def open(self, file: str) -> IO[bytes]:
        return open_part(self._url(file), 0, self.sizes[file])

    @contextlib.contextmanager
    def local(self, file: str, keep: bool = False) -> Iterator[pathlib.Path]:
        suffix = pathlib.PurePosixPath(file).suffix
        check_size(file, self.sizes[file], self.max_copied_gb)
        with copied(self._url(file), 0, self.sizes[file], suffix, keep) as path:
            yield path

    def _url(self, file: str) -> str:
        return f"{self.name.rstrip('/')}/{file}"


def read_bytes(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes start..stop-1 of a file, by default all."""
    files, path = filesystem(url, "STORE.source")
    return files.cat_file(path, start=start, end=stop)


def check_size(key: str, size: int, max_copied_gb: float) -> None:
    """Raises Unusable for a file of so many bytes that is too large to be copied; 0 is no limit."""
    if max_copied_gb and size > max_copied_gb * GB:
        limit = f"INGEST.max_copied_gb is {max_copied_gb:g}"
        raise Unusable(key, f"too large: {size / GB:.3g} GB would be copied, {limit}")


@contextlib.contextmanager
def copied(url: str, start: int, stop: int, suffix: str, keep: bool = False) -> Iterator[pathlib.Path]:
    """A copy of the bytes start..stop-1 that goes when the block ends; its suffix gives FFmpeg the
    format.

    Args:
        keep: it goes later, when another one is to be kept.
    """
    if keep:
        file = _kept_copy(url, start, stop, suffix)
        yield pathlib.Path(file.name)
        return
    with _copy(url, start, stop, suffix) as file:
        yield pathlib.Path(file.name)


def _copy(url: str, start: int, stop: int, suffix: str) -> Any:
    """A temporary file, which goes with the last reference to it."""
    file = tempfile.NamedTemporaryFile(prefix="poet-", suffix=suffix)
    with open_part(url, start, stop - start) as stream:
        while piece := stream.read(COPIED_AT_ONCE):
            file.write(piece)
    file.flush()
    return file


_kept_copy = functools.lru_cache(maxsize=1)(_copy)


def forget_copies() -> None:
    """Lets the last kept copy go."""
    _kept_copy.cache_clear()


def open_part(url: str, start: int, size: int) -> IO[bytes]:
    """The bytes start..start+size-1 of a file as a file of their own, of which what is read is fetched."""
    files, path = filesystem(url, "STORE.source")
    return io.BufferedReader(_Part(files.open(path, "rb"), start, size))


class _Part(io.RawIOBase):
    def __init__(self, stream: IO[bytes], start: int, size: int) -> None:
        self._stream, self._start, self._size, self._place = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(base + place, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._start + self._place)
        piece = self._stream.read(min(len(buffer), max(self._size - self._place, 0)))
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def close(self) -> None:
        self._stream.close()
        super().close()
