"""One sample of every task of a mixture, beside its condition and the true clip.

N = 1 clip, T frames, H height, W width, 3 colour channels, S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from poet import conditioning, media
from poet.evaluation.record import Media
from poet.evaluation.report.tables import Row
from poet.evaluation.resources import Resources
from poet.sampling.engine import Sampled
from poet.store.raw import RawClip
from poet.tasks.registry import Task


def sample(r: Resources) -> Iterator[tuple[Row, Media]]:
    """A sample of each task of the checkpoint's mixture: its row and its files.

    Tasks have different clips if there are enough.  Of several regions, the clip takes the one of its index.
    """
    for place, task in enumerate(sorted(r.resolved.mixture, key=lambda task: task.name)):
        clip = r.clips[place % len(r.clips)]
        allowed = conditioning.regions_of(task.made, r.experiment.conditioning)
        region = allowed[place % len(allowed)] if allowed else ""
        files, text = _files(r, task, clip, region)
        condition = _words(task, clip, _frames(r, task))
        note = f"condition: {condition}" + (f"; it wrote “{text}”" if text else "")
        yield (
            {"task": task.name, "condition": condition, "sampled": text or "see below", "clip": clip.key},
            Media(kind="example", key=clip.key, caption=task.name.replace("_", " "), note=note, files=files),
        )


def _frames(r: Resources, task: Task) -> int:
    """Conditioning frames that open the output."""
    return r.resolved.frames_of(r.resolved.eval_latents(task))


def _files(r: Resources, task: Task, clip: RawClip, region: str) -> tuple[dict[str, str], str]:
    """Label -> file below the output folder; and the generated text."""
    frames, video, sound = _frames(r, task), clip.video[None], _sound(r, clip)[None]
    heard = _takes(task, "audio") or (frames and task.has_audio)
    takes_depth = task.derived and task.derived.takes_depth
    depth = clip.depth[None] if takes_depth and clip.depth is not None else None
    conditions = {"video": video} if frames or _takes(task, "video") else {}
    sampled = r.generator.generate(
        task.name,
        [clip.caption] if task.text else (),
        media=conditions | ({"audio": sound} if heard else {}),
        depths=depth,
        conditioning_frames=frames,
        region=region,
    )
    condition = _condition(r, task, video, sound, depth, frames, region)
    true = Sampled(video=video if task.predicted[-1].closes else video[:, :1], audio=sound if task.has_audio else None)
    labelled = {"condition": condition, "sampled": _whole(task, sampled, true), "true": true}
    names = {label: _write(r, f"media/example_{task.name}_{label}", what) for label, what in labelled.items()}
    return {label: name for label, name in names.items() if name}, sampled.texts[0] if sampled.texts else ""


def _takes(task: Task, medium: str) -> bool:
    """Whether its condition has a stream of this medium."""
    return any(stream.medium == medium for stream in task.conditions)


def _sound(r: Resources, clip: RawClip) -> np.ndarray:
    """int16 (S,); a clip without sound is silent, as it is in a store."""
    silence = np.zeros(r.experiment.clip.samples, np.int16)
    return silence if clip.audio is None else clip.audio


def _condition(
    r: Resources, task: Task, video: np.ndarray, sound: np.ndarray, depth: np.ndarray | None, frames: int, region: str
) -> Sampled:
    """The condition, without text."""
    if _takes(task, "audio"):
        return Sampled(audio=sound)
    if _takes(task, "video"):
        latents, *_ = task.conditions[0].grid(r.resolved.format)
        derived = r.generator.make_condition(task.name, video, depth, region=region).video
        return Sampled(video=derived[:, : r.resolved.frames_of(latents)])
    return Sampled(video=video[:, :frames]) if frames else Sampled()


def _whole(task: Task, sampled: Sampled, true: Sampled) -> Sampled:
    """Sampled sound together with its clip, and a sampled clip with its sound."""
    if _takes(task, "video") and sampled.video is None and sampled.audio is not None:
        return Sampled(video=true.video, audio=sampled.audio)
    if _takes(task, "audio"):
        return Sampled(video=sampled.video, audio=true.audio)
    return sampled


def _write(r: Resources, stem: str, what: Sampled) -> str | None:
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
    parts += [stream.title for stream in task.conditions]
    parts += [f"{frames} frame{'s' if frames > 1 else ''}"] if frames else []
    return "; ".join(parts) or "nothing"
