"""`poet eval`: every metric that what is given allows, as `eval.json` and as a printed table."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import Any, Sequence

from poet.checkpoints import checkpoint
from poet.distributed import processes
from poet.spec import compat
from poet.evaluation import scores, tables
from poet.evaluation.metrics import METRICS, Metric
from poet.evaluation.resources import Resources
from poet.media import replacing
from poet.spec import Experiment, UserError, choose, to_dict

_LOG = logging.getLogger(__name__)

RESULT_FILE = "eval.json"
FORMAT = 1


def evaluate(
    path: str | Path,
    experiment: Experiment | None,
    out: str | Path,
    metrics: Sequence[str] | None = None,
    scores_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint, writes OUT/eval.json and OUT/media, prints the tables.

    Several processes measure together what can be shared; process 0 does the rest, and writes.

    Args:
      path: a checkpoint, or a work dir (its newest one).
      experiment: the checkpoint's own with changes laid over it; None: its own.
      metrics: names of `METRICS`, all by default.  One that is named but lacks what it needs is an
        error; among all, it is skipped and the reason kept.
      scores_file: where `scores.record` is written as JSON; what it needs must then be measured.

    Returns what eval.json holds: `checkpoint`, `step`, `split`, `metrics` (name -> rows, notes, curves),
    `skipped` (name -> why), `media`, `seconds` per metric, `networks` (that it was trained with), `experiment`; on other processes than the
    first, of the shared metrics alone.

    Raises:
      UserError: before any device work: no checkpoint, an unknown metric, or a store, source or
        tokenizer that is configured but missing or does not fit.
    """
    chosen = {name: choose(name, METRICS, "metric") for name in metrics or METRICS}
    folder = checkpoint.find(path)
    trained = checkpoint.load_experiment(folder)
    experiment = experiment or trained
    remedy = "leave them as they were trained"
    compat.check(trained, experiment, "evaluate", what=str(folder), remedy=remedy)
    resources = Resources(folder, experiment, Path(out))
    skipped = _skipped(chosen, resources)
    if skipped and (metrics or len(skipped) == len(chosen)):
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise UserError(f"cannot measure {reasons}")
    if scores_file:
        scores.check(chosen, skipped)
    resources.check()
    first = processes.first()
    todo = {n: m for n, m in chosen.items() if n not in skipped and (first or m.shared)}
    report = _measure(todo, resources)
    report["skipped"] = skipped
    if first:
        resources.out.mkdir(parents=True, exist_ok=True)
        _write(resources.out / RESULT_FILE, report)
        if scores_file:
            _write(scores_file, scores.record(report))
        print(render(report))
    return report


def _skipped(chosen: dict[str, Metric], resources: Resources) -> dict[str, str]:
    """Metric -> everything it lacks."""
    lacking = {
        name: [why for need in metric.needs if (why := resources.lacks(need))]
        for name, metric in chosen.items()
    }
    return {name: " and ".join(reasons) for name, reasons in lacking.items() if reasons}


def _measure(chosen: dict[str, Metric], resources: Resources) -> dict[str, Any]:
    results, seconds, media = {}, {}, []
    for name, metric in chosen.items():
        _LOG.info("measuring %s", name.replace("_", " "))
        begin = time.perf_counter()
        result = dataclasses.asdict(metric.measure(resources))
        seconds[name] = round(time.perf_counter() - begin, 3)
        media += result.pop("media")
        results[name] = result
    return {
        "format": FORMAT,
        "checkpoint": str(resources.path),
        "step": checkpoint.step_of(resources.path),
        "split": resources.experiment.eval.split,
        "metrics": results,
        "media": media,
        "seconds": seconds,
        "networks": resources.made_with,
        "experiment": to_dict(resources.experiment),
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(_jsonable(content), indent=2, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def _jsonable(value: Any) -> Any:
    """JSON knows no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {key: _jsonable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def render(report: dict[str, Any]) -> str:
    """The report as aligned text tables, skipped metrics said at the end."""
    blocks = [f"{report['checkpoint']}, step {report['step']:,}, split {report['split']}"]
    for name, result in report["metrics"].items():
        rows = METRICS[name].shown(result["rows"])
        blocks.append(tables.format_table(rows, name.replace("_", " ").upper()))
    blocks += [f"{name} skipped: {why}" for name, why in report["skipped"].items()]
    return "\n\n".join(blocks)
