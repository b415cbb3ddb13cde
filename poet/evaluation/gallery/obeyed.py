"""Whether a task's conditions are obeyed, in one sentence, by the condition gains of `scores.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from poet.evaluation.report.artifacts import read_json
from poet.runs.run import Run

FILE = "scores.json"
# Nats a token: a smaller gain is measurable, and hardly visible.
HARDLY = 0.01
OBEYED, WEAK, IGNORED = "obeys", "hardly obeys", "does not obey"


def read_scores(run: Run) -> dict[str, Any]:
    """Condition gains beside the weights, task -> condition -> stream -> gain; {} where there are none."""
    for folder in (run.checkpoint.path, run.folder):
        if found := read_json(folder / FILE):
            return found.get("condition_gain", {})
    return {}


def verdicts(gains: Mapping[str, Any], task: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(verdict, 'condition → stream', its gain) of each condition of a task."""
    for condition, by_stream in gains.get(task, {}).items():
        for stream, gain in by_stream.items():
            yield _verdict(gain["nats_per_token"]), f"{condition} → {stream}", gain


def _verdict(nats: Mapping[str, float | None]) -> str:
    low = nats["value"] if nats["low"] is None else nats["low"]
    if low is None or low <= 0:
        return IGNORED
    return OBEYED if nats["value"] >= HARDLY else WEAK


def sentence(gains: Mapping[str, Any], task: str) -> str:
    """The scores of a task, in one sentence."""
    if not gains:
        return f"There is no {FILE} beside the weights, so it is unknown whether conditions are obeyed."
    found: dict[str, list[str]] = {}
    for verdict, what, gain in verdicts(gains, task):
        found.setdefault(verdict, []).append(f"{what} ({_costs(gain['nats_per_clip'])})")
    if not found:
        return f"{FILE} has no condition gains of this task."
    parts = [f"it {verdict} {', '.join(found[verdict])}" for verdict in (OBEYED, WEAK, IGNORED) if verdict in found]
    return f"By condition gain in nats a clip, with 95 % intervals, {'; '.join(parts)}."


def _costs(nats: Mapping[str, float | None]) -> str:
    value, low, high = nats["value"], nats["low"], nats["high"]
    return f"{value:.1f}" if low is None or high is None else f"{value:.1f}, {low:.1f} to {high:.1f}"
