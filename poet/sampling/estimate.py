"""How long a job may take, by what a model step of the same program took before on this machine.

The seconds are kept beside the compiled programs (`poet.runs.compile_cache`), without the time that compiling took.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poet import media
from poet.runs import compile_cache
from poet.sampling.jobs import Job

_LOG = logging.getLogger(__name__)
_FILE = "seconds_per_step.json"


def measured(job: Job, run: Callable[[], Any]) -> Any:
    """The result of `run`, which samples the job; the time of a step is stored."""
    with compile_cache.counted() as compiled:
        begun = time.monotonic()
        found = run()
        seconds = time.monotonic() - begun - compiled.seconds
    _keep(job, max(seconds, 0) / max(job.work.steps * job.work.batches, 1))
    return found


def seconds(job: Job) -> float | None:
    """Estimated seconds of a job's model steps; None if no such program has run here."""
    step = _kept().get(_key(job))
    return None if step is None else step * job.work.steps * job.work.batches


def _key(job: Job) -> str:
    described = repr((job.plan, job.resolved.spec.model, job.sample.weights, job.work.rows, _devices()))
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _devices() -> str:
    return os.environ.get("JAX_PLATFORMS", "") + os.environ.get("CUDA_VISIBLE_DEVICES", "")


def _place() -> Path | None:
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(folder, _FILE) if folder else None


def _kept() -> dict[str, float]:
    place = _place()
    try:
        found = json.loads(place.read_text()) if place else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(job: Job, step_s: float) -> None:
    place = _place()
    if place is None:
        return
    try:
        media.write_text(place, json.dumps({**_kept(), _key(job): step_s}))
    except OSError as error:
        _LOG.debug("not kept: %s", error)
