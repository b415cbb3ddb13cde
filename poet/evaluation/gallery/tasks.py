"""Sections of a gallery with one task each: `Generator.generate`, once for each seed.

N clips, T frames, H height, W width.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from poet import conditioning
from poet.conditioning import regions
from poet.evaluation.gallery.studio import Item, Made, Row, Studio, write
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
        task = get_task(self.task)
        asked = _asked(self, task, studio)
        rows = [[*items] for items in _conditions(self, task, studio, asked, folder)]
        for seed in range(studio.seeds):
            for row, item in zip(rows, _sampled(task, studio, asked, seed, folder)):
                row.append(item)
        headings = asked["prompts"] or [f"Clip {number + 1}" for number in range(len(rows))]
        return Made(
            rows=tuple(Row(heading=heading, items=tuple(row)) for heading, row in zip(headings, rows)),
            commands=(command(self, studio, asked),),
        )


def _asked(section: TaskSection, task: Task, studio: Studio) -> dict[str, Any]:
    """The arguments of `Generator.generate`."""
    frames = conditioning_frames(studio, task)
    prompts = list(studio.prompts) if task.text else []
    media = {}
    if frames or {"video", "image"} & {*task.condition}:
        media["video"] = studio.video()
    if "audio" in task.condition or frames and "audio" in task.output:
        media["audio"] = studio.audio()
    asked = {
        "prompts": prompts[1:] + prompts[:1] if section.exchanged else prompts,
        "media": media,
        "conditioning_frames": frames,
    }
    if section.marked:
        asked["masks"] = np.stack([_mask(section.marked, video.shape[:3]) for video in media["video"]])
    if _takes_depth(task, studio):
        asked["depths"] = np.stack([clip.depth for clip in studio.clips])
    return asked


def _takes_depth(task: Task, studio: Studio) -> bool:
    return bool(task.derived and task.derived.needs_depth(studio.resolved.spec.conditioning))


def conditioning_frames(studio: Studio, task: Task) -> int:
    """Conditioning frames that open the output: those of evaluation if the task takes them, else the fewest; or 0."""
    choices = studio.resolved.conditioning_choices(task)
    if task.condition or not choices:
        return 0
    usual = studio.resolved.spec.eval.conditioning_frames
    return usual if usual in choices else min(choices)


def box(marked: tuple[float, ...], height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in pixels."""
    x0, y0, x1, y1 = marked
    return round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)


def _mask(marked: tuple[float, ...], shape: tuple[int, int, int]) -> np.ndarray:
    """bool (T, H, W)."""
    x0, y0, x1, y1 = box(marked, *shape[1:])
    mask = np.zeros(shape, bool)
    mask[:, y0:y1, x0:x1] = True
    return mask


def _conditions(
    section: TaskSection, task: Task, studio: Studio, asked: dict[str, Any], folder: Path
) -> list[list[Item]]:
    """The conditions of each row, without texts."""
    media, frames = asked["media"], asked["conditioning_frames"]
    found: list[list[Item]] = [[] for _ in asked["prompts"] or studio.clips]
    videos, label = media.get("video"), ""
    if videos is not None and task.derived:
        chosen = {name: asked[name] for name in ("depths", "masks") if name in asked}
        label, videos = (
            f"condition: {task.derived.title}",
            studio.generator.make_condition(task.name, videos, **chosen).video,
        )
        _add(found, studio, folder, "clip", "the clip", media["video"])
    elif videos is not None:
        frames = frames or (1 if "image" in task.condition else 0)
        videos = videos[:, : frames or None]
        label = "condition: " + (
            "the clip" if not frames else "the first frame" if frames == 1 else f"the first {frames} frames"
        )
    if videos is not None:
        _add(found, studio, folder, "condition", label, videos)
    if "audio" in media:
        sounds, label, clip = media["audio"], "the sound", studio.resolved.spec.clip
        if frames:
            sounds, label = sounds[:, : round(frames / clip.rate_hz * clip.sample_rate_hz)], "the sound of these frames"
        _add(found, studio, folder, "sound", f"condition: {label}", None, sounds)
    return found


def _add(
    rows: list[list[Item]], studio: Studio, folder: Path, name: str, label: str, videos: Any, sounds: Any = None
) -> None:
    for number, row in enumerate(rows):
        video, sound = (None if media is None else media[number] for media in (videos, sounds))
        row.append(write(studio, folder / f"{number:02d}_{name}", label, video, sound))


def _sampled(task: Task, studio: Studio, asked: dict[str, Any], seed: int, folder: Path) -> list[Item]:
    """One sample for each row, with the clip or the sound of its condition."""
    found = studio.generator.generate(task.name, sample=studio.sample.replace(seed=seed), **asked)
    video, audio = found.video, found.audio
    if video is not None and task.derived and task.derived.region_is:
        video = np.stack([_kept(task, *three) for three in zip(video, asked["media"]["video"], asked["masks"])])
    if video is None and "video" in task.condition:
        video = asked["media"]["video"]
    if audio is None and "audio" in task.condition:
        audio = asked["media"]["audio"]
    count, items = len(asked["prompts"] or studio.clips), []
    findings = found.findings or [()] * count
    for row in range(count):
        label = f"seed {seed}" + "".join(f", collapsed: {finding}" for finding in findings[row])
        if found.texts:
            items.append(Item(label=f"{label}: {found.texts[row]}"))
            continue
        media = (None if found is None else found[row] for found in (video, audio))
        items.append(write(studio, folder / f"{row:02d}_seed{seed}", label, *media))
    return items


def _kept(task: Task, sampled: np.ndarray, original: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A clip sampled inside the hole, with the original pixels outside."""
    hole = conditioning.hole_of(task.derived, conditioning.Choice(mask=mask), original.shape[:3])
    return regions.keep(sampled, original, hole)


def command(section: TaskSection, studio: Studio, asked: dict[str, Any]) -> str:
    """The line of `poet generate` that makes the same samples, for one seed."""
    flags = [("checkpoint", studio.checkpoint), ("task", section.task)]
    flags += [("prompt", prompt) for prompt in asked["prompts"]]
    if asked["media"]:
        flags += [("clip", f"conditions/{clip.path.name}") for clip in studio.clips]
    if asked["conditioning_frames"]:
        flags.append(("conditioning_frames", str(asked["conditioning_frames"])))
    if section.marked:
        flags.append(("mask", ",".join(map(str, box(section.marked, *studio.clips[0].video.shape[1:3])))))
    if "depths" in asked:
        flags += [("depth", f"conditions/{clip.depth_path.name}") for clip in studio.clips]
    words = [f"--{name}={value}" for name, value in [*flags, ("seed", "0"), ("out", "samples")]]
    return shlex.join(["poet", "generate", *words])
