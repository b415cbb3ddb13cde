"""The files that commands wrote to a work dir, if present; reading them imports no large package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poet.runs import lines, manifest
from poet.spec import UserError, limited

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The output folder of `poet eval`; false, and without rows and media, if there is none."""

    folder: Path
    content: Json

    def __bool__(self) -> bool:
        return bool(self.content)

    def table(self, name: str) -> Json:
        return self.content.get("metrics", {}).get(name, {})

    def rows(self, table: str) -> list[Json]:
        return list(self.table(table).get("rows", ()))

    def media(self, kind: str = "") -> list[Json]:
        """Media of a kind, or all."""
        return [m for m in self.content.get("media", ()) if not kind or m["kind"] == kind]


def read_json(path: Path) -> Any:
    """Parsed JSON, or None without a file."""
    if not path.is_file():
        return None
    try:
        return json.loads(limited(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in a folder, if there is one; UserError where its numbers are not as they were written."""
    file = folder / "eval.json"
    if file.exists() or (folder / manifest.NAME).exists():
        manifest.check_file(folder, file.name, manifest.read(folder))
    return Evaluation(folder, read_json(file) or {})


def read_stages(path: Path) -> list[Json]:
    """Stages in the order they ended, from one list or a folder of objects."""
    if path.is_dir():
        files = sorted(path.glob("*.json"), key=lambda p: (p.stat().st_mtime_ns, p.name))
        return [read_json(file) for file in files]
    return read_json(path) or []


def read_metrics(path: Path) -> list[Json]:
    """Lines of a metrics.jsonl; damaged ones are skipped."""
    return list(lines.read(path)) if path.is_file() else []
