"""Reads of disks and file servers that fail for a while: tried again, more and more slowly, then named."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from poet.spec import Failure

T = TypeVar("T")
# Errors of a disk, a network or a file server that may pass.  Of a missing file or a forbidden one none is.
PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOMEM,
        errno.EREMOTEIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
# Seconds before each further try: a minute in all, the time in which a file server fails over.
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# A read of so many seconds is named.
SLOW_S = 20.0
_LOG = logging.getLogger(__name__)


class ReadFailed(Failure):
    """A read failed at every try; another start may find the disk or the network in order."""


def reading(what: object, read: Callable[[], T]) -> T:
    """The result of `read`, which is called again where it fails for a cause that may pass.

    Args:
      what: the file, for messages.

    Raises:
      ReadFailed: it failed at every try.
      OSError: of another cause, at once.
    """
    return trying(what, read, _passing)


def _passing(error: BaseException) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) and error.errno in PASSING else ""


def trying(what: object, work: Callable[[], T], passing: Callable[[BaseException], str], done: str = "read") -> T:
    """As `reading`, where `passing` says why an error may pass, and '' of one that stays and is raised at once."""
    for number, wait_s in enumerate(WAITS_S, 1):
        try:
            return _timed(what, work)
        except Exception as error:
            if not (why := passing(error)):
                raise
            _LOG.warning("%s: %s at try %d; trying again in %g s", what, why, number, wait_s)
            time.sleep(wait_s)
    try:
        return _timed(what, work)
    except Exception as error:
        if not (why := passing(error)):
            raise
        raise ReadFailed(f"{what} cannot be {done}: {why}, {len(WAITS_S) + 1} times in a row") from error


def _timed(what: object, read: Callable[[], T]) -> T:
    begin = time.monotonic()
    try:
        return read()
    finally:
        if (took_s := time.monotonic() - begin) > SLOW_S:
            _LOG.warning("%s: an answer took %.0f s", what, took_s)
