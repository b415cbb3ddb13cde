"""One trainer per work dir: a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Iterator

from poet.specs import UserError


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds `workdir/lease.json` for the duration of the block.

    The lock is a POSIX record lock, so the lease of a dead process is free at once, however it
    died, and forked data workers do not prolong it.  The content only says who holds it.

    Raises:
      UserError: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "lease.json", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by another training process ({_holder(file.read())}); "
                "stop it first, or choose another work dir"
            ) from None
        file.truncate(0)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": started}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(text: str) -> str:
    try:
        lease = json.loads(text)
        return f"pid {lease['pid']} on {lease['host']}, started {lease['started']}"
    except (ValueError, KeyError, TypeError):
        return "holder unknown"
