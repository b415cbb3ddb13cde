"""A request that was found fit, with its files: from what is asked to what is shown, and how much work that is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from poet import conditioning
from poet.conditioning import regions
from poet.media import watermark
from poet.runs import networks
from poet.sampling import larger, superres, upscaling
from poet.sampling.base import block_of, places
from poet.sampling.engine import Sampled
from poet.sampling.files import Given, read_given, read_prompts
from poet.sampling.generate import Generator
from poet.sampling.plans import Plan
from poet.sampling.progress import Progress
from poet.sampling.requests import (
    Admitted,
    Request,
    check_all,
    check_formats,
    check_prompts,
    default_conditioning_frames,
    make_plan,
)
from poet.sampling.superres import Upscaler
from poet.spec import SampleSpec
from poet.streams import Stream
from poet.tasks.registry import Task, get_task
from poet.tasks.resolved import Resolved


class Work(NamedTuple):
    """The model calls of a job.

    prefilled: positions that are read at once.  steps: how often it runs then, in each of
    `batches` batches of `rows` rows.
    """

    prefilled: int
    steps: int
    batches: int
    rows: int

    def __str__(self) -> str:
        batches = f"{self.batches} batches" if self.batches > 1 else "one batch"
        return f"{self.steps} model steps after {self.prefilled} positions, in {batches} of {self.rows} rows"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A request that can be sampled.

    Attributes:
      prompts: those of the request and of its file, as they are given.
      negative: what guidance steers away from.
      conditioning_frames: the request's, or the default.
      given: what its files hold; None until `read`.
    """

    request: Request
    resolved: Resolved
    sample: SampleSpec
    prompts: Sequence[str]
    negative: str
    conditioning_frames: int
    admitted: Admitted
    given: Given | None = None

    @functools.cached_property
    def task(self) -> Task:
        return get_task(self.request.task)

    @property
    def texts(self) -> list[str]:
        """The prompts as the model is given them, with the texts added to each."""
        return [self.resolved.spec.prompt.complete(prompt) for prompt in self.prompts]

    @property
    def items(self) -> int:
        """Prompts or clips, each of which is sampled `Request.num` times."""
        return max(len(self.prompts), len(self.request.clip), 1)

    @property
    def count(self) -> int:
        return self.items * self.request.num

    @property
    def labels(self) -> list[str]:
        """The prompt of each sample; '' where there is none."""
        return [self.of(self.prompts, row) for row in range(self.count)]

    @property
    def streams(self) -> list[Stream]:
        """The files to write: samples with their conditions."""
        return list({stream.medium: stream for stream in (*self.task.conditions, *self.task.predicted)}.values())

    @property
    def originals(self) -> list[str]:
        """For each sample the file whose frames come back with another sound; '' where pictures are sampled."""
        shown = any(stream.shows and not self.task.derived for stream in self.task.conditions)
        painted = any(stream.shows for stream in self.task.predicted)
        return [self.of(self.request.clip if shown and not painted else (), row) for row in range(self.count)]

    @property
    def keeps_given(self) -> bool:
        """Whether what is given of its pictures comes back bit by bit."""
        return bool(self.request.keep_original and self.task.derived and self.task.derived.region_is)

    @property
    def unmarked(self) -> str:
        """Why its pictures shall carry no watermark; '' where they shall."""
        if self.sample.unmarked:
            return self.sample.unmarked
        if not any(stream.shows for stream in self.task.predicted):
            return watermark.NO_PICTURE
        return watermark.GIVEN if self.keeps_given and not self.request.upscale else ""

    def of(self, things: Sequence[str], row: int) -> str:
        """What a sample takes of a list; '' of an empty one."""
        return things[row * len(things) // self.count] if things else ""

    @property
    def plan(self) -> Plan:
        return make_plan(self.resolved, self.task, self.sample, self.admitted.latents)

    @property
    def work(self) -> Work:
        plan, block = self.plan, block_of(self.sample, self.resolved.spec.model.dtype)
        together = min(self.request.batch, self.count, block * self.sample.devices or self.request.batch)
        rows = (block or together) * plan.fan
        return Work(plan.prefilled, plan.model_steps, -(-self.count // together), rows)


def admit(request: Request, resolved: Resolved, sample: SampleSpec | None = None) -> Job:
    """Checks all that can be checked before a clip is read.

    Args:
      resolved: the checkpoint's experiment.
      sample: replaces its sampling settings.

    Raises:
      UserError: says what is allowed.
    """
    task, sample, clips = get_task(request.task), sample or resolved.spec.sample, len(request.clip)
    prompts = [*request.prompt, *read_prompts(request.prompt_file)]
    check_prompts(prompts)
    negative = resolved.spec.prompt.negative_for(task.text, request.negative_prompt)
    check_formats(task, request.format, resolved.spec.clip)
    conditioning_frames = request.conditioning_frames or default_conditioning_frames(resolved, task, clips)
    admitted = check_all(
        resolved,
        task,
        sample,
        prompts,
        conditioning_frames,
        clips=clips,
        ends=len(request.end),
        depths=len(request.depth),
        region=request.region,
        negative_prompt=negative,
        masks=len(request.mask),
    )
    return Job(
        request=request,
        resolved=resolved,
        sample=sample,
        prompts=prompts,
        negative=negative,
        conditioning_frames=conditioning_frames,
        admitted=admitted,
    )


def read(job: Job) -> Job:
    """The job with what its files hold; UserError for one that does not hold what the task takes."""
    request = job.request
    given = read_given(job.resolved, job.task, job.admitted, request.clip, request.end, request.depth, request.mask)
    return dataclasses.replace(job, given=given)


def upscalers(job: Job) -> list[Upscaler]:
    """The networks that make its pictures larger; UserError for those that cannot."""
    return upscaling.load([larger.find(path) for path in job.request.upscale], job.task, job.resolved.spec.clip)


def sample(job: Job, generator: Generator, on_progress: Callable[[Progress], None] | None = None) -> Sampled:
    """The media of N samples, with those of their conditions.

    Args:
      job: with its files, see `read`.
    """
    asked, batch = asked_of(job), job.request.batch
    sampled = generator.generate(job.request.task, job.texts, batch=batch, on_progress=on_progress, **asked)
    return with_conditions(job, sampled)


def asked_of(job: Job) -> dict[str, Any]:
    """What `Generator.prepare` takes of a job beside its task and texts."""
    return {
        "negative_prompt": job.negative,
        "conditioning_frames": job.conditioning_frames,
        "region": job.request.region,
        "count": job.request.num,
        "sample": job.sample,
        **job.given._asdict(),
    }


def with_conditions(job: Job, sampled: Sampled) -> Sampled:
    """What was sampled, with the media of its conditions."""
    task, index = job.task, places(len(job.request.clip), job.items, job.request.num)
    if job.keeps_given:
        sampled["video"] = _kept(job, sampled["video"], index)
        sampled.codes = {}
    whole = Sampled({s.medium: job.given.media[s.medium][index] for s in task.conditions} | sampled)
    whole.findings, whole.codes = sampled.findings, sampled.codes
    return whole


def enlarge(job: Job, shown: Sampled, by: Sequence[Upscaler], generator: Generator) -> Sampled:
    """The result of `sample` with upscaled frames."""
    if not by:
        return shown
    texts = [job.of(job.texts, row) for row in range(job.count)] if job.prompts else ()
    shown["video"] = superres.chained(
        by,
        shown["video"],
        texts,
        seed=job.sample.seed,
        batch=job.request.batch,
        codes_Nxtxhxw=_codes(job, shown, by[0], generator),
    )
    return shown


def _codes(job: Job, shown: Sampled, upscaler: Upscaler, generator: Generator) -> np.ndarray | None:
    """Sampled codes [N, t, h, w], if the network upscales those of this tokenizer; decoded frames lose by coding."""
    codes, ours = shown.codes.get("video"), generator.networks.used.get(networks.VIDEO)
    if codes is None or ours != upscaler.video_tokenizer.fingerprint:
        return None
    return codes.reshape(-1, *job.resolved.format.video)


def _kept(job: Job, sampled: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Painted clips [N, T, H, W, 3] with the given pixels of clips `index` [N] where these are given."""
    derived, chosen, given = job.task.derived, job.admitted.chosen, job.given
    clips = given.media[derived.medium]
    masks = [None] * len(clips) if given.masks is None else np.broadcast_to(given.masks, clips.shape[:-1])
    holes = [conditioning.hole_of(derived, dataclasses.replace(chosen, mask=m), clips.shape[1:4]) for m in masks]
    return np.stack([regions.keep(s, clips[i], holes[i]) for s, i in zip(sampled, index)])
