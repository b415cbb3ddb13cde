"""Files at URLs, by fsspec: listed, read, written and deleted, with retries, and errors that say what to do.

Drivers try again by themselves what a bucket answers with 429 or 5xx; what they let through (timeouts, broken
connections, bytes that differ from their checksum) is tried again here.
"""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import functools
import os
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from poet.runs import assets, manifest, retries
from poet.spec import Failure, UserError, foreign

T = TypeVar("T")
# Packages that fsspec needs for a protocol, and the extra that brings them.
DRIVERS = {"gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}
GOOGLE = ("gs", "gcs")
# Seconds without a connection, and without a byte of an answer, after which a request is given up and made again.
CONNECT_S, ANSWER_S = 30.0, 120.0
# Answers of a bucket that may be others a moment later.
_PASSING_CODES = {408, 429, 500, 502, 503, 504}
# Packages of drivers whose errors are those of a connection.
_CONNECTIONS = {"aiohttp", "requests", "urllib3", "botocore"}
# What tells versions of an object apart, the best first: of Google's buckets, of S3, of others.
_MARKS = ("crc32c", "md5Hash", "ETag", "etag", "generation", "LastModified", "mtime", "created")
_COMPRESSED = ("gzip", "deflate", "br", "zstd")
_BLOCK_BYTES = 1 << 20
# From this size on, a file is sent in parts.
_SESSION_BYTES = 5 << 20
# Files fetched or sent at once.
THREADS = 4


class Forbidden(UserError):
    """The bucket gives no rights to this account."""


class Changed(Failure):
    """A file was replaced or deleted since it was listed."""


class _Differs(Exception):
    """What arrived is not what the bucket says it holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A file in a bucket.

    Attributes:
      size: bytes.
      mark: changes with its content; '' where the driver says nothing.
      crc32c: base64, as Google's buckets have it; ''.
      generation: of Google's buckets: changes with every write; ''.
      modified: Unix time in seconds, by the bucket's clock; 0 where the driver says nothing.
    """

    size: int
    mark: str
    crc32c: str = ""
    generation: str = ""
    modified: float = 0.0


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether fsspec opens it: 'gs://bucket/clips' is one, 'C:/clips' and whatever exists here is not."""
    return "://" in os.fspath(path) and not os.path.exists(path)


def filesystem(path: str, field: str, *, fresh: bool = False) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path on it.

    Args:
      fresh: listings are asked for each time, because others write there; and requests that hang end.

    Raises:
      UserError: an unknown protocol, or the package for it is missing; `field` is where the user named the path.
    """
    import fsspec

    if not is_url(path):  # fsspec would find protocols in colons
        files = fsspec.filesystem("file")
        return files, os.path.abspath(path)
    protocol = path.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(path, **(_options(protocol) if fresh else {}))
    except ImportError as error:
        package, extra = DRIVERS.get(protocol, ("", ""))
        what = f"the package {package}: {assets.install(extra)}" if package else str(error)
        raise UserError(f"{field} = {path!r}: reading {protocol}:// needs {what}") from None
    except ValueError as error:
        raise UserError(f"{field} = {path!r}: {error}; give a folder, gs:// or s3://") from None


def _options(protocol: str) -> dict[str, Any]:
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in GOOGLE:
        import aiohttp  # With gcsfs.

        options["requests_timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=ANSWER_S)
    return options


def retried(what: str, work: Callable[[], T], done: str = "read") -> T:
    """The result of `work`, which is called again where it fails for a cause that may pass.

    Args:
      done: what cannot be done with `what` where it fails at every try, for messages.

    Raises:
      retries.ReadFailed: it failed at every try.
      FileNotFoundError: there is no such file or bucket.
      Forbidden: this account may not.
    """
    try:
        return retries.trying(what, work, passing, done)
    except (FileNotFoundError, FileExistsError, retries.ReadFailed, Changed):
        raise
    except Exception as error:
        if is_forbidden(error):
            raise Forbidden(
                f"{what}: the bucket refuses this account ({_first_line(error)}); log in (gcloud auth "
                "application-default login, or a service account of the machine) with rights to read and write objects"
            ) from error
        raise


def passing(error: BaseException) -> str:
    """Why an error may pass by itself, in a few words; '' for one that stays."""
    if isinstance(error, (FileNotFoundError, FileExistsError, PermissionError)):
        return ""
    if isinstance(error, _Differs):
        return str(error)
    if code := _code(error):
        return f"the bucket answers {code}" if code in _PASSING_CODES else ""
    if type(error).__name__ == "ChecksumError":  # Of gcsfs: what arrived there is not what was sent.
        return "the bucket's checksum differs from that of the file"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in retries.PASSING else ""
    of_connection = type(error).__module__.partition(".")[0] in _CONNECTIONS
    if of_connection or isinstance(error, (TimeoutError, ConnectionError)):
        return _first_line(error) or "no answer in time"
    return ""


def is_forbidden(error: BaseException) -> bool:
    """Whether a bucket refuses the account; gcsfs has no type of error for it."""
    said = isinstance(error, OSError) and str(error).startswith("Forbidden")
    return isinstance(error, PermissionError) or said or _code(error) in (401, 403)


def _code(error: BaseException) -> int:
    """The HTTP status of a driver's error; 0 for another error."""
    code = getattr(error, "code", None) or getattr(error, "status", None)
    try:
        return int(code or 0)
    except (TypeError, ValueError):
        return 0


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder behind a URL; names are relative to it, with '/'.

    All methods raise as `retried` does.
    """

    url: str
    field: str = "--checkpoint"

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        if not self.url.partition("://")[2].strip("/"):
            raise UserError(f"{self.field} = {self.url!r} names no bucket: give gs://BUCKET/FOLDER")
        files, root = filesystem(self.url.rstrip("/"), self.field, fresh=True)
        return files, root.rstrip("/")

    @property
    def files(self) -> Any:
        """The fsspec file system."""
        return self._opened[0]

    def path(self, name: str = "") -> str:
        """A name as the file system takes it."""
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    def listed(self) -> dict[str, Entry]:
        """All files below the folder, sorted by name; {} where there is none, or no such bucket.

        Raises:
          UserError: an object's name would leave the folder.
        """
        try:
            found = retried(self.url, lambda: self.files.find(self.path(), detail=True))
        except FileNotFoundError:
            return {}
        root = self.path() + "/"
        inside = {name.lstrip("/")[len(root.lstrip("/")) :]: info for name, info in found.items() if self._below(name)}
        # Names that end in '/' are what consoles show as empty folders.
        entries = {name: _entry(info) for name, info in sorted(inside.items()) if name and not name.endswith("/")}
        for name in entries:
            if not manifest.stays_inside(name) or "//" in name or "/./" in f"/{name}":
                raise UserError(
                    f"{self.url} holds an object {name[:80]!r}, which is no name of a file: rename or delete it"
                )
        return entries

    def _below(self, name: str) -> bool:
        return name.lstrip("/").startswith(self.path().lstrip("/") + "/")

    def read(self, name: str, most: int = foreign.RECORD) -> bytes:
        """The bytes of a file; UserError where it has more than `most`."""
        if entry := self.entry(name):
            foreign.check_size(f"{self.url}/{name}", entry.size, most)
        return retried(f"{self.url}/{name}", lambda: self.files.cat_file(self.path(name)))

    def entry(self, name: str) -> Entry | None:
        """A file as it is now; None if there is none."""
        try:
            return _entry(retried(f"{self.url}/{name}", lambda: self.files.info(self.path(name))))
        except FileNotFoundError:
            return None

    def download(self, name: str, entry: Entry, target: Path) -> None:
        """Writes a file as it was listed to `target`, whose folder is there, under its name only when it is whole.

        Raises:
          Changed: it is another one now, or gone.
        """
        unfinished = target.with_name(f"{target.name}.~part")

        def work() -> None:
            self.files.get_file(self.path(name), str(unfinished))
            self._compare(name, entry, unfinished)

        try:
            retried(f"{self.url}/{name}", work)
        except FileNotFoundError:
            raise Changed(f"{self.url}/{name} was deleted meanwhile") from None
        os.replace(unfinished, target)

    def _compare(self, name: str, entry: Entry, file: Path) -> None:
        size = file.stat().st_size
        if size == entry.size and (not entry.crc32c or crc32c(file) == entry.crc32c):
            return
        now = self.entry(name)
        if now is None or (now.size, now.mark) != (entry.size, entry.mark):
            raise Changed(f"{self.url}/{name} was replaced meanwhile")
        raise _Differs(f"{size} bytes came that are not the {entry.size} of the bucket's checksum")

    def upload(self, file: Path, name: str) -> None:
        """Replaces a file in the bucket by one of this machine; it appears when all of it has arrived."""
        if not self.conditional:
            self._writing(name, lambda: self.files.put_file(str(file), self.path(name)))
        elif file.stat().st_size < _SESSION_BYTES:
            self.write(name, file.read_bytes())
        else:  # In parts.
            self._writing(name, lambda: self.files.put_file(str(file), self.path(name), consistency="md5"))

    def write(self, name: str, data: bytes, *, generation: str | None = None) -> str:
        """Replaces a file in the bucket by these bytes; returns its generation.

        Args:
          generation: write only where the file has this one now, '0': where there is none; in `conditional` places.

        Raises:
          FileExistsError: the file has another generation.
        """
        if not self.conditional:
            return self._writing(name, lambda: self.files.pipe_file(self.path(name), data)) or ""
        # Not by gcsfs's own upload of small files, whose framing takes a carriage return at their end for its own.
        bucket, key, _ = self.files.split_path(self.path(name))
        condition = {} if generation is None else {"ifGenerationMatch": generation}
        options = {"uploadType": "media", "name": key, "data": data, "json_out": True} | condition
        address = f"{self.files._location}/upload/storage/v1/b/{urllib.parse.quote(bucket)}/o"
        own = checksum([data])

        def work() -> str:
            written = self.files.call("POST", address, **options)
            if written["crc32c"] != own:
                raise _Differs("what arrived is not what was sent")
            return written["generation"]

        return self._writing(name, work)

    @property
    def conditional(self) -> bool:
        """Whether writes can depend on the generation of what is there, as Google's buckets offer it."""
        return self.url.partition("://")[0] in GOOGLE

    def _writing(self, name: str, work: Callable[[], T]) -> T:
        try:
            return retried(f"{self.url}/{name}", work, done="written")
        except FileNotFoundError:
            raise UserError(f"{self.field} = {self.url!r}: there is no such bucket; make it first") from None

    def delete(self, name: str) -> None:
        """Deletes a file, which need not be there."""
        try:
            retried(f"{self.url}/{name}", lambda: self.files.rm_file(self.path(name)))
        except FileNotFoundError:
            pass


def _entry(info: Mapping[str, Any]) -> Entry:
    if info.get("contentEncoding") in _COMPRESSED:  # It would grow on its way, and be another than its checksum says.
        raise UserError(
            f"{info['name']} is stored with the content encoding {info['contentEncoding']}: upload it as it is "
            "(gcloud storage cp, without --gzip-local)"
        )
    marks = (f"{key} {info[key]}" for key in _MARKS if info.get(key))
    modified = info.get("mtime") or info.get("LastModified") or info.get("created")
    return Entry(
        size=int(info["size"] or 0),
        mark=next(marks, ""),
        crc32c=info.get("crc32c") or "",
        generation=str(info.get("generation") or ""),
        modified=modified.timestamp() if hasattr(modified, "timestamp") else float(modified or 0),
    )


def each(work: Callable[[str], object], names: Iterable[str]) -> None:
    """Does it for all names, several at once; the first error is raised, and what was not begun is left."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        try:
            list(pool.map(work, sorted(names)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def crc32c(file: Path) -> str:
    """The CRC32C of a file in base64, big-endian, as Google's buckets have it."""
    with open(file, "rb") as stream:
        return checksum(iter(lambda: stream.read(_BLOCK_BYTES), b""))


def checksum(blocks: Iterable[bytes]) -> str:
    """As `crc32c`, of blocks of bytes."""
    import google_crc32c

    found = google_crc32c.Checksum()
    for block in blocks:
        found.update(block)
    return base64.b64encode(found.digest()).decode()
