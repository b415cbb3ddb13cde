"""One drawn example of every task of a mixture, beside what it was given and the true clip.

N = 1 clip, T frames, H height, W width, 3 colour channels, S samples.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from poet import conditioning, media
from poet.evaluation.resources import Resources
from poet.sampling.generate import Drawn
from poet.store.raw import RawClip
from poet.tasks.registry import Task
from poet.tasks.resolved import Resolved


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One task's: label -> file below the output folder, and what was given and drawn as text."""

    task: str
    clip: RawClip
    given: str
    text: str
    files: dict[str, str]


def draw(r: Resources) -> list[Example]:
    """An example of each task of the checkpoint's mixture, each of another clip where there are enough.

    Where a task knows several regions, its clip takes the one of its place in the list.
    """
    tasks = sorted(Resolved(r.experiment).mixture, key=lambda task: task.name)
    return [_example(r, task, r.clips[i % len(r.clips)], i) for i, task in enumerate(tasks)]


def _example(r: Resources, task: Task, clip: RawClip, place: int) -> Example:
    allowed = conditioning.regions_of(task.made, r.experiment.conditioning)
    region = allowed[place % len(allowed)] if allowed else ""
    generator, frames = r.generator, Resolved(r.experiment).frames_of(Resolved(r.experiment).eval_latents(task))
    heard = _takes(task, "audio") or (frames and task.has_audio)
    video, sound = clip.video[None], _sound(r, clip)[None]
    takes_depth = task.derived and task.derived.takes_depth
    depth = clip.depth[None] if takes_depth and clip.depth is not None else None
    given = {"video": video} if frames or _takes(task, "video") else {}
    drawn = generator.generate(
        task.name,
        [clip.caption] if task.text else (),
        media=given | ({"audio": sound} if heard else {}),
        depths=depth,
        conditioning_frames=frames,
        region=region,
    )
    shown = _given(r, task, video, sound, depth, frames, region)
    true = Drawn(
        video=video if task.predicted[-1].closes else video[:, :1],
        audio=sound if task.has_audio else None,
    )
    files = {
        label: name
        for label, what in (("given", shown), ("drawn", _whole(task, drawn, true)), ("true", true))
        if (name := _write(r, f"media/example_{task.name}_{label}", what))
    }
    return Example(
        task=task.name,
        clip=clip,
        given=_words(task, clip, frames),
        text=drawn.texts[0] if drawn.texts else "",
        files=files,
    )


def _takes(task: Task, medium: str) -> bool:
    """Whether a stream of its condition is made from pictures or sound."""
    return any(stream.medium == medium for stream in task.given)


def _sound(r: Resources, clip: RawClip) -> np.ndarray:
    """int16 (S,); a clip without sound is silent, as it is in a store."""
    silence = np.zeros(r.experiment.clip.samples, np.int16)
    return silence if clip.audio is None else clip.audio


def _given(
    r: Resources,
    task: Task,
    video: np.ndarray,
    sound: np.ndarray,
    depth: np.ndarray | None,
    frames: int,
    region: str,
) -> Drawn:
    """What the model saw and heard, text apart."""
    if _takes(task, "audio"):
        return Drawn(audio=sound)
    if _takes(task, "video"):
        latents, *_ = task.given[0].grid(Resolved(r.experiment).format)
        shown = r.generator.make_condition(task.name, video, depth, region=region).video
        return Drawn(video=shown[:, : Resolved(r.experiment).frames_of(latents)])
    return Drawn(video=video[:, :frames]) if frames else Drawn()


def _whole(task: Task, drawn: Drawn, true: Drawn) -> Drawn:
    """Drawn sound is played to the clip that it was drawn for, and the other way round."""
    if _takes(task, "video") and drawn.video is None and drawn.audio is not None:
        return Drawn(video=true.video, audio=drawn.audio)
    if _takes(task, "audio"):
        return Drawn(video=drawn.video, audio=true.audio)
    return drawn


def _write(r: Resources, stem: str, what: Drawn) -> str | None:
    """Writes the first of the clips: mp4 with sound, gif without, PNG of a still, wav of sound alone."""
    clip = r.experiment.clip
    video = None if what.video is None else what.video[0]
    audio = None if what.audio is None else what.audio[0]
    if video is None and audio is None:
        return None
    if video is None:
        name = f"{stem}.wav"
        media.write_wav(r.out / name, audio, clip.sample_rate_hz)
    elif len(video) == 1:
        name = f"{stem}.png"
        media.write_png_strip(r.out / name, video)
    elif audio is None:
        name = f"{stem}.gif"
        media.write_gif(r.out / name, video, clip.rate_hz)
    else:
        name = f"{stem}.mp4"
        media.write_mp4(Path(r.out, name), video, clip.rate_hz, audio, clip.sample_rate_hz)
    return name


def _words(task: Task, clip: RawClip, frames: int) -> str:
    """'the text “...”; 5 frames', 'clip with a hole', 'nothing'."""
    parts = [f"the text “{clip.caption}”"] if task.text else []
    parts += [stream.title for stream in task.given]
    parts += [f"{frames} frame{'s' if frames > 1 else ''}"] if frames else []
    return "; ".join(parts) or "nothing"
