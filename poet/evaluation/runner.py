"""`poet eval`: every table that what is given allows, of one checkpoint or of several side by side."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from poet.distributed import processes
from poet.evaluation import comparison, parts, record, scores
from poet.evaluation.checkpoint_tables import TABLES, Source
from poet.evaluation.parts import Part, Parts
from poet.evaluation.report import evaluation_page, headlines
from poet.evaluation.report.artifacts import Evaluation
from poet.evaluation.resources import Resources
from poet.media import write_text
from poet.runs import versions
from poet.runs.run import Run
from poet.spec import UserError, choose, compat, to_dict
from poet.tasks.resolved import Resolved
from poet.training.reporting import write_board

_LOG = logging.getLogger(__name__)

RESULT_FILE, CSV_FILE, PAGE_FILE, COMPARISON_FILE = "eval.json", "eval.csv", "report.html", "comparison.json"
# A folder of each run below it: checkpoints of one run are points of its curves.
BOARD = "tensorboard"
# Finished tables, below the output.
PARTS = "parts"
PACKAGES = ("jax", "jaxlib", "numpy", "av", "opencv-python-headless")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint to evaluate.

    Attributes:
      label: its name beside others; also the name of its folder where there are several.
      resolved: the checkpoint's own settings with changes laid over them.
    """

    label: str
    run: Run
    resolved: Resolved

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Path and fingerprint of the checkpoint."""
        checkpoint = self.run.checkpoint
        return {"path": str(checkpoint.path), "fingerprint": checkpoint.fingerprint}


def subjects(opened: Sequence[tuple[Run, Resolved]]) -> list[Subject]:
    """Checkpoints with labels: the name of the work dir and the step, or of the folder of released weights.

    Raises:
      UserError: a checkpoint is there twice.
    """
    found: dict[str, Subject] = {}
    known: dict[str, str] = {}
    for run, resolved in opened:
        path, fingerprint = run.checkpoint.path.absolute(), run.checkpoint.fingerprint
        if fingerprint in known:
            raise UserError(f"{path} is the checkpoint {known[fingerprint]}: name each checkpoint once")
        known[fingerprint] = str(path)
        stem = path.name if run.checkpoint.released else f"{path.parents[1].name}-{run.checkpoint.step}"
        label = next(name for n in range(len(opened)) if (name := f"{stem}-{n + 1}" if n else stem) not in found)
        found[label] = Subject(label=label, run=run, resolved=resolved)
    return list(found.values())


def check_parts(folder: Path, chosen: Sequence[Subject]) -> None:
    """Raises UserError for a folder of finished tables of other checkpoints alone: it is another evaluation's."""
    there, wanted = Parts(folder).checkpoints(), {subject.identity["fingerprint"] for subject in chosen}
    if there and not wanted & there.keys():
        raise UserError(
            f"{folder} holds tables of another checkpoint ({', '.join(sorted(there.values()))}): give another "
            "--out, or --overwrite to replace them"
        )


# ---------------------------------------------------------------------------------- one checkpoint


