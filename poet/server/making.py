"""What the worker makes of a checkpoint: samples of several jobs in one batch, and films one at a time."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from poet.runs import compile_cache
from poet.sampling import jobs, larger, record, upscaling
from poet.sampling.engine import Engine
from poet.sampling.films.studio import Studio, with_files
from poet.sampling.generate import Generator
from poet.sampling.outputs import write_outputs
from poet.sampling.progress import OnStep, Progress, Sampling
from poet.sampling.requests import Request
from poet.sampling.superres import Upscaler
from poet.sampling.together import Step, Together
from poet.server.backend import Cancelled, News, Session, Watch, Work, made
from poet.server.checkpoint import CheckpointBackend
from poet.server.exported import ExportBackend
from poet.serving.runtime import Runtime
from poet.spec import SampleSpec, UserError, from_dict
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)


class CheckpointMaker:
    """`poet.server.backend.Maker` of a checkpoint, with the model in memory."""

    def __init__(self, backend: CheckpointBackend):
        compile_cache.use()
        self.backend = backend
        self.generator = Generator.from_checkpoint(backend.run, backend.resolved)
        self.upscalers = [one for run in backend.upscalers for one in larger.load(run)]

    def session(self, batch_key: str, watch: Watch) -> Session:
        """With a batch key: one batch of samples; without one: a film, or a clip that is made larger."""
        return SamplesSession(self, watch) if batch_key else OneSession(self, watch)


class ExportMaker(CheckpointMaker):
    """`poet.server.backend.Maker` of an export, with its programs loaded."""

    def __init__(self, backend: ExportBackend):
        compile_cache.use()
        self.backend = backend
        self.generator = Runtime.load(backend.run.folder)
        self.upscalers = self.generator.upscalers


class _Ready(NamedTuple):
    work: Work
    job: jobs.Job
    engine: Engine
    sampling: Sampling
    inputs: Mapping[str, str]


class SamplesSession:
    """Jobs that share a batch."""

    def __init__(self, maker: CheckpointMaker, watch: Watch):
        self._maker, self._watch, self._ready = maker, watch, dict[str, _Ready]()
        self._batch: Together | None = None

    @property
    def names(self) -> list[str]:
        """Ids of the jobs in it."""
        return [*self._ready]

    def add(self, work: Work) -> None:
        """Reads the job's files and takes it in.  UserError for files that do not hold what it takes."""
        job = jobs.read(job_of(work, self._maker.backend.resolved))
        inputs = record.hashes(job.request.files())
        prepared = self._maker.generator.prepare(job.request.task, job.texts, **jobs.asked_of(job))
        if self._batch is None:
            self._batch = Together(prepared.engine, job.sample)
        rows = prepared.engine.rows(prepared.inputs, prepared.count)
        sampling = self._batch.add(work.id, rows, job.sample.seed)
        self._ready[work.id] = _Ready(work, job, prepared.engine, sampling, inputs)

    def drop(self, job_id: str) -> None:
        """Takes a job out at once."""
        self._ready.pop(job_id, None)
        if self._batch is not None:
            self._batch.drop(job_id)

    def step(self) -> list[News]:
        """Decodes a latent frame."""
        steps = self._batch.step() if self._batch is not None else []
        return [news for step in steps for news in self._news(step)]

    def _news(self, step: Step) -> Iterator[News]:
        ready, progress = self._ready[step.name], step.progress
        frames, latents, larger = first_frames(ready.sampling, progress), progress.latents[1], self._larger(ready)
        left_s, part = None if larger else progress.left_s, 1 / (1 + len(larger))
        news = News(id=step.name, fraction=part * progress.done, latents=latents, left_s=left_s, frames=frames)
        if not step.done:
            yield news
        else:
            del self._ready[step.name]
            yield from self._finished(ready, news)

    def _larger(self, ready: _Ready) -> Sequence[Upscaler]:
        """The networks that make its pictures larger."""
        return self._maker.upscalers if ready.job.request.upscale else ()

    def _finished(self, ready: _Ready, last: News) -> Iterator[News]:
        """What it has come to; nothing of a job that is cancelled meanwhile."""
        larger = self._larger(ready)

        def report(part: float) -> None:
            self._watch(dataclasses.replace(last, fraction=last.fraction + (1 - last.fraction) * part, frames=None))

        report_parts(larger, report)
        try:
            self._watch(last)
            sampled = ready.engine.detokenize(ready.sampling.tokens)
            result = write(ready.work, ready.job, sampled, larger, self._maker, ready.inputs)
            yield News(id=ready.work.id, fraction=1.0, result=result)
        except Cancelled:
            return
        except Exception as error:
            yield News(id=ready.work.id, error=error)


