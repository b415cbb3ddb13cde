"""`poet eval`: every table that what is given allows, as `eval.json` and as text."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poet.distributed import processes
from poet.evaluation import record, scores
from poet.evaluation.checkpoint_tables import TABLES, Source
from poet.evaluation.record import Table
from poet.evaluation.resources import Resources
from poet.runs.run import Run
from poet.spec import UserError, choose, compat, to_dict
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)

RESULT_FILE = "eval.json"


def evaluate(
    run: Run,
    resolved: Resolved | None,
    out: str | Path,
    metrics: Sequence[str] | None = None,
    scores_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint, writes OUT/eval.json and OUT/media, prints the tables.

    Several processes measure together what can be shared; process 0 does the rest, and writes.

    Args:
      run: its `checkpoint` is evaluated.
      resolved: the checkpoint's own settings with changes laid over them; None: its own.
      metrics: names of `TABLES`, all by default.  One that is named but lacks what it needs is an
        error; among all, it is skipped and the reason kept.
      scores_file: where `scores.record` is written as JSON; what it needs must then be measured.

    Returns what eval.json holds (`record.content`), with `checkpoint`, `step`, `split`, `seconds` per table,
    `networks` (that it was trained with), `experiment`; on other processes than the first, of the shared
    tables alone.

    Raises:
      UserError: before any device work: an unknown metric, or a store, source or
        tokenizer that is configured but missing or does not fit.
    """
    chosen = {name: choose(name, TABLES, "metric") for name in metrics or TABLES}
    trained = run.checkpoint.spec
    resolved = resolved or Resolved(trained)
    remedy = "leave them as they were trained"
    compat.check(trained, resolved.spec, "evaluate", what=str(run.checkpoint.path), remedy=remedy)
    resources = Resources(run, resolved, Path(out))
    skipped = _skipped(chosen, resources)
    if skipped and (metrics or len(skipped) == len(chosen)):
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise UserError(f"cannot measure {reasons}")
    if scores_file:
        scores.check(chosen, skipped)
    resources.check()
    first = processes.first()
    todo = {n: m for n, m in chosen.items() if n not in skipped and (first or m.shared)}
    report = _measure(todo, resources, skipped)
    if first:
        resources.out.mkdir(parents=True, exist_ok=True)
        record.write(resources.out / RESULT_FILE, report)
        if scores_file:
            record.write(scores_file, scores.record(report))
        print(render(report))
    return report


def _skipped(chosen: dict[str, Source], resources: Resources) -> dict[str, str]:
    """Table -> everything it lacks."""
    lacking = {
        name: [why for need in metric.needs if (why := resources.lacks(need))] for name, metric in chosen.items()
    }
    return {name: " and ".join(reasons) for name, reasons in lacking.items() if reasons}


def _measure(chosen: dict[str, Source], resources: Resources, skipped: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Table] = {}
    seconds = {}
    for name, source in chosen.items():
        _LOG.info("measuring %s", name.replace("_", " "))
        begin = time.perf_counter()
        found[name] = source.measure(resources)
        seconds[name] = round(time.perf_counter() - begin, 3)
    subject = {
        "checkpoint": str(resources.run.checkpoint.path),
        "step": resources.run.checkpoint.step,
        "split": resources.experiment.eval.split,
    }
    more = {"networks": resources.made_with, "experiment": to_dict(resources.experiment)}
    return record.content(subject, found, skipped, seconds=seconds, **more)


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    return record.text(report, f"{report['checkpoint']}, step {report['step']:,}, split {report['split']}")
