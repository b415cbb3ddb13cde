"""Common parts of readers and writers of media: safe opening, the error that names a file, safe replacement."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pathlib
import stat
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NoReturn

import av

from poet.spec import UserError

PathLike = str | os.PathLike[str]

# Pixels of the largest picture that is decoded; a header of a few bytes may ask for any number.
MOST_PIXELS = 2**27
# Seconds between two frames of video, or of silence in a sound that is read whole: more is not believed
# to be meant.  It bounds what the timestamps of a small file can ask for.
MOST_GAP_S = 10.0
# A clock that goes back by more than that was set anew.
MOST_BACK_S = 1.0
# Formats of FFmpeg that are lists of other files, streams of a network, devices or programs.
_OTHER_FILES = frozenset(
    "alias_pix alsa concat dash fbdev ffmetadata hls image2 image2pipe imf kmsgrab lavfi oss rtp rtsp sap "
    "sdp video4linux2,v4l2 vobsub webm_dash_manifest x11grab".split()
)
# Bytes of the largest text or profile that a PNG may hold compressed: FFmpeg inflates them whole, a thousandfold.
MOST_INFLATED = 2**24
_PNG, _COMPRESSED = b"\x89PNG\r\n\x1a\n", (b"iCCP", b"zTXt")
# Bytes that FFmpeg reads at a time.
_READ_BYTES = 2**16


class MediaError(UserError):
    """A file that gives no clip or sound.  `reason` says why, without the path."""

    def __init__(self, path: PathLike, reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.reason = reason


@contextlib.contextmanager
def naming_the_file(path: PathLike) -> Iterator[None]:
    """Turns what PyAV and the file system raise into a MediaError."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise MediaError(path, f"undecodable: {error.strerror}") from None
    except OSError as error:
        raise MediaError(path, f"unreadable: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise MediaError(path, f"undecodable: {error}") from None


@contextlib.contextmanager
def open_media(path: PathLike, wanted: str = "undecodable") -> Iterator[av.container.InputContainer]:
    """A regular file, whatever its name, opened by PyAV; nothing in it makes FFmpeg open another one.

    Args:
        wanted: the kind of reason for a file of no known format.

    Raises:
        MediaError: no such file, not a file, empty, or of no format that is read; also what PyAV raises in
            the block.
    """
    _check_file(path)
    with naming_the_file(path), open(path, "rb", buffering=0) as file:
        try:
            container = guarded(file, pathlib.PurePath(path).suffix)
        except (av.error.ArgumentError, av.error.PermissionError):
            raise MediaError(path, f"{wanted}: a list of other files") from None
        except _Swells as error:
            raise MediaError(path, f"too large: {error}") from None
        except av.error.InvalidDataError:
            raise MediaError(path, f"{wanted}: no known format of media, or damaged") from None
        with container:
            yield container


def guarded(file: IO[bytes], suffix: str = "") -> av.container.InputContainer:
    """An open file read by PyAV; FFmpeg may open no other.  ValueError for a PNG beyond MOST_INFLATED."""
    _check_png(file)
    return av.open(
        _Named(file, f"media{suffix}"),
        options={"format_whitelist": _formats()},
        metadata_errors="replace",
        buffer_size=_READ_BYTES,
        io_open=_refuse,
    )


class _Swells(ValueError):
    """Says what of a small file would be large in memory."""


def _check_png(file: IO[bytes]) -> None:
    if file.read(len(_PNG)) == _PNG:
        while len(head := file.read(8)) == 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            data = file.read(min(size, MOST_INFLATED)) if kind in _COMPRESSED else b""
            if _swells(data.partition(b"\0")[2][1:]):  # Behind a name, and a byte that says how.
                raise _Swells(f"a text or profile of more than {MOST_INFLATED >> 20} MiB in a picture")
            file.seek(size - len(data) + 4, os.SEEK_CUR)
    file.seek(0)


def _swells(data: bytes) -> bool:
    """Whether it inflates to more than MOST_INFLATED bytes."""
    try:
        return len(zlib.decompressobj().decompress(data, MOST_INFLATED + 1)) > MOST_INFLATED
    except zlib.error:
        return False


def _check_file(path: PathLike) -> None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(path, "no such file") from None
    except (OSError, ValueError) as error:
        raise MediaError(path, f"unreadable: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise MediaError(path, f"unreadable: {what}, not a file")
    if not found.st_size:
        raise MediaError(path, "empty: the file has no bytes")


class _Named:
    """A file with a name that FFmpeg sees: its suffix helps to detect the format, but neither colons nor
    percent signs in a path mean anything."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.name, self.read, self.seek, self.tell = name, file.read, file.seek, file.tell


def _refuse(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise PermissionError("a media file opens no other")


@functools.cache
def _formats() -> str:
    return ",".join(sorted(av.formats_available - _OTHER_FILES))


def jump(path: PathLike, from_s: float, to_s: float) -> MediaError:
    """The error for the timestamps of two frames in a row."""
    return MediaError(path, f"jumping timestamps: from {from_s:.6g} s to {to_s:.6g} s")


def stated_seconds(file: IO[bytes]) -> float:
    """How long the header of an open file says it is; 0.0 where nothing can be read or nothing is said."""
    try:
        with guarded(file) as container:
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
    except av.error.FFmpegError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
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
