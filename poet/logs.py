"""What a command says while it works: its own words on the terminal, everything in a log file.

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


def set_up(command: str, *, level: int = logging.INFO, verbose: bool = False) -> Path | None:
    """Sends records to the terminal and to a new file; returns the file, None where there can be none.

    Args:
      level: of this package's records, the least that the terminal shows.
      verbose: the terminal shows everything that the file gets.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", _CLOCK))
    if not verbose:
        terminal.addFilter(_Terminal(level))
    handlers: list[logging.Handler] = [terminal]
    file = _file(command)
    if file is not None:
        written = logging.FileHandler(file, encoding="utf-8", delay=True)
        written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(written)
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.captureWarnings(True)
    logging.getLogger("poet").setLevel(logging.DEBUG if verbose else logging.INFO)
    return file


def _file(command: str) -> Path | None:
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base).absolute() / "poet" / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.log"))[: -(KEPT_FILES - 1)]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError):  # No home, or one that cannot be written: no log is no reason to stop.
        return None
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{command}.log"
