"""Exit codes of commands: one meaning each, for launchers, supervisors and people.

Programs of the same run (`poet supervise`, `poet launch`, a batch queue) decide by the code alone whether they start
the command again.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal

from poet.spec import UserError

FINISHED, FAILED, USER = 0, 1, 2
# Of sysexits.h, where one fits: EX_SOFTWARE, EX_IOERR, EX_TEMPFAIL.
HUNG, PERMANENT, RESTART = 70, 74, 75
# What a shell reports of a command that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of the user's disks and folders, wherever they occur.
_OF_THE_PLACE = (
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What a code says: its name, what happened, and whether another start of the same command may help."""

    name: str
    happened: str
    restart: bool


MEANINGS = {
    FINISHED: Meaning("finished", "The command did all that was asked.", False),
    FAILED: Meaning(
        "failed", "A crash whose cause may pass: a device's error, a lost machine, a lack of memory.", True
    ),
    USER: Meaning("user error", "A mistake in flags, settings or files; the last line says what to change.", False),
    HUNG: Meaning("hung", "A step took far longer than the steps before it; the log holds every thread's stack.", True),
    PERMANENT: Meaning(
        "permanent failure",
        "Another start would meet it again: a full disk, only damaged checkpoints, a loss that is not finite, "
        "restarts without progress.",
        False,
    ),
    RESTART: Meaning("restart", "Stopped by a signal, after everything was saved: the same command goes on.", True),
    INTERRUPTED: Meaning("interrupted", "Ctrl-C ended it at once; nothing since the last checkpoint is kept.", False),
}


class Permanent(UserError):
    """A state of files that another start cannot change, such as checkpoints that are all damaged."""

    exit_code = PERMANENT


def restartable(code: int) -> bool:
    """Whether another start of the same command may help.

    Args:
      code: as a shell reports it (128 + number of the signal that killed it), or as `subprocess` does (-number).
    """
    code = 128 - code if code < 0 else code
    known = MEANINGS.get(code)
    return known.restart if known else code > 128


def describe(code: int) -> str:
    """A code in words, such as 'exit code 75 (restart)' or 'killed by SIGKILL'."""
    code = 128 - code if code < 0 else code
    if code in MEANINGS:
        return f"exit code {code} ({MEANINGS[code].name})"
    try:
        return f"killed by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"exit code {code}"


def of(error: BaseException) -> int:
    """The code of a command that an error ends: what the error says itself (`exit_code`), or what caused it.

    Errors of the user's files and folders (`OSError`) are `USER`.
    A full disk is `PERMANENT` however deep it lies among the causes, because libraries wrap it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if _is_full(cause):
            return PERMANENT
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    default = USER if isinstance(error, UserError) or _of_the_place(error) else FAILED
    return getattr(error, "exit_code", default)


def _of_the_place(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _OF_THE_PLACE


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)
