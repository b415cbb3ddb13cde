"""Files of a collection wherever they lie: a folder, or what fsspec opens (gs://, s3://, ...).

Folders of both kinds answer the same questions.  PyAV is given a file on this machine's disk: of
what lies elsewhere, a copy that goes when it was read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, Protocol

from poet.specs import UserError

# Packages that fsspec needs for a protocol, and the extra that brings them.
DRIVERS = {"gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """One item of a collection, to be decoded.

    video: a file on this machine.  sound: another one that holds its sound, or None.
    """

    key: str
    caption: str
    video: pathlib.Path
    sound: pathlib.Path | None = None


class Unusable(Exception):
    """An item that gives no file to decode; says why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason


class Collection(Protocol):
    """An ordered, picklable list of items; `fingerprint` changes when they do."""

    fingerprint: str

    def __len__(self) -> int: ...

    def fetch(self, index: int) -> contextlib.AbstractContextManager[Found]:
        """The files of an item, which stay until the block ends.

        Raises:
            Unusable: it has none.
        """


def is_url(path: str) -> bool:
    """Whether fsspec opens it: 'gs://bucket/clips' is one, 'C:/clips' and 'clips' are not."""
    return "://" in path


def filesystem(path: str, field: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path on it.

    Raises:
        UserError: an unknown protocol, or the package for it is missing; `field` is where the user
            named the path.
    """
    import fsspec

    protocol = path.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        package, extra = DRIVERS.get(protocol, ("", ""))
        what = f"the package {package}: pip install 'poet[{extra}]'" if package else str(error)
        raise UserError(f"{field} = {path!r}: reading {protocol}:// needs {what}") from None
    except ValueError as error:
        raise UserError(f"{field} = {path!r}: {error}; give a folder, gs:// or s3://") from None


class Folder(Protocol):
    """Files below a folder, named by their path relative to it with '/'."""

    name: str

    def read(self, file: str) -> bytes: ...

    def size(self, file: str) -> int:
        """Bytes, or -1 where there is no such file."""

    def files(self) -> list[str]:
        """All of them, sorted."""

    def local(self, file: str) -> contextlib.AbstractContextManager[pathlib.Path]:
        """The file on this machine's disk, while the block lasts."""


def open_folder(path: str | os.PathLike[str], field: str) -> Folder:
    """A folder of this machine, or one behind a URL.

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
    return RemoteFolder(name=os.fspath(path), sizes=sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalFolder:
    name: str

    def read(self, file: str) -> bytes:
        return pathlib.Path(self.name, file).read_bytes()

    def size(self, file: str) -> int:
        path = pathlib.Path(self.name, file)
        return path.stat().st_size if path.is_file() else -1

    def files(self) -> list[str]:
        folder = pathlib.Path(self.name)
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

    @contextlib.contextmanager
    def local(self, file: str) -> Iterator[pathlib.Path]:
        yield pathlib.Path(self.name, file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """`sizes` are those of all files when the folder was opened: listing once spares a request for
    every file."""

    name: str
    sizes: dict[str, int]

    def read(self, file: str) -> bytes:
        return read_bytes(f"{self.name.rstrip('/')}/{file}")

    def size(self, file: str) -> int:
        return self.sizes.get(file, -1)

    def files(self) -> list[str]:
        return sorted(self.sizes)

    @contextlib.contextmanager
    def local(self, file: str) -> Iterator[pathlib.Path]:
        with temporary(self.read(file), pathlib.PurePosixPath(file).suffix) as path:
            yield path


def read_bytes(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes start..stop-1 of a file, by default all."""
    import fsspec

    files, path = fsspec.core.url_to_fs(url)
    return files.cat_file(path, start=start, end=stop)


@contextlib.contextmanager
def temporary(content: bytes, suffix: str) -> Iterator[pathlib.Path]:
    """A file of this content that goes when the block ends; its suffix tells FFmpeg the format."""
    with tempfile.NamedTemporaryFile(prefix="poet-", suffix=suffix) as file:
        file.write(content)
        file.flush()
        yield pathlib.Path(file.name)
