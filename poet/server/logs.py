"""Logs of a service: one JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

# Fields of records that a line has beside its message.
_FIELDS = ("request", "job", "method", "path", "status", "seconds", "owner", "task", "state", "kind")


class Lines(logging.Formatter):
    """A record as JSON; a traceback is a field."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        found |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False, default=str)


class _StandardError(logging.Handler):
    """Writes to standard error as it is when a record comes: what replaces it may be closed again."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def configure(level: int = logging.INFO) -> None:
    """All logs of this process, from this level on, become lines."""
    handler = _StandardError()
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("poet").setLevel(level)
