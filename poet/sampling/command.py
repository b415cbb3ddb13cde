"""The body of `poet generate`: a request with its files in, files of what was sampled out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Sequence

import numpy as np

from poet import spec as specs
from poet.sampling.generate import Drawn, Generator, places
from poet.sampling.outputs import write_outputs
from poet.sampling.requests import (
    Given,
    Request,
    check_all,
    check_prompts,
    default_conditioning_frames,
    read_given,
    read_prompts,
)
from poet.spec import Experiment, UserError
from poet.tasks.registry import Task, get_task

_LOG = logging.getLogger(__name__)


def run(request: Request, experiment: Experiment) -> list[Path]:
    """Generates and writes what was asked for; returns the files.

    Args:
      request: anything with the attributes of `Request`.
      experiment: the checkpoint's, `sample` overridden as the user wishes.

    Raises:
      UserError: before the model is loaded wherever the mistake can be seen by then.
    """
    if request.num < 1 or request.batch < 1:
        raise UserError(f"num = {request.num}, batch = {request.batch}: both must be positive")
    task = get_task(request.task)
    prompts = [*request.prompt, *read_prompts(request.prompt_file)]
    check_prompts(prompts)
    conditioning_frames = request.conditioning_frames or default_conditioning_frames(
        experiment, task, len(request.clip)
    )
    chosen = check_all(
        experiment, request.task, prompts, conditioning_frames, clips=len(request.clip), ends=len(request.end),
        depths=len(request.depth), region=request.region, negative_prompt=request.negative_prompt,
    )
    given = read_given(experiment, task, request.clip, conditioning_frames, request.end, request.depth)
    generator = Generator.from_checkpoint(request.checkpoint, experiment, request.task)
    _say_batch(experiment, request.batch)
    sampled = generator.generate(
        request.task,
        prompts,
        negative_prompt=request.negative_prompt,
        clips=given.videos,
        sounds=given.sounds,
        depths=given.depths,
        ends=given.ends,
        region=request.region,
        conditioning_frames=conditioning_frames,
        count=request.num,
        batch=request.batch,
    )
    details = {
        "task": request.task,
        "checkpoint": str(request.checkpoint.checkpoint.path),
        "negative_prompt": request.negative_prompt,
        "clips": list(request.clip),
        "conditioning_frames": conditioning_frames,
        "ends": list(request.end),
        "region": chosen.region,
        "depth": list(request.depth),
        "sample": specs.to_dict(experiment.sample),
        "networks": generator.networks_used,
    }
    items = max(len(prompts), len(given), 1)
    shown = _with_condition(task, sampled, given, places(len(given), items, request.num))
    labels = _labels(prompts, items * request.num)
    return write_outputs(shown, labels, request.out, experiment.clip, details)


def _say_batch(experiment: Experiment, batch: int) -> None:
    if experiment.model.dtype == "bfloat16":
        _LOG.info(
            "the model runs in bfloat16: these samples come back with the same --num, prompts and "
            "--batch=%d; other batches round otherwise", batch,
        )


def _with_condition(task: Task, sampled: Drawn, given: Given, index: np.ndarray) -> Drawn:
    """What was sampled beside the video or the sound that it was sampled for."""
    video, audio = sampled.video, sampled.audio
    if video is None and "video" in task.condition:
        video = given.videos[index]
    if audio is None and "audio" in task.condition:
        audio = given.sounds[index]
    return Drawn(video=video, audio=audio, texts=sampled.texts)


def _labels(prompts: Sequence[str], count: int) -> list[str]:
    """The prompt of each of `count` samples; empty where there is none."""
    prompts = prompts or [""]
    return [prompts[row * len(prompts) // count] for row in range(count)]
