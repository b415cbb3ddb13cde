"""One writer for a folder: a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from poet.spec import UserError

_LOG = logging.getLogger(__name__)

FILE = "lease.json"
# `struct flock` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"
# Errors of a file system without locks: the run then goes on without a lease, with a warning.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def hold(
    folder: Path, *, what: str = "work dir", name: str = FILE, shared: bool = False, called: str = ""
) -> Iterator[None]:
    """Holds the lease `folder/name` for the duration of the block.

    The lock is a POSIX record lock, so the lease of a dead process is free at once, however it
    died, and forked data workers do not prolong it.  The content only says who holds it.

    Args:
      what: the user's name of what the folder is.
      shared: several processes may hold it at once, all of them shared.
      called: what the user named, where that is not the folder itself.

    Raises:
      UserError: another process holds it, or the lease cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"the {what} {folder} cannot be written to: {error.strerror}") from None
    with file:
        _lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, called or folder, what)
        if shared:  # Its content is that of none of them.
            yield
            return
        file.truncate(0)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": started}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _lock(file: IO[str], kind: int, folder: str | Path, what: str) -> None:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _LOG.warning("%s lies on a file system without locks: start no second process on it", folder)
            return
        file.seek(0)
        raise UserError(
            f"the {what} {folder} is in use by another process ({_holder(file.read())}); stop it first, "
            f"or choose another {what}"
        ) from None


def holder(folder: Path, name: str = FILE) -> tuple[str, bool | None]:
    """(who holds a lease as it says itself, whether a process does); takes no lock, so that it is in nobody's way.

    None instead of an answer: this machine or its file system cannot say.
    """
    try:
        with open(folder / name, "rb") as file:
            text = file.read().decode("utf-8", "replace")
            return (_holder(text) if text else "", _is_locked(file))
    except FileNotFoundError:
        return "", False
    except OSError:
        return "", None


def _is_locked(file: IO[bytes]) -> bool | None:
    """Asks the kernel for a lock that would keep this process from reading; those of this process never do."""
    if not sys.platform.startswith("linux"):
        return None
    wanted = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    kind = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, wanted))[0]
    return kind != fcntl.F_UNLCK


def _holder(text: str) -> str:
    try:
        return described(json.loads(text))
    except ValueError:
        return described({})


def described(lease: Any) -> str:
    """Who holds a lease, from its content."""
    try:
        return f"pid {lease['pid']} on {lease['host']}, started {lease['started']}"
    except (KeyError, TypeError):
        return "holder unknown"
