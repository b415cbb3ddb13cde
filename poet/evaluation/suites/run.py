"""A submission to a benchmark, scored: what `benchmark.json` holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet.evaluation.record import jsonable
from poet.evaluation.suites import cases, scoring, submissions, tasks, trivial
from poet.evaluation.suites.cases import Real, Suite
from poet.evaluation.suites.tasks import SuiteTask
from poet.runs import networks, versions

VIDEO, SOUND, PIECES = networks.VIDEO, networks.AUDIO, networks.PIECES
# What a task makes -> the network that codes it.
NETWORK = {tasks.VIDEO: VIDEO, tasks.SOUND: SOUND, tasks.TEXT: PIECES}
_LOG = logging.getLogger(__name__)

FORMAT = 1
PACKAGES = ("jax", "numpy", "av", "opencv-python-headless")


def evaluate(
    suite: Suite,
    data: str,
    reals: Sequence[Real],
    wanted: Sequence[SuiteTask],
    folder: Path,
    tokenizers: Mapping[str, Any],
    who: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores the tasks of a submission.

    Args:
      data: the data set of the benchmark, with its training split.
      reals: of the list.
      folder: of the submission.
      wanted: the tasks.
      tokenizers: `VIDEO` and `SOUND` of the model, and `PIECES`, which gives texts back, for the ceiling of its round
        trips; {} of other models.
      who: what the record says of the submission.

    Raises:
      UserError: a task has no clip of the list.
    """
    made = {}
    for task in wanted:
        if task.sound and any(real.sound is None for real in reals):
            _LOG.warning("%s is left out: the data set has no sound", task.name)
            continue
        made[task.name] = submissions.read(folder, task, reals, suite.clip)
    search = scoring.Search.of(reals, made, cases.others(suite, data, suite.split))
    _LOG.info("training clips: trivial submissions, and the nearest of each sample")
    simple = trivial.of(reals, search.passing(cases.others(suite, data, cases.TRAINING_SPLIT)))
    coded, found = _round_trips(reals, tokenizers), {}
    for task in [task for task in wanted if task.name in made]:
        _LOG.info("scoring %s", task.name)
        beside = scoring.candidates(task, reals, made[task.name], simple, coded[NETWORK[task.makes]])
        rows = scoring.measure(task, reals, beside, suite.clip.rate_hz)
        found[task.name] = {
            "condition": task.condition,
            "ranked_by": task.metrics[0],
            "rows": rows,
            "beaten": scoring.beaten(rows, task),
            "best_trivial": scoring.best_trivial(rows, task),
            "unreadable": dict(made[task.name].unreadable),
        }
    return jsonable(
        {
            "format": FORMAT,
            **scoring.protocol(suite, len(reals)),
            "submission": dict(who),
            "tasks": found,
            "leaks": search.found,
            "versions": versions.installed(PACKAGES),
        }
    )


def _round_trips(reals: Sequence[Real], tokenizers: Mapping[str, Any]) -> dict[str, Sequence[np.ndarray | str]]:
    """True clips, sounds and texts, encoded and decoded; () where there is no tokenizer."""
    true = {VIDEO: [real.video for real in reals], SOUND: [real.sound for real in reals]}
    found: dict[str, Sequence[np.ndarray | str]] = {
        medium: tuple(tokenizers[medium].decode(tokenizers[medium].encode(np.stack(some))))
        if medium in tokenizers and all(one is not None for one in some)
        else ()
        for medium, some in true.items()
    }
    return found | {PIECES: tokenizers[PIECES]([real.case.text for real in reals]) if PIECES in tokenizers else ()}
