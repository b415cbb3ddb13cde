"""Chains: a list of jobs, each of which takes the result of the one before it.

    - {task: text_to_image, prompt: on the green field}
    - {task: image_to_video, prompt: the player walks forward}
    - {task: stylization, prompt: in the brown hall, depth: flat}
    - {task: video_to_audio}
    - {task: long, seconds: 8, sound: true}

A job that continues frames takes the last ones; a job with a clip as its condition takes the first frames, of a clip's
length; a job with sound as its condition takes the sound.  A caption becomes the prompt of the next job without one.
`long` continues the result as a film (`poet.sampling.films.long`).  Results are stored by job and reused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.media import watermark
from poet.media.files import write_text
from poet.sampling.films import camera, pieces, sheets
from poet.sampling.films.folder import FilmFolder, Take
from poet.sampling.films.sampler import FilmSampler, Wish
from poet.sampling.films.sounds import fitted
from poet.sampling.films.storyboard import check_names, read_text
from poet.sampling.requests import FLAT, default_conditioning_frames
from poet.spec import (
    MOST_FRAMES,
    MOST_SEED,
    PromptSpec,
    SampleSpec,
    Spec,
    UserError,
    choose,
    foreign,
    from_dict,
    limited,
    setting,
    to_dict,
)
from poet.tasks.registry import TASKS, Task

_LOG = logging.getLogger(__name__)
LONG = "long"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(Spec):
    """One job.

    `task` is one of `poet.tasks.registry`, or 'long'.  `conditioning_frames` 0 means the fewest that the task takes.
    `depth` 'flat' stands for a clip without depth, if a task takes depth.  `seconds` and `sound` belong to 'long'.
    """

    task: str = setting(changes="nothing")
    prompt: str = setting("", changes="nothing")
    negative: str = setting("", changes="nothing")
    camera: str = setting("", changes="nothing")
    region: str = setting("", changes="nothing")
    depth: str = setting("", changes="nothing", one_of=("", FLAT))
    conditioning_frames: int = setting(0, changes="nothing", at_least=0, at_most=MOST_FRAMES)
    seconds: float = setting(10.0, changes="nothing", above=0, at_most=86_400)
    sound: bool = setting(False, changes="nothing")
    seed: int = setting(0, changes="nothing", at_least=0, at_most=MOST_SEED)

    def validate(self) -> None:
        choose(self.task, {**TASKS, LONG: None}, "task")
        camera.phrase(self.camera)

    @classmethod
    def gin_name(cls) -> str:
        """Its name in messages."""
        return "job"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """The result of a job: video uint8 [T, H, W, 3], sound int16 [S], a text; None if missing."""

    video: np.ndarray | None = None
    sound: np.ndarray | None = None
    text: str = ""


def read(path: str | Path) -> list[Job]:
    """The jobs in a YAML file.  Raises UserError, with the file and the job, for an invalid one."""
    text = read_text(path, "chain")
    try:
        values = foreign.parse_yaml(text)
    except UserError as error:
        raise UserError(f"chain {path}: {error}") from None
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise UserError(f"chain {path}: expected a list of jobs, as '- task: text_to_video'")
    found = []
    for number, value in enumerate(values, 1):
        try:
            check_names(value, Job, "it")
            if "task" not in value:
                raise UserError("it has no task")
            found.append(from_dict(Job, value))
        except UserError as error:
            raise UserError(f"chain {path}: job {number}: {error}") from None
    return found


class Chain:
    """Runs jobs; see the module.

    Args:
      sampler: of silent films; `with_audio` of those with sound, None if the checkpoint has none.
      fixed: what else determines results, such as the checkpoint.
      prompt: texts added to every prompt.
    """

    def __init__(
        self,
        sampler: FilmSampler,
        with_audio: FilmSampler | None,
        sample: SampleSpec,
        fixed: Mapping[str, Any],
        *,
        prompt: PromptSpec = PromptSpec(),
    ):
        self._silent, self._with_audio, self._sample, self._prompts = sampler, with_audio, sample, prompt
        self._fixed = {
            **fixed,
            **sampler.made_by,
            "sample": {**sample.noise, "seed": sample.seed},
            "prompt": to_dict(prompt),
        }
        self._resolved = sampler.generator.resolved

    def run(self, jobs: Sequence[Job], folder: Path, given: Made = Made()) -> list[Path]:
        """Runs jobs on `given`, each in its own folder; returns the files of media.

        Raises UserError for a job that cannot use the result of the one before it.
        """
        kept = 0 if given.video is None else len(given.video)  # Frames that came from outside.
        files, key = [], self._key("", {**self._fixed, **{n: _digest(a) for n, a in vars(given).items()}})
        for number, job in enumerate(jobs, 1):
            key = self._key(key, to_dict(job))
            place = folder / f"{number:02d}_{job.task}_{key}"
            made, text = place / "made.npz", place / "made.txt"
            if not made.exists():
                _LOG.info("job %d of %d: %s", number, len(jobs), job.task)
                try:
                    found = (
                        self._long(job, given, place) if job.task == LONG else self._task(job, TASKS[job.task], given)
                    )
                except UserError as error:
                    raise UserError(f"job {number}, {job.task}: {error}") from None
                write_text(text, found.text)
                pieces.save_media(made, found.video, found.sound)
            video, sound = pieces.load_media(made)
            given = Made(video=video, sound=sound, text=limited(text).read_text(encoding="utf-8"))
            if job.task != LONG and any(stream.shows for stream in TASKS[job.task].predicted):
                kept = 0
            files += self._show(given, place, kept)
        return files

    @staticmethod
    def _key(before: str, what: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps([before, what], sort_keys=True).encode()).hexdigest()[:12]

    def _prompt(self, job: Job, given: Made) -> str:
        return self._prompts.complete(job.prompt or given.text, camera.phrase(job.camera, self._prompts.camera))

    def _task(self, job: Job, task: Task, given: Made) -> Made:
        """The result of a task on `given`."""
        clip, frames = self._resolved.spec.clip, 0
        taken: dict[str, np.ndarray] = {}
        if "audio" in task.condition and given.sound is not None:
            taken["audio"] = fitted(given.sound, clip.samples)[None]
        if {"video", "image"} & {*task.condition} and given.video is not None:
            taken["video"] = given.video[None, : clip.frames]
            frames = job.conditioning_frames
        elif task.conditioning_latents[1] and given.video is not None:
            frames = job.conditioning_frames or default_conditioning_frames(self._resolved, task, 1)
            taken["video"] = given.video[None, -frames:]
            if "audio" in task.output:
                sound = np.zeros(0, np.int16) if given.sound is None else given.sound
                begin = round((len(given.video) - frames) / clip.rate_hz * clip.sample_rate_hz)
                taken["audio"] = fitted(sound[begin:], clip.samples)[None]
        if not taken and (given.video is not None or given.sound is not None):
            raise UserError(
                "it does not use the result of the job before it: put it first, or use a task that "
                "continues or changes a clip"
            )
        depths = np.zeros((1, clip.frames, 1, 1), np.float32) if job.depth == FLAT else None
        prompts = [self._prompt(job, given)] if task.text else []
        found = self._silent.generator.generate(
            task.name,
            prompts,
            negative_prompt=self._prompts.negative_for(task.text, job.negative),
            media=taken,
            conditioning_frames=frames,
            depths=depths,
            region=job.region,
            sample=self._sample.replace(seed=job.seed),
        )
        return self._handed_on(task, given, taken, found)

    def _handed_on(self, task: Task, given: Made, taken: Mapping[str, np.ndarray], found: Any) -> Made:
        """The result of a job, with the conditions that belong to it."""
        video, sound = found.video, found.audio
        same_time = bool({"video"} & {*task.condition})
        if video is None:
            video = taken.get("video")
        if sound is None and same_time and given.sound is not None:
            sound = fitted(given.sound, self._resolved.spec.clip.samples)[None]
        if sound is None and "audio" in task.condition:
            sound = taken["audio"]
        return Made(
            video=None if video is None else video[0],
            sound=None if sound is None else sound[0],
            text=found.texts[0] if found.texts else given.text,
        )

    def _long(self, job: Job, given: Made, folder: Path) -> Made:
        sampler = self._with_audio if job.sound else self._silent
        if sampler is None:
            raise UserError("the checkpoint has no sound: drop `sound`")
        prompt, place, frames = (
            self._prompt(job, given),
            FilmFolder(folder / "film"),
            sampler.windows.frames_in(job.seconds),
        )
        wish = Wish(prompt=prompt, negative=self._prompts.negative_for(bool(prompt), job.negative))
        with place.hold({"job": to_dict(job)}):
            place.extend(
                sampler,
                lambda: sampler.begin(given.video, given.sound),
                frames,
                lambda _: wish,
                seed=job.seed,
                sample=self._sample,
            )
        found, samples = zip(*Take(place.pieces, frames).parts(sampler.windows))
        return Made(
            video=np.concatenate(found), sound=None if samples[0] is None else np.concatenate(samples), text=given.text
        )

    def _show(self, made: Made, folder: Path, kept: int) -> list[Path]:
        """Writes the media of a job, whose first `kept` frames were not sampled."""
        clip, files = self._resolved.spec.clip, []
        if made.video is not None:
            whole = watermark.GIVEN if kept >= len(made.video) else ""
            marked = watermark.Marker.of(made.video, self._sample.unmarked or whole)(made.video, kept)
            files = [folder / "made.png"]
            sheets.write(files[0], [marked[:: max(-(-len(marked) // 12), 1)]])
            if len(marked) > 1:
                files.append(folder / "made.mp4")
                media.write_mp4(files[1], marked, clip.rate_hz, made.sound, clip.sample_rate_hz)
        if made.sound is not None:
            files.append(folder / "made.wav")
            media.write_wav(files[-1], made.sound, clip.sample_rate_hz)
        return files


def _digest(value: Any) -> str:
    return hashlib.sha256(value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()).hexdigest()[:16]
