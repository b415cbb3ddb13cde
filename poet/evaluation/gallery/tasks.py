"""Sections of a gallery with one task each: a request of `poet generate`, sampled once for each seed."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poet.evaluation.gallery.studio import Item, Made, Row, Studio, write
from poet.media.watermark import GIVEN, Marker
from poet.sampling import jobs
from poet.sampling.engine import Sampled
from poet.sampling.jobs import Job
from poet.sampling.requests import Request
from poet.tasks.registry import Task, get_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSection:
    """Samples of one task.

    Attributes:
      task: its name.
      says: its description, in one sentence.
      exchanged: whether each clip has the text of the next one.
      marked: box of the mask, as fractions of width and height (x0, y0, x1, y1); () for no mask.
    """

    task: str
    says: str
    exchanged: bool = False
    marked: tuple[float, ...] = ()

    @property
    def title(self) -> str:
        """The heading."""
        return self.task.replace("_", " ").capitalize()

    @property
    def scored_by(self) -> str:
        """The task whose condition gains say whether conditions are obeyed."""
        return self.task

    def make(self, studio: Studio, folder: Path) -> Made:
        """Samples and writes the files of the section.  UserError if the checkpoint cannot do the task."""
        studio.check_trained(self.task)
        request = self.request(studio)
        job = jobs.read(jobs.admit(request, studio.resolved, studio.sample))
        marker = Marker(job.unmarked) if job.unmarked else studio.marker
        rows: list[list[Item]] = [[] for _ in range(job.items)]
        for name, label, media in _conditions(job, studio):
            _add(rows, studio, folder, name, [label] * job.items, Sampled(media))
        for seed in range(studio.seeds):
            sampled = jobs.sample(dataclasses.replace(job, sample=job.sample.replace(seed=seed)), studio.generator)
            findings = sampled.findings or [()] * job.items
            labels = [f"seed {seed}" + "".join(f", collapsed: {found}" for found in row) for row in findings]
            _add(rows, studio, folder, f"seed{seed}", labels, sampled, marker)
        headings = job.prompts or [f"Clip {number + 1}" for number in range(job.items)]
        return Made(
            rows=tuple(Row(heading=heading, items=tuple(row)) for heading, row in zip(headings, rows)),
            commands=(command(studio, request),),
            watermark=str(marker),
        )

    def request(self, studio: Studio) -> Request:
        """The request of the section's samples."""
        task, clip = get_task(self.task), studio.resolved.spec.clip
        prompts = [*studio.prompts] if task.text else []
        frames, mask = conditioning_frames(studio, task), ""
        clips = studio.clips if frames or any(stream.medium for stream in task.conditions) else ()
        depths = task.derived and task.derived.needs_depth(studio.resolved.spec.conditioning)
        if self.marked:
            sides = (clip.width, clip.height) * 2
            mask = ",".join(str(round(part * side)) for part, side in zip(self.marked, sides))
        return Request(
            task=self.task,
            prompt=tuple(prompts[1:] + prompts[:1] if self.exchanged else prompts),
            clip=tuple(str(given.path) for given in clips),
            conditioning_frames=frames,
            mask=(mask,) if mask else (),
            depth=tuple(str(given.depth_path) for given in clips if depths),
        )


def conditioning_frames(studio: Studio, task: Task) -> int:
    """Conditioning frames that open the output: those of evaluation if the task takes them, else the fewest; or 0."""
    choices = studio.resolved.conditioning_choices(task)
    if task.condition or not choices:
        return 0
    usual = studio.resolved.spec.eval.conditioning_frames
    return usual if usual in choices else min(choices)


def _conditions(job: Job, studio: Studio) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name of the files, label, media by medium) of each condition, without texts."""
    found, clip = job.given.media, studio.resolved.spec.clip
    if (video := found.get("video")) is not None:
        frames = video.shape[1]
        label = (
            "the clip" if frames == clip.frames else "the first frame" if frames == 1 else f"the first {frames} frames"
        )
        if task := job.task.derived:
            yield "clip", label, {"video": video}
            chosen = {"depths": job.given.depths, "masks": job.given.masks}
            label, video = task.title, studio.generator.make_condition(job.task.name, video, **chosen).video
        yield "condition", f"condition: {label}", {"video": video}
    if (audio := found.get("audio")) is not None:
        part = "the sound" if audio.shape[1] == clip.samples else "the sound of these frames"
        yield "sound", f"condition: {part}", {"audio": audio}


def _add(
    rows: list[list[Item]],
    studio: Studio,
    folder: Path,
    name: str,
    labels: list[str],
    sampled: Sampled,
    marker: Marker = Marker(GIVEN),
) -> None:
    """Adds an item with the media, or the text, to each row; `marker` as of `write`."""
    for number, (row, label) in enumerate(zip(rows, labels)):
        if sampled.texts:
            row.append(Item(label=f"{label}: {sampled.texts[number]}"))
            continue
        video, audio = (None if media is None else media[number] for media in (sampled.video, sampled.audio))
        row.append(write(studio, folder / f"{number:02d}_{name}", label, video, audio, marker))


def command(studio: Studio, request: Request) -> str:
    """The line of `poet generate` that makes the same samples for one seed, in the folder of the gallery."""
    fields = dataclasses.fields(request)
    asked = {f.name: getattr(request, f.name) for f in fields if getattr(request, f.name) != f.default}
    flags = {"checkpoint": studio.checkpoint, "task": request.task, **asked, "seed": 0, "out": "samples"}
    paths = [path for given in studio.clips for path in (given.path, given.depth_path)]
    inside = {str(path): f"{path.parent.name}/{path.name}" for path in paths}
    words = [
        f"--{name}={inside.get(value, value)}"
        for name, values in flags.items()
        for value in (values if isinstance(values, tuple) else (values,))
    ]
    off = ["--no_watermark"] if studio.sample.unmarked else []
    return shlex.join(["poet", "generate", *words, *off])
