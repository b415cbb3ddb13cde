"""What a task can be asked for: checks of a request before any device work, and its files."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Sequence

import numpy as np

from poet import conditioning, media
from poet.media import sound as media_sound
from poet.sampling.decode import DEFAULT_BATCH
from poet.specs import ClipSpec, Experiment, SampleSpec, UserError
from poet.tasks.registry import TASKS, Task, frames_of, get_task, known_choices, known_range, run_layout
from poet.tokenizers.text import check_texts

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of `poet generate`; sampling values come with the experiment."""

    checkpoint: str
    out: str
    task: str = "text_to_video"
    prompt: Sequence[str] = ()
    prompt_file: str = ""
    negative_prompt: str = ""
    clip: Sequence[str] = ()
    known_frames: int = 0
    num: int = 1
    batch: int = DEFAULT_BATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What the files of a request hold, as far as the task asks for it.

    videos: uint8 [n, T, H, W, 3].  sounds: int16 [n, S] at the clip's sample rate.
    """

    videos: np.ndarray | None = None
    sounds: np.ndarray | None = None

    def __len__(self) -> int:
        return max(len(a) if a is not None else 0 for a in (self.videos, self.sounds))


# -------------------------------------------------------------------------------------- checks


def check_request(
    experiment: Experiment,
    task: str,
    prompts: Sequence[str],
    known_frames: int,
    clips: int,
    has_depth: bool = False,
) -> None:
    """Raises UserError unless the task can be asked for this; `clips` counts those given, which
    may come with distances."""
    declared = get_task(task)
    run_layout(experiment, declared)  # Refuses sound in a run without it.
    if isinstance(prompts, str):
        raise UserError(f"prompts must be a list of texts, got the one text {prompts!r}")
    if declared.text and not prompts:
        raise UserError(f"task {task} needs a text: give --prompt or --prompt_file")
    if prompts and not declared.text:
        free = ", ".join(sorted(name for name, t in TASKS.items() if t.text))
        raise UserError(f"task {task} takes no text: leave the prompt out, or use one of {free}")
    if len(prompts) > 1 and clips > 1 and len(prompts) != clips:
        raise UserError(f"{len(prompts)} prompts for {clips} clips: give one of either, or as many")
    latents = known_latents(experiment, known_frames)
    low, high = known_range(experiment, declared)
    if not low <= latents <= high:
        raise UserError(_known_message(experiment, declared, known_frames))
    if latents and not clips:
        raise UserError(f"{known_frames} known frames need a clip that shows them: give --clip")
    if declared.condition and not clips:
        what = " and ".join("sound" if s == "audio" else s for s in declared.condition)
        raise UserError(f"task {task} starts from a given {what}: give a file with it as --clip")
    if declared.made:
        clip = experiment.clip
        conditioning.check(
            declared.made, experiment.conditioning, clip.frames, has_depth=has_depth
        )
    if clips and not latents and not declared.condition:
        raise UserError(f"a clip was given but known_frames is 0: {_allowed(experiment, declared)}")


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises UserError for one that says nothing, or that is no text."""
    for number, prompt in enumerate(check_texts(prompts), 1):
        if not prompt.strip():
            raise UserError(
                f"prompt {number} of {len(prompts)} is empty: say what to show, or use a task without "
                "text, such as unconditional"
            )


def check_negative(task: Task, sample: SampleSpec, negative_prompt: str) -> None:
    """Raises UserError for a negative prompt that would change nothing."""
    if not negative_prompt:
        return
    if not task.text:
        raise UserError(f"task {task.name} takes no text: leave the negative prompt out")
    if sample.guidance == 1:
        raise UserError(
            "a negative prompt is what guidance leads away from, and SAMPLE.guidance = 1.0 means none: "
            "set it to another value, such as --guidance=2, or leave the negative prompt out"
        )


def known_latents(experiment: Experiment, known_frames: int) -> int:
    """Latent frames of that many frames; UserError unless 0 or 1 + k * factor."""
    if known_frames == 0:
        return 0
    clip = experiment.clip
    return experiment.video_tokenizer.grid(known_frames, clip.height, clip.width)[0]


def default_known_frames(experiment: Experiment, task: Task, clips: int) -> int:
    """For clips without a number, the fewest frames that the task takes."""
    return frames_of(experiment, known_range(experiment, task)[0]) if clips else 0


def _allowed(experiment: Experiment, task: Task) -> str:
    frames = known_choices(experiment, task)
    if not frames:
        return f"task {task.name} takes no known frames"
    return f"task {task.name} takes {' or '.join(map(str, frames))} known frames"


def _known_message(experiment: Experiment, task: Task, known_frames: int) -> str:
    opening = ", ".join(sorted(name for name, t in TASKS.items() if t.known_latents[1]))
    return (
        f"known_frames = {known_frames}: {_allowed(experiment, task)} "
        f"(tasks that continue known frames: {opening})"
    )


# --------------------------------------------------------------------------------------- files


def read_prompts(path: str) -> list[str]:
    """The lines of a text file, without blank ones; none for an empty path."""
    if not path:
        return []
    file = Path(path).expanduser()
    if file.exists() and not file.is_file():
        raise UserError(f"prompt file {path} is no file: write one prompt per line into one")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # With universal newlines.
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt file {path} cannot be read as UTF-8 text: {error}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"prompt file {path} holds no prompt: write one per line")
    blank = len(lines) - len(prompts) - (not lines[-1])
    if blank:
        _LOG.info("%s: %d prompts, %d blank lines left out", path, len(prompts), blank)
    return prompts


def read_given(
    experiment: Experiment, task: Task, paths: Sequence[str], known_frames: int
) -> Given:
    """What the task takes of the files, in the run's clip format.

    A condition is a whole clip, and its sound is filled up with silence; known frames are read as
    far as they go, and their sound with them.

    Raises UserError (MediaError) for a file that does not give it.
    """
    if not paths:
        return Given()
    if task.condition == ("audio",):
        return Given(sounds=np.stack([_read_sound(path, experiment.clip) for path in paths]))
    frames = experiment.clip.frames if "video" in task.condition else max(known_frames, 1)
    wanted = experiment.clip.replace(frames=frames)
    clips = {path: media.read_clip(path, wanted) for path in paths}
    videos = np.stack([clips[path].video for path in paths])
    if not task.has_audio or not task.known_latents[1]:
        return Given(videos=videos)
    for path, clip in clips.items():
        if clip.audio is None:
            raise media.MediaError(path, f"no sound, which task {task.name} continues")
    return Given(videos=videos, sounds=np.stack([clips[path].audio for path in paths]))


def _read_sound(path: str, clip: ClipSpec) -> np.ndarray:
    """int16 (clip.samples,) from the file's beginning, silence after its end."""
    seconds = clip.samples / clip.sample_rate_hz
    sound = media_sound.read_sound(path, clip.sample_rate_hz, max_seconds=seconds)
    if sound.notes:
        _LOG.info("%s: %s", path, ", ".join(sound.notes))
    samples = sound.samples[: clip.samples]
    return np.pad(samples, (0, clip.samples - len(samples)))