class OneSession:
    """One film or larger clip, made in one step that reports to its watch."""

    def __init__(self, maker: CheckpointMaker, watch: Watch):
        self._maker, self._watch, self._work = maker, watch, dict[str, Work]()

    @property
    def names(self) -> list[str]:
        """Its id."""
        return [*self._work]

    def add(self, work: Work) -> None:
        """Takes the job in.  UserError for one that the store has of another model."""
        if work.task not in self._maker.backend.requests:
            raise UserError(f"this model does not make {work.task!r}: the job was accepted for another one")
        self._work[work.id] = work

    def drop(self, job_id: str) -> None:
        """Forgets the job."""
        self._work.pop(job_id, None)

    def step(self) -> list[News]:
        """Makes the job; [] where there is none.  Raises Cancelled where the watch does."""
        return [self._make(work) for work in [*self._work.values()]]

    def _make(self, work: Work) -> News:
        self._maker.generator.on_step = self._reporter(work)
        try:
            if "upscale" in work.request:
                report = lambda part: self._watch(News(id=work.id, fraction=min(part, 1.0)))
                result = enlarged(work, self._maker, report)
            else:
                result = film(work, self._maker)
            return News(id=work.id, fraction=1.0, result=result)
        except Cancelled:
            raise
        except Exception as error:
            return News(id=work.id, error=error)
        finally:
            self._maker.generator.on_step = None
            self._work.clear()

    def _reporter(self, work: Work) -> OnStep:
        """Reports each step to the watch, as a part of all clips of the job."""
        clips, before = work.request.get("clips", 1), 0

        def report(sampling: Sampling, progress: Progress) -> None:
            nonlocal before
            frames = first_frames(sampling, progress)
            fraction = min((before + progress.done) / clips, 1.0)
            before += progress.done == 1
            self._watch(News(id=work.id, fraction=fraction, latents=progress.latents[1], frames=frames))

        return report


def enlarged(work: Work, maker: CheckpointMaker, report: Callable[[float], None]) -> dict[str, Any]:
    """Makes a clip larger."""
    request = work.request
    report_parts(maker.upscalers, report)
    clip, unmarked = str(work.folder / request["upscale"]), maker.backend.resolved.spec.sample.unmarked
    names = [str(run.checkpoint.path) for run in maker.backend.upscalers]
    fixed = {"prompts": request["prompt"], "seed": request["seed"], "names": names, "unmarked": unmarked}
    files = [path for path in upscaling.run([clip], maker.upscalers, work.place, **fixed) if path.suffix != ".json"]
    return made(files, seconds=request["seconds"])


def report_parts(upscalers: Sequence[Upscaler], report: Callable[[float], None]) -> None:
    """Has networks that work one after the other report which part of it all is done."""
    for number, upscaler in enumerate(upscalers):
        upscaler.on_part = lambda part, number=number: report((number + part) / len(upscalers))


def film(work: Work, maker: CheckpointMaker) -> dict[str, Any]:
    """Makes a film, or goes on with the one that an earlier try has begun."""
    backend, request = maker.backend, work.request
    sample = from_dict(SampleSpec, request["sample"])
    resolved = Resolved(backend.resolved.spec.replace(sample=sample))
    studio = Studio(backend.run, resolved, backend.settings, request["ways"], maker.generator)
    wanted = with_files(request["request"], lambda file: str(work.folder / file))
    files = studio.make(request["film"], wanted, work.place)
    return made(flattened(files, work.place), seconds=request["seconds"], weights=backend.run.checkpoint.fingerprint)


def flattened(files: list[Path], place: Path) -> list[Path]:
    """The files of a film that a client may have, below one folder: the film first."""
    found = []
    for path in files:
        if path.suffix in (".mp4", ".png", ".wav"):
            flat = place / "_".join(path.relative_to(place).parts)
            if flat != path:
                flat.unlink(missing_ok=True)
                flat.hardlink_to(path)
            found.append(flat)
    # Of a chain the last job's come first: they are its result.
    return sorted(reversed(found), key=lambda path: (path.suffix != ".mp4", path.suffix != ".wav"))


class ServedJob(jobs.Job):
    """A job whose results are media that a browser plays: kept uploads are not, so their frames are coded anew."""

    originals = property(lambda self: [""] * self.count)


def job_of(work: Work, resolved: Resolved) -> jobs.Job:
    """The job of a request for samples; its files are those of the job's folder."""
    request = from_dict(Request, work.request["request"]).below(work.folder)
    job = jobs.admit(request, resolved, from_dict(SampleSpec, work.request["sample"]))
    return ServedJob(**{field.name: getattr(job, field.name) for field in dataclasses.fields(job)})


def write(
    work: Work,
    job: jobs.Job,
    sampled: Any,
    larger: Sequence[Upscaler],
    maker: CheckpointMaker,
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """Writes the files of sampled media, which networks make larger, and their record; the result of the job."""
    backend = maker.backend
    media = jobs.enlarge(job, jobs.with_conditions(job, sampled), larger, maker.generator)
    details = record.describe(job, backend.run, maker.generator.networks.used, inputs, backend.settings)
    files = write_outputs(media, job, work.place, details)
    return made(
        [path for path in files if path.name != record.NAME],
        seconds=work.request["seconds"],
        weights=details["checkpoint"]["fingerprint"],
        watermark=details.get("watermark", ""),
        texts=[str(text) for text in sampled.texts or ()],
    )


def first_frames(sampling: Sampling, progress: Progress) -> Callable[[], np.ndarray] | None:
    """Decodes uint8 [F, H, W, 3], what a step has added to the pictures of its first sample; None for nothing."""
    low, high = progress.latents
    return (lambda: sampling.frames(progress._replace(rows=progress.rows[:1]))[0]) if low < high else None