def evaluate(
    run: Run,
    resolved: Resolved | None,
    out: str | Path,
    metrics: Sequence[str] | None = None,
    scores_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint, writes OUT/eval.json, eval.csv, report.html, tensorboard, media, and prints the tables.

    Several processes measure together what can be shared; process 0 does the rest, and writes.

    Args:
      run: its `checkpoint` is evaluated.
      resolved: the checkpoint's own settings with changes laid over them; None: its own.
      metrics: names of `TABLES`, all by default.  One that is named but lacks what it needs is an
        error; among all, it is skipped and the reason kept.
      scores_file: where `scores.record` is written as JSON; what it needs must then be measured.

    Returns what eval.json holds (`record.joined`), with `checkpoint`, `fingerprint`, `step`, `split`, `seconds` per
    table, `data` (fingerprints), `networks` (that it was trained with), `versions`, `experiment`; on other processes
    than the first, of the shared tables alone.

    Raises:
      UserError: before any device work: an unknown metric, or a store, source or
        tokenizer that is configured but missing or does not fit.
    """
    subject = Subject(label="", run=run, resolved=resolved or Resolved(run.checkpoint.spec))
    return evaluate_all([subject], out, Path(out) / PARTS, metrics, scores_file)[subject.label]


def evaluate_all(
    chosen: Sequence[Subject],
    out: str | Path,
    kept: Path,
    metrics: Sequence[str] | None = None,
    scores_file: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """`evaluate` of each checkpoint, and of several OUT/comparison.json; each of them then has OUT/LABEL.

    Args:
      kept: where finished tables are kept, and read from.
    """
    alone, plans = len(chosen) == 1, []
    for subject in chosen:  # All of them are checked before the first is measured.
        folder = Path(out) if alone else Path(out) / subject.label
        plans.append(_plan(subject, folder, metrics, scores_file))
    made = [_measured(plan, Parts(kept)) for plan in plans]
    reports = {plan.subject.label: _report(plan, found) for plan, found in zip(plans, made)}
    if processes.first():
        Parts(kept).keep_only(key for plan in plans for key in plan.keys.values())
        _write(Path(out), plans, made, reports)
        if scores_file:
            record.write(scores_file, scores.record(reports[chosen[0].label]))
    return reports


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured of a checkpoint.

    Attributes:
      todo: table -> its source, of those that this process takes part in.
      skipped: table -> why it is not measured.
    """

    subject: Subject
    resources: Resources
    todo: Mapping[str, Source]
    skipped: Mapping[str, str]

    @functools.cached_property
    def keys(self) -> dict[str, str]:
        """Table -> the key of its part."""
        r = self.resources
        depends = {
            "checkpoint": self.subject.identity["fingerprint"],
            "experiment": to_dict(r.experiment),
            "data": r.data,
            "code": versions.of_code(),
            "versions": versions.installed(PACKAGES),
        }
        return {name: parts.key_of(depends | {"table": name}) for name in self.todo}


def _plan(subject: Subject, folder: Path, metrics: Sequence[str] | None, scores_file: Path | None) -> Plan:
    wanted = {name: choose(name, TABLES, "metric") for name in metrics or TABLES}
    checkpoint, resolved = subject.run.checkpoint, subject.resolved
    remedy = "leave them as they were trained"
    compat.check(checkpoint.spec, resolved.spec, "evaluate", what=str(checkpoint.path), remedy=remedy)
    resources = Resources(subject.run, resolved, folder)
    skipped = _skipped(wanted, resources)
    if skipped and (metrics or len(skipped) == len(wanted)):
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise UserError(f"cannot measure {reasons}")
    if scores_file:
        scores.check(wanted, skipped)
    resources.check()
    first = processes.first()
    todo = {n: m for n, m in wanted.items() if n not in skipped and (first or m.shared)}
    return Plan(subject=subject, resources=resources, todo=todo, skipped=skipped)


def _skipped(chosen: Mapping[str, Source], resources: Resources) -> dict[str, str]:
    """Table -> everything it lacks."""
    lacking = {
        name: [why for need in metric.needs if (why := resources.lacks(need))] for name, metric in chosen.items()
    }
    return {name: " and ".join(reasons) for name, reasons in lacking.items() if reasons}


def _measured(plan: Plan, store: Parts) -> dict[str, Part]:
    """The tables of a checkpoint; process 0 reads those that are kept, and the others leave them out."""
    found: dict[str, Part] = {}

    def read() -> list[str]:
        out = plan.resources.out
        found.update({name: part for name, key in plan.keys.items() if (part := store.read(key, out))})
        return list(found)

    ready = processes.from_first(read)
    if ready:
        _LOG.info("measured before: %s", ", ".join(ready).replace("_", " "))
    missing = [name for name in plan.todo if name not in ready]
    found |= {name: _measure(plan, name, store) for name in missing}
    return {name: found[name] for name in plan.todo if name in found}


def _measure(plan: Plan, name: str, store: Parts) -> Part:
    of = f" of {plan.subject.label}" if plan.subject.label else ""
    _LOG.info("measuring %s%s", name.replace("_", " "), of)
    begin = time.perf_counter()
    table = plan.todo[name].measure(plan.resources)
    part = Part.of(table, round(time.perf_counter() - begin, 3))
    if processes.first():
        store.write(plan.keys[name], part, plan.subject.identity, plan.resources.out)
    return part


def _report(plan: Plan, found: Mapping[str, Part]) -> dict[str, Any]:
    r = plan.resources
    subject = {
        "checkpoint": plan.subject.identity["path"],
        "fingerprint": plan.subject.identity["fingerprint"],
        "step": r.run.checkpoint.step,
        "split": r.experiment.eval.split,
    }
    return record.joined(
        subject,
        {name: part.table for name, part in found.items()},
        [one for part in found.values() for one in part.media],
        plan.skipped,
        seconds={name: part.seconds for name, part in found.items()},
        data=r.data,
        networks=r.made_with,
        versions=versions.installed(PACKAGES),
        experiment=to_dict(r.experiment),
    )


# ------------------------------------------------------------------------------------------ files


def _write(out: Path, plans: Sequence[Plan], made: Sequence[Mapping[str, Part]], reports: Mapping[str, Any]) -> None:
    """Writes what process 0 writes, and prints it."""
    for plan, report in zip(plans, reports.values()):
        plan.resources.out.mkdir(parents=True, exist_ok=True)
        record.write(plan.resources.out / RESULT_FILE, report)
        print(render(report), end="\n\n")
    found = {label or "checkpoint": tables for label, tables in zip(reports, made)}
    rows = comparison.rows(found)
    write_text(out / CSV_FILE, comparison.csv_of(rows, dict(zip(found, map(_depends, reports.values())))))
    if len(plans) > 1:
        record.write(out / COMPARISON_FILE, {"format": comparison.FORMAT, "checkpoints": list(found), "numbers": rows})
    evaluations = {
        label: Evaluation(plan.resources.out, report) for label, plan, report in zip(found, plans, reports.values())
    }
    write_text(out / PAGE_FILE, evaluation_page.document(evaluations, rows))
    for name, steps in boards(plans, found, rows).items():
        write_board(out / BOARD / name, steps)
    if len(plans) > 1:
        print(comparison.text(rows), end="\n\n")
    for label, evaluation in evaluations.items():
        print(headlines.text(evaluation, label if len(plans) > 1 else ""))


def boards(
    plans: Sequence[Plan], labels: Iterable[str], rows: Sequence[Mapping[str, Any]]
) -> dict[str, dict[int, dict[str, float]]]:
    """Name of a run -> step -> `table/row/metric` -> value.

    A run is a work dir, or a folder of released weights; two of one name are told apart by their labels.
    """
    runs: dict[str, Path] = {}
    found: dict[str, dict[int, dict[str, float]]] = {}
    for plan, label in zip(plans, labels):
        run, checkpoint = plan.subject.run, plan.subject.run.checkpoint
        folder = checkpoint.path if checkpoint.released else run.folder
        name = folder.absolute().name
        if runs.setdefault(name, folder.absolute()) != folder.absolute():
            name = label
        scalars = {
            f"{row['table']}/{row['row'].replace(' · ', ' ')}/{row['metric']}": row["value"]
            for row in rows
            if row["checkpoint"] == label and row["value"] is not None
        }
        found.setdefault(name, {})[checkpoint.step] = scalars
    return found


def _depends(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of a checkpoint depend on, flat."""
    found = {name: report[name] for name in ("checkpoint", "fingerprint", "step", "split")}
    flat = {name: json.dumps(report[name], sort_keys=True) for name in ("data", "networks", "versions")}
    return {"path": found.pop("checkpoint"), **found, **flat}


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    return record.text(report, f"{report['checkpoint']}, step {report['step']:,}, split {report['split']}")
