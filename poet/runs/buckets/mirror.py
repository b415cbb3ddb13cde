"""Folders of buckets, copied into a cache on this machine: whole, or not there.

    CACHE/<hash of names, sizes and checksums>/<name of the folder>/
    CACHE/<hash>.part/    what has arrived so far; the next process goes on with it
    CACHE/workdirs/<hash of a URL>/<name of the folder>/    what is written here and published there
    CACHE/workdirs/<hash of a URL>/copy.json                `Copy`

What a bucket holds under a URL may be replaced; a copy never is, since its content names it.  Copies may be deleted
whenever no process reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from poet.runs import exits
from poet.runs.buckets.files import Changed, Entry, Place, crc32c, each, is_url
from poet.spec import Failure, UserError

_LOG = logging.getLogger(__name__)
CACHE = "POET_BUCKET_CACHE"
# How often a folder that changes while it is fetched is listed again.
_LISTINGS = 3

# Names of the files below a URL -> the folder below it to fetch ('' is all); raises UserError if none will do.
Choose = Callable[[Mapping[str, Entry]], str]


def cache() -> Path:
    """The folder of copies: $POET_BUCKET_CACHE, or `poet/buckets` in the user's cache folder."""
    if named := os.environ.get(CACHE):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "poet" / "buckets"


def workdir(url: str) -> Path:
    """Where a folder behind a URL is written here, to be published; its parent is of that URL alone, too."""
    url = url.rstrip("/")
    return cache() / "workdirs" / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rsplit("/", 1)[-1]


@dataclasses.dataclass
class Copy:
    """The name of a folder of `workdir`, another on each machine, and the checkpoints that it knows in the bucket."""

    file: Path
    name: str
    published: set[int] = dataclasses.field(default_factory=set)

    @classmethod
    def of(cls, home: Path, *, make: bool = True) -> Copy:
        """That of the folder's parent; `make`: a new one where there is none, else its name is ''."""
        file = home / "copy.json"
        try:
            found = json.loads(file.read_text())
            return cls(file, str(found["copy"]), set(found["published"]))
        except (OSError, ValueError, KeyError, TypeError):
            new = cls(file, secrets.token_hex(8) if make else "")
            if make:
                new.write()
            return new

    def write(self) -> None:
        """Keeps it for the next process."""
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"copy": self.name, "published": sorted(self.published)}))
        os.replace(temporary, self.file)


def local(path: str | os.PathLike[str], field: str = "--checkpoint") -> Path:
    """A user's folder on this machine: itself, or the copy of all that lies below a URL."""
    return fetch(os.fspath(path), field=field) if is_url(path) else Path(path)


def fetch(url: str, choose: Choose = lambda names: "", *, field: str = "--checkpoint") -> Path:
    """The copy of a folder behind a URL, made if it is not in the cache.

    Raises:
      UserError: there is no such folder, no rights, no driver, or no space for the copy.
      retries.ReadFailed: the bucket does not answer, eight times in a row.
    """
    place = Place(url, field)
    for _ in range(_LISTINGS):
        found = place.listed()
        if not found:
            raise UserError(f"{field} = {url!r}: there is no such folder or bucket, or nothing is in it")
        below = choose(found)
        prefix = f"{below}/" if below else ""
        chosen = {name[len(prefix) :]: entry for name, entry in found.items() if name.startswith(prefix)}
        try:
            return _copied(Place(f"{url.rstrip('/')}/{below}".rstrip("/"), field), chosen)
        except Changed as error:
            _LOG.warning("%s; listing %s again", error, url)
    raise Failure(f"{url} changed each of {_LISTINGS} times while it was fetched; try again when nobody writes there")


def _copied(place: Place, entries: Mapping[str, Entry]) -> Path:
    name = place.url.rsplit("/", 1)[-1]
    content = [name, *((n, e.size, e.mark) for n, e in entries.items())]
    key = cache() / hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    folder = key / name
    if not folder.is_dir():
        _make(cache(), place.field)
        with _alone(key.with_suffix(".lock"), place.url):
            if not folder.is_dir():
                _fetch_all(place, entries, key.with_suffix(".part"), folder)
    _LOG.info("%s is read from its copy %s", place.url, folder)
    return folder


def _make(folder: Path, field: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{field}: the cache {folder} cannot be written: {error.strerror}; set {CACHE}") from None


@contextlib.contextmanager
def _alone(lock: Path, url: str) -> Iterator[None]:
    """Waits for another process of this machine that fetches the same."""
    with open(lock, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _LOG.warning("another process fetches %s; waiting for it", url)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _fetch_all(place: Place, entries: Mapping[str, Entry], part: Path, folder: Path) -> None:
    fill(place, entries, part / folder.name, final=folder)
    os.rename(part, folder.parent)


def fill(place: Place, entries: Mapping[str, Entry], folder: Path, *, final: Path) -> None:
    """Makes a folder hold these files of a place and no others; of those that came before none is fetched again.

    Args:
      final: what the folder will be called, for who reads along.

    Raises:
      UserError: there is no space for them.
      Changed: one is another now, or gone.
    """
    missing = {name: entry for name, entry in entries.items() if not _there(folder / name, entry)}
    size = sum(entry.size for entry in missing.values())
    _check_space(place, folder, size)
    many = f"{len(missing)} of {len(entries)} files" if len(missing) < len(entries) else f"{len(entries)} files"
    print(f"fetching {place.url}: {many}, {size / 1e6:,.1f} MB, into {final}", file=sys.stderr, flush=True)
    for parent in {(folder / name).parent for name in entries}:
        parent.mkdir(parents=True, exist_ok=True)
    each(lambda name: _one(place, folder, name, missing[name]), missing)
    _drop_others(folder, entries)


def _one(place: Place, inner: Path, name: str, entry: Entry) -> None:
    place.download(name, entry, inner / name)
    if entry.modified:
        os.utime(inner / name, (entry.modified, entry.modified))


def _there(file: Path, entry: Entry) -> bool:
    """Whether an earlier process fetched it: it has its name once it was whole."""
    if not file.is_file() or file.stat().st_size != entry.size:
        return False
    return not entry.crc32c or crc32c(file) == entry.crc32c


def _check_space(place: Place, folder: Path, size: int) -> None:
    there = next(above for above in folder.parents if above.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise exits.Permanent(
            f"{place.url} takes {size / 1e9:,.2f} GB, and {there} has {free / 1e9:,.2f} GB left: make space "
            f"there, or set {CACHE} to another folder"
        )


def _drop_others(inner: Path, entries: Mapping[str, Entry]) -> None:
    for file in [path for path in inner.rglob("*") if path.is_file()]:
        if file.relative_to(inner).as_posix() not in entries:
            file.unlink()
