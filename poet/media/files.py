"""What all readers and writers of media share: the error that names a file, safe replacement."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import IO

import av

from poet.specs import UserError

PathLike = str | os.PathLike[str]


class MediaError(UserError):
    """A file that gives no clip or sound.  `reason` says why, without the path."""

    def __init__(self, path: PathLike, reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.reason = reason


@contextlib.contextmanager
def naming_the_file(path: PathLike) -> Iterator[None]:
    """Turns what PyAV raises into a MediaError."""
    try:
        yield
    except FileNotFoundError:
        raise MediaError(path, "no such file") from None
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise MediaError(path, f"undecodable: {getattr(error, 'strerror', error)}") from None


def stated_seconds(file: IO[bytes]) -> float:
    """How long the header of an open file says it is; 0.0 where nothing can be read or nothing is said."""
    try:
        with av.open(file) as container:
            return max(container.duration or 0, 0) / av.time_base
    except (av.error.FFmpegError, ValueError, OSError):
        return 0.0


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[pathlib.Path]:
    """A new empty file that takes the place of `path` when the block ends, unless it fails."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = pathlib.Path(name)
    try:
        yield temporary
        os.fsync(handle)
        os.fchmod(handle, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: PathLike, text: str) -> None:
    """Writes a text file as UTF-8."""
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")
