"""The body of `poet generate`: a request with its files in, files of what was sampled out."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Sequence

import numpy as np

from poet import conditioning
from poet import spec as specs
from poet.conditioning import regions
from poet.runs import networks
from poet.sampling import upscaling
from poet.sampling.engine import Drawn
from poet.sampling.files import Given, read_given, read_prompts
from poet.sampling.generate import Generator, places
from poet.sampling.outputs import write_outputs
from poet.sampling.progress import Progress
from poet.sampling.requests import Request, check_all, check_prompts, default_conditioning_frames
from poet.sampling.superres import Upscaler
from poet.spec import UserError
from poet.streams import Derived
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)


def run(request: Request, resolved: Resolved) -> list[Path]:
    """Generates and writes what was asked for; returns the files.

    Args:
      request: anything with the attributes of `Request`.
      resolved: the checkpoint's experiment, `sample` overridden as the user wishes.

    Raises:
      UserError: before the model is loaded wherever the mistake can be seen by then.
    """
    if request.num < 1 or request.batch < 1:
        raise UserError(f"num = {request.num}, batch = {request.batch}: both must be positive")
    task, sample, clips = get_task(request.task), resolved.spec.sample, len(request.clip)
    prompts = [*request.prompt, *read_prompts(request.prompt_file)]
    check_prompts(prompts)
    conditioning_frames = request.conditioning_frames or default_conditioning_frames(resolved, task, clips)
    admitted = check_all(
        resolved, task, sample, prompts, conditioning_frames, clips=clips, ends=len(request.end),
        depths=len(request.depth), region=request.region, negative_prompt=request.negative_prompt, masks=len(request.mask),
    )
    given = read_given(resolved, task, admitted, request.clip, request.end, request.depth, request.mask)
    upscalers = upscaling.load(request.upscale, task, resolved.spec.clip)
    generator = Generator.from_checkpoint(request.checkpoint, resolved, request.task)
    sampled = generator.generate(
        request.task,
        prompts,
        negative_prompt=request.negative_prompt,
        conditioning_frames=conditioning_frames,
        region=request.region,
        count=request.num,
        batch=request.batch,
        on_progress=_Report(),
        **given._asdict(),
    )
    details = {
        "task": request.task,
        "checkpoint": str(request.checkpoint.checkpoint.path),
        "negative_prompt": request.negative_prompt,
        "clips": list(request.clip),
        "conditioning_frames": conditioning_frames,
        "ends": list(request.end),
        "region": admitted.chosen.region,
        "mask": list(request.mask),
        "depth": list(request.depth),
        "sample": specs.to_dict(sample),
        "networks": generator.networks.used,
        "upscale": [str(run.checkpoint.path) for run in request.upscale],
    }
    items = max(len(prompts), clips, 1)
    index = places(clips, items, request.num)
    if request.keep_given and task.derived and task.derived.region_is:
        sampled["video"] = _kept(task.derived, admitted.chosen, given, sampled["video"], index)
        sampled.codes = {}
    # What was sampled, beside the condition that it was sampled for.
    writers = {stream.medium: stream for stream in (*task.given, *task.predicted)}
    shown = {s.medium: given.media[s.medium][index] for s in task.given} | sampled
    labels = _labels(prompts, items * request.num)
    if upscalers:
        texts = labels if prompts else ()
        codes = _codes(sampled, upscalers[0], generator, resolved)
        larger = upscaling.chained(
            upscalers, shown["video"], texts, seed=sample.seed, batch=request.batch, codes_Nxtxhxw=codes
        )
        shown = {**shown, "video": larger}
    return write_outputs(shown, writers.values(), labels, request.out, resolved.spec.clip, details, sampled.findings)


def _codes(
    sampled: Drawn, upscaler: Upscaler, generator: Generator, resolved: Resolved
) -> np.ndarray | None:
    """Sampled codes [N, t, h, w], if the network upscales those of the same tokenizer; decoded frames lose by coding."""
    codes, ours = sampled.codes.get("video"), generator.networks.used.get(networks.VIDEO)
    if codes is None or ours != upscaler.video_tokenizer.fingerprint:
        return None
    return codes.reshape(-1, *resolved.format.video)


def _kept(
    derived: Derived, chosen: conditioning.Choice, given: Given, sampled: np.ndarray, index: np.ndarray
) -> np.ndarray:
    """Painted clips [N, T, H, W, 3] with the given pixels of clips `index` [N] where these are given."""
    clips = given.media[derived.medium]
    masks = [None] * len(clips) if given.masks is None else np.broadcast_to(given.masks, clips.shape[:-1])
    holes = [conditioning.hole_of(derived, dataclasses.replace(chosen, mask=m), clips.shape[1:4]) for m in masks]
    return np.stack([regions.keep(s, clips[i], holes[i]) for s, i in zip(sampled, index)])


def _labels(prompts: Sequence[str], count: int) -> list[str]:
    """The prompt of each of `count` samples; empty where there is none."""
    prompts = prompts or [""]
    return [prompts[row * len(prompts) // count] for row in range(count)]


class _Report:
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
