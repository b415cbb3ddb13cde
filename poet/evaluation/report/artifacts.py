"""What the commands left in a work dir, as far as it is there; read without opening anything heavy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Mapping

from poet.spec import UserError
from poet.training import reporting

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `poet eval` wrote into a folder."""

    folder: Path
    content: Json

    @property
    def step(self) -> int:
        return self.content["step"]

    def rows(self, metric: str) -> list[Json]:
        return list(self.content["metrics"].get(metric, {}).get("rows", ()))

    def notes(self, metric: str) -> list[str]:
        return list(self.content["metrics"].get(metric, {}).get("notes", ()))

    def media(self, kind: str) -> list[Json]:
        return [m for m in self.content["media"] if m["kind"] == kind]


def read_json(path: Path | None) -> Any:
    """Parsed JSON, or None without a file."""
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def read_evaluation(folder: Path | None) -> Evaluation | None:
    content = read_json(folder / "eval.json" if folder else None)
    return Evaluation(folder, content) if content else None


def read_manifest(store: Path | None) -> Json | None:
    return read_json(store / "manifest.json" if store else None)


def read_stages(path: Path | None) -> list[Json]:
    """Stages in the order they ended, from one list or a folder of objects."""
    if path is not None and path.is_dir():
        files = sorted(path.glob("*.json"), key=lambda p: (p.stat().st_mtime_ns, p.name))
        return [read_json(file) for file in files]
    return read_json(path) or []


def read_metrics(path: Path | None) -> list[Json]:
    """Lines of a metrics.jsonl; damaged ones are left out."""
    return list(reporting.read(path)) if path is not None and path.is_file() else []
