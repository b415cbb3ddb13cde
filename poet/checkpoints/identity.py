"""Which run the checkpoints of a folder are of, and the newest that it had: what lies elsewhere is compared with it."""

from __future__ import annotations

import json
import os
from typing import Any

from poet.runs.run import IDENTITY, Run
from poet.spec import limited


def identity(run: Run) -> dict[str, Any]:
    """{"run": its name, "newest": a step}; {} where nothing is recorded."""
    try:
        found = json.loads(limited(run.checkpoints / IDENTITY).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("newest"), int) else {}


def record(run: Run, name: str, newest: int) -> None:
    """Writes it; the newest checkpoint is of the step `newest`, 0 where there is none."""
    file = run.checkpoints / IDENTITY
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".partial")
    temporary.write_text(json.dumps({"run": name, "newest": newest}) + "\n")
    os.replace(temporary, file)
