"""The body of `poet generate`: a request with its files in, files of what was sampled out."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from poet import spec as specs
from poet.runs.run import Run
from poet.sampling import estimate, jobs, record
from poet.sampling.generate import Generator
from poet.sampling.jobs import Job
from poet.sampling.outputs import Unfinished, write_outputs
from poet.sampling.progress import Progress
from poet.sampling.requests import Request
from poet.spec import SampleSpec
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)


def run(
    request: Request, resolved: Resolved, checkpoint: Run, out: str | Path, settings: Sequence[str] = ()
) -> list[Path]:
    """Generates and writes what was asked for; returns the files.

    Args:
      resolved: the checkpoint's experiment with `settings`.
      out: the folder to write to.
      settings: bindings that the experiment in the checkpoint was overridden with.

    Raises:
      UserError: before the model is loaded wherever the mistake can be seen by then.
      Unfinished: writing failed; the samples before are there.
    """
    return produce(jobs.admit(request, resolved), loader(checkpoint, resolved, request.task), checkpoint, out, settings)


def loader(checkpoint: Run, resolved: Resolved, task: str) -> Callable[[], Generator]:
    """Loads the checkpoint when it is first called."""
    return functools.cache(lambda: Generator.from_checkpoint(checkpoint, resolved, task))


def produce(
    job: Job, generator: Callable[[], Generator], checkpoint: Run, out: str | Path, settings: Sequence[str] = ()
) -> list[Path]:
    """Reads what a job starts from, samples it and writes the files; see `run`."""
    job, request = jobs.read(job), job.request
    inputs = record.hashes(request.files())
    upscalers, model = jobs.upscalers(job), generator()
    sampled = estimate.measured(job, lambda: jobs.sample(job, model, Report()))
    shown = jobs.enlarge(job, sampled, upscalers, model)
    details = record.describe(job, checkpoint, model.networks.used, inputs, settings)
    return write_outputs(shown, job, out, details)


class Report:
    """Says every few seconds how far it is."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.left_s is None or now - self._last < self.EVERY_S or progress.done == 1:
            return
        self._last = now
        _LOG.info("sampled %.0f %%, about %.0f s left", 100 * progress.done, progress.left_s)


def finished(produced: Callable[[], list[Path]]) -> tuple[list[Path], Unfinished | None]:
    """The files that were written, and why they are not all."""
    try:
        return produced(), None
    except Unfinished as failure:
        return failure.files, failure


def as_recorded(resolved: Resolved, replay: record.Replay) -> Resolved:
    """The experiment with the sampling settings of a record."""
    sample = specs.from_dict(SampleSpec, replay.sample)
    return Resolved(resolved.spec.replace(sample=sample))


def preview(job: Job) -> str:
    """A job in one line."""
    request, seconds = job.request, estimate.seconds(job)
    prompt = f" of {job.labels[0][:40]!r}" + " and others" * (len(job.prompts) > 1) if job.prompts else ""
    files = ", ".join(request.format or dict.fromkeys(name for stream in job.streams for name in stream.formats[:1]))
    time = "unknown, as no such program has run here" if seconds is None else f"about {seconds:.0f} s"
    return (
        f"{request.task}: {job.count} sample{'s' * (job.count > 1)}{prompt}, seed {job.sample.seed}, as {files}; "
        f"{job.work}; time: {time}"
    )
