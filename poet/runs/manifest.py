"""A folder whose every file is hashed: what was flipped, cut, lost or added is found and named.

The `MANIFEST` holds one line of JSON (the caller's fields, and the SHA-256 of every file) and one
line with the SHA-256 of the first.  It is written last, after every file is on the disk.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from poet.runs import retries
from poet.spec import UserError, foreign, limited

NAME = "MANIFEST"
_BLOCK_BYTES = 1 << 20
# Files hashed at once: hashing leaves Python's lock to others, and waits for the disk.
_THREADS = min(8, os.cpu_count() or 1)


class Corrupt(UserError):
    """A file is missing, altered or not listed; the message names it."""


def write(folder: Path, fields: Mapping[str, Any], names: Sequence[str] | None = None) -> None:
    """Hashes and makes durable the files below `folder`, then writes its manifest.

    Args:
      fields: what else the manifest says.
      names: the files, relative to the folder; None: all that are there.
    """
    names = _files(folder) if names is None else sorted(names)
    files = dict(zip(names, _each(lambda name: _digest(folder / name, sync=True), names), strict=True))
    body = json.dumps(dict(fields) | {"files": files}, sort_keys=True).encode()
    with open(folder / NAME, "wb") as file:
        file.write(body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    for root, _, _ in os.walk(folder):
        sync_folder(Path(root))


def read(folder: Path) -> dict[str, Any]:
    """The manifest itself, verified; the files are not looked at.

    Raises:
      Corrupt: it is missing or altered.
    """
    try:
        return parse(retries.reading(folder / NAME, limited(folder / NAME, foreign.LISTING).read_bytes), folder)
    except FileNotFoundError:
        raise Corrupt(f"{folder} is damaged: {NAME} is missing") from None
    except OSError as error:
        raise Corrupt(f"{folder} is damaged: {NAME}: {error.strerror}") from None


def parse(data: bytes, folder: object) -> dict[str, Any]:
    """As `read` of the bytes of the manifest of a folder, which is named in errors."""
    try:
        body, digest, end = data.split(b"\n")
    except ValueError:
        body, digest, end = b"", b"", b""
    if end or hashlib.sha256(body).hexdigest().encode() != digest:
        raise Corrupt(f"{folder} is damaged: {NAME} was altered or truncated")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Corrupt(f"{folder} is damaged: {NAME} is no JSON") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("files"), dict):
        raise Corrupt(f"{folder} is damaged: {NAME} lists no files")
    for name in fields["files"]:
        _check_inside(folder, name)
    return fields


def _check_inside(folder: object, name: str) -> None:
    """A manifest of others must not make us read what lies elsewhere; raises Corrupt."""
    if not stays_inside(name):
        raise Corrupt(f"{folder} is damaged: {NAME} lists {name[:80]!r}, which is no file of the folder")


def stays_inside(name: str) -> bool:
    """Whether a name of others is that of a file below the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and name.isprintable()


def fingerprint(folder: Path) -> str:
    """16 hex characters for all that the manifest lists; Corrupt as `read`."""
    return hashlib.sha256(json.dumps(read(folder)["files"], sort_keys=True).encode()).hexdigest()[:16]


def check_listed(folder: Path) -> dict[str, Any]:
    """Compares the files that the manifest lists, whatever else lies beside them, and returns it.

    Raises:
      Corrupt: names the first that is missing or altered.
    """
    manifest = read(folder)
    _each(functools.partial(check_file, folder, manifest=manifest), manifest["files"])
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Compares every file with the manifest and returns the manifest.

    Raises:
      Corrupt: names the first file that is missing, altered or not listed.
    """
    manifest = read(folder)
    present, listed = set(_files(folder)), manifest["files"]
    for name in sorted(present ^ set(listed)):
        state = "not listed in its manifest" if name in present else "missing"
        raise Corrupt(f"{folder} is damaged: {name} is {state}")
    _each(functools.partial(check_file, folder, manifest=manifest), listed)
    return manifest


def check_file(folder: Path, name: str, manifest: Mapping[str, Any]) -> None:
    """Raises Corrupt unless this one file is as the manifest lists it."""
    path = folder / name
    try:
        if path.exists() and not path.is_file():  # A pipe or a device might never end.
            raise Corrupt(f"{folder} is damaged: {name} is no file")
        actual = _digest(path)
    except OSError as error:
        raise Corrupt(f"{folder} is damaged: {name}: {error.strerror}") from None
    if actual != manifest["files"].get(name):
        raise Corrupt(f"{folder} is damaged: {name} was altered or truncated (SHA-256 differs)")


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable, as fsync does for the contents of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[str]:
    """Every file below the folder but the manifest, as sorted relative POSIX paths."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return sorted(name for name in found if name != NAME)


def _each(work: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    """Results in order; the first error in that order is raised."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, names))


def _digest(path: Path, *, sync: bool = False) -> str:
    """SHA-256 of a file: a disk that fails for a moment must not cost a checkpoint."""
    return retries.reading(path, functools.partial(_hash, path, sync))


def _hash(path: Path, sync: bool) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()
