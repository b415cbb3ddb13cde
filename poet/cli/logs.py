"""Logging of a command: its own messages on the terminal, everything in a log file.

The terminal gets what this package reports, and errors; libraries' warnings go to the file alone, which lies in
`~/.cache/poet/logs` (`XDG_CACHE_HOME`).  The newest files are kept.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

KEPT_FILES = 20
_CLOCK = "%H:%M:%S"


class _Terminal(logging.Filter):
    """Passes what this package says from `level` on, and the errors of everybody."""

    def __init__(self, level: int):
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        own = record.name.split(".")[0] == "poet"
        return record.levelno >= (self._level if own else logging.ERROR)


def set_up(file: Path | None, *, level: int = logging.INFO, verbose: bool = False) -> None:
    """Sends records to the terminal and to a file.

    Args:
      file: see `file_of`.
      level: of this package's records, the least that the terminal shows.
      verbose: the terminal shows everything that the file gets.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", _CLOCK))
    if not verbose:
        terminal.addFilter(_Terminal(level))
    handlers: list[logging.Handler] = [terminal]
    if file is not None:
        written = logging.FileHandler(file, encoding="utf-8", delay=True)
        written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(written)
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.captureWarnings(True)
    logging.getLogger("poet").setLevel(logging.DEBUG if verbose else logging.INFO)


def native_to(file: Path) -> None:
    """Sends what native code writes to file descriptor 2 to the log file, for the rest of this process.

    TensorFlow and XLA speak there before they can be silenced.  Python's own `sys.stderr` stays
    the terminal's.
    """
    with open(file, "ab", buffering=0) as log:
        terminal = os.dup(2)
        os.dup2(log.fileno(), 2)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def file_of(command: str) -> Path | None:
    """The log file of a command that starts now; None where there can be none."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base).absolute() / "poet" / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.log"))[: -(KEPT_FILES - 1)]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError):  # No home, or one that cannot be written: no log is no reason to stop.
        return None
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{command}.log"
