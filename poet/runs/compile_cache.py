"""Programs that earlier processes compiled: where they lie, and which of them are used again.

JAX takes its settings from the environment when it is imported: `use` comes before that, costs
nothing, and holds for the processes that a command starts.  `JAX_COMPILATION_CACHE_DIR` names another
folder, or none if it is empty; `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

_LOG = logging.getLogger(__name__)
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
# What takes less is compiled again: a file for each small program would cost as much as it saves.
_LEAST_SECONDS = 0.2
# The programs used least recently go first; that of a train step takes about 1 to 10 MB.
_MOST_BYTES = 4 << 30
_HIT = "/jax/compilation_cache/cache_hits"
_ASKED = "/jax/compilation_cache/compile_requests_use_cache"
# Tracing, lowering and the compiler itself, each with an event of its own.
_COMPILING = "/jax/core/compile/"


def use() -> None:
    """Lets JAX, not imported yet, keep compiled programs in the user's cache folder; see above.

    A folder that cannot be used, or that somebody else could write programs into, costs a warning.
    """
    if _FOLDER in os.environ:
        return
    try:
        folder = _own(_folder())
    except (OSError, RuntimeError) as error:  # RuntimeError: no home.
        _LOG.warning("compiled programs are not kept: %s; set %s to a writable folder", error, _FOLDER)
        return
    os.environ[_FOLDER] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(_LEAST_SECONDS))
    if importlib.util.find_spec("filelock"):  # JAX's limit needs it.
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST_BYTES))


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "poet" / "xla" / _processor()


def _processor() -> str:
    """Names what programs for this machine's CPU may use: in a home that machines share, one that has
    less must not load them, and JAX's keys say nothing of it."""
    text = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = ("model name", "flags", "Features", "CPU part")
        text += "".join(sorted({line for line in lines if line.startswith(named)}))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _own(folder: Path) -> Path:
    """The folder, made if need be; OSError unless this user alone can write there and in `poet/` above.

    Whoever can write programs there can run them as this user.
    """
    folder.parents[2].mkdir(parents=True, exist_ok=True)
    for path in (folder.parents[1], folder.parents[0], folder):
        path.mkdir(exist_ok=True, mode=0o700)
        found = path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(f"{path} can be written by others, or is another user's")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"{folder} cannot be written")
    return folder


# ----------------------------------------------------------------------------------------- counting


@dataclasses.dataclass
class Count:
    """Programs that were asked for, those of them that lay in the cache, and seconds until they stood."""

    asked: int = 0
    hits: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"cache: {self.hits} hits, {self.asked - self.hits} misses" if self.asked else "no cache"


_here = threading.local()


@contextlib.contextmanager
def counted() -> Iterator[Count]:
    """Counts what this thread compiles within the block."""
    _listen()
    before, _here.count = getattr(_here, "count", None), Count()
    try:
        yield _here.count
    finally:
        _here.count = before


@functools.cache
def _listen() -> None:
    import jax

    def hear(event: str, **_: object) -> None:
        count = getattr(_here, "count", None)
        if count is not None:
            count.asked += event == _ASKED
            count.hits += event == _HIT

    def hear_seconds(event: str, seconds: float, **_: object) -> None:
        count = getattr(_here, "count", None)
        if count is not None and event.startswith(_COMPILING):
            count.seconds += seconds

    jax.monitoring.register_event_listener(hear)
    jax.monitoring.register_event_duration_secs_listener(hear_seconds)
