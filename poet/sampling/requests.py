"""What a task can be asked for: checks of a request before any device work, its plan, and its files."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path
from typing import Sequence

import numpy as np

from poet import conditioning, media
from poet.media import sound as media_sound
from poet.runs.run import Run
from poet.sampling.plans import DEFAULT_BATCH, Plan
from poet.sampling.samplers import Truncation
from poet.spec import ClipSpec, Experiment, SampleSpec, UserError, near_names
from poet.tasks.layout import Layout
from poet.tasks.registry import TASKS, Task, get_task
from poet.tasks.resolved import Resolved
from poet.tokenizers.text import check_texts

_LOG = logging.getLogger(__name__)

# Conditions of which some frames are given, and in the prefix; what is done to the region of others.
_OF_FRAMES = ("prediction", "interpolation")
_REGION_IS = {"inpainting": "fills", "outpainting": "keeps"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of `poet generate`; sampling values come with the experiment."""

    checkpoint: Run
    out: str
    task: str = "text_to_video"
    prompt: Sequence[str] = ()
    prompt_file: str = ""
    negative_prompt: str = ""
    clip: Sequence[str] = ()
    conditioning_frames: int = 0
    end: Sequence[str] = ()
    region: str = ""
    depth: Sequence[str] = ()
    num: int = 1
    batch: int = DEFAULT_BATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What the files of a request hold, as far as the task asks for it.

    videos: uint8 [n, T, H, W, 3].  sounds: int16 [n, S] at the clip's sample rate.
    ends: uint8 [1 or n, T, H, W, 3].  depths: distances float32 [1 or n, T, H, W].
    """

    videos: np.ndarray | None = None
    sounds: np.ndarray | None = None
    ends: np.ndarray | None = None
    depths: np.ndarray | None = None

    def __len__(self) -> int:
        return max(len(a) if a is not None else 0 for a in (self.videos, self.sounds))


# -------------------------------------------------------------------------------------- checks


def check_all(
    experiment: Experiment,
    task: str,
    prompts: Sequence[str],
    conditioning_frames: int,
    *,
    clips: int,
    ends: int,
    depths: int,
    region: str,
    negative_prompt: str,
) -> conditioning.Choice:
    """Everything that can be checked of a request before files are read; what its condition is given.

    Args:
      clips, ends, depths: how many of each are given.

    Raises:
      UserError: as `check_request`, `check_negative`, `check_depth` and `choose_condition`.
    """
    declared = get_task(task)
    check_negative(declared, experiment.sample, negative_prompt)
    check_depth(experiment, declared, depths, clips)
    check_request(experiment, task, prompts, conditioning_frames, clips, depths > 0)
    return choose_condition(experiment, declared, conditioning_frames, region, ends=ends, clips=clips)


def check_request(
    experiment: Experiment,
    task: str,
    prompts: Sequence[str],
    conditioning_frames: int,
    clips: int,
    has_depth: bool = False,
) -> None:
    """Raises UserError unless the task can be asked for this; `clips` counts those given, which
    may come with distances."""
    declared = get_task(task)
    Resolved(experiment).layout(declared)  # Refuses sound in a run without it.
    if isinstance(prompts, str):
        raise UserError(f"prompts must be a list of texts, got the one text {prompts!r}")
    if declared.text and not prompts:
        raise UserError(f"task {task} needs a text: give --prompt or --prompt_file")
    if prompts and not declared.text:
        free = ", ".join(sorted(name for name, t in TASKS.items() if t.text))
        raise UserError(f"task {task} takes no text: leave the prompt out, or use one of {free}")
    if len(prompts) > 1 and clips > 1 and len(prompts) != clips:
        raise UserError(f"{len(prompts)} prompts for {clips} clips: give one of either, or as many")
    opening = opening_frames(declared, conditioning_frames)
    latents = latents_of_frames(experiment, opening)
    low, high = Resolved(experiment).conditioning_range(declared)
    if not low <= latents <= high:
        raise UserError(_known_message(experiment, declared, conditioning_frames))
    if conditioning_frames and not clips:
        raise UserError(f"{conditioning_frames} known frames need a clip that shows them: give --clip")
    if declared.condition and not clips:
        what = " and ".join("sound" if s == "audio" else s for s in declared.condition)
        raise UserError(f"task {task} starts from a given {what}: give a file with it as --clip")
    if declared.made:
        _check_condition(experiment, declared, has_depth)
    if clips and not latents and not declared.condition:
        raise UserError(f"a clip was given but conditioning_frames is 0: {_allowed(experiment, declared)}")


def _check_condition(experiment: Experiment, task: Task, has_depth: bool) -> None:
    spec = experiment.conditioning
    if task.made == "structure" and spec.depth == "dataset" and not has_depth:
        raise UserError(
            f"task {task.name} takes the depth of a clip, and this one comes without depth: give a video or a "
            "picture of it, near is bright, as --depth=FILE, or the ONNX file of a depth network (MiDaS, "
            "Depth-Anything) as --gin.CONDITIONING.depth=FILE"
        )
    conditioning.check(task.made, spec, experiment.clip.frames, has_depth=has_depth)


def check_depth(experiment: Experiment, task: Task, depths: int, clips: int) -> None:
    """Raises UserError for depth that the task does not take, or for more or fewer than clips."""
    if not depths:
        return
    if task.made != "structure":
        taking = ", ".join(sorted(name for name, t in TASKS.items() if t.made == "structure"))
        raise UserError(f"task {task.name} takes no depth; tasks that do: {taking}")
    if experiment.conditioning.depth == "flat":
        raise UserError(
            "the model knows no depth: CONDITIONING.depth is 'flat'; leave the depth out, or take a model "
            "that was trained with it"
        )
    _check_pairs("depths", depths, clips)


def _check_pairs(what: str, given: int, clips: int) -> None:
    if given not in (1, clips):
        raise UserError(f"{given} {what} for {clips} clips: give one, or as many as clips")


def opening_frames(task: Task, conditioning_frames: int) -> int:
    """Of the frames that are given, those that open the output: none where they stand in the prefix."""
    return 0 if task.made in _OF_FRAMES else conditioning_frames


def choose_condition(
    experiment: Experiment, task: Task, conditioning_frames: int, region: str, *, ends: int = 0, clips: int = 1
) -> conditioning.Choice:
    """What of a task's condition is given: nothing of it is left to chance.

    Args:
      conditioning_frames: 0 takes the fewest, or CONDITIONING.interpolation_frames.
      region: '' where the run knows one alone.
      ends: how many ends are given beside `clips` clips.

    Raises:
      UserError: says what is allowed.
    """
    spec, clip = experiment.conditioning, experiment.clip
    conditioning_frames = conditioning_frames or default_conditioning_frames(experiment, task, 1)
    frames = conditioning.frames_of(
        task.made, spec, clip.frames, experiment.video_tokenizer.factor[0]
    )
    if frames and conditioning_frames not in frames:
        where = " at both ends" if task.made == "interpolation" else ""
        raise UserError(
            f"conditioning_frames = {conditioning_frames}: task {task.name} takes {_listed(frames)} known frames{where} of "
            f"{clip.frames}"
        )
    if ends and task.made != "interpolation":
        raise UserError(f"task {task.name} is given no end; frame_interpolation is")
    if ends:
        _check_pairs("ends", ends, clips)
    return conditioning.Choice(
        region=_region(task, conditioning.regions_of(task.made, spec), region),
        frames=conditioning_frames if frames else 0,
    )


def _region(task: Task, allowed: Sequence[str], region: str) -> str:
    if region and not allowed:
        raise UserError(f"task {task.name} knows no regions; inpainting and outpainting do")
    if not region and len(allowed) > 1:
        raise UserError(
            f"task {task.name} needs the region that it {_REGION_IS[task.made]}: give --region, one of "
            f"{', '.join(allowed)}"
        )
    if region and region not in allowed:
        raise UserError(f"unknown region {region!r} of task {task.name}{near_names(region, allowed)}")
    return region or next(iter(allowed), "")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + " or " * (len(numbers) > 1) + str(numbers[-1])


def whole_clips(
    clips: np.ndarray, frames: int, chosen: conditioning.Choice, ends: np.ndarray | None
) -> np.ndarray:
    """Clips of `frames` frames of which a condition takes no more than `chosen.frames`, at one end or both.

    Args:
      clips: uint8 [n, >= chosen.frames, H, W, 3].
      ends: uint8 [1 or n, >= chosen.frames, H, W, 3], that end them; None where the clips are whole.
    """
    given = chosen.frames
    if ends is not None:
        last = np.broadcast_to(ends[:, :given], (len(clips), given, *ends.shape[2:]))
        between = np.repeat(clips[:, given - 1 : given], frames - 2 * given, axis=1)
        return np.concatenate([clips[:, :given], between, last], axis=1)
    if given and len(clips[0]) < frames:
        rest = np.repeat(clips[:, -1:], frames - clips.shape[1], axis=1)
        return np.concatenate([clips, rest], axis=1)
    return clips


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


def default_conditioning_frames(experiment: Experiment, task: Task, clips: int) -> int:
    """For clips without a number, the fewest frames that the task takes.

    At the ends of an interpolation, CONDITIONING.interpolation_frames.
    """
    if task.made == "interpolation":
        return experiment.conditioning.interpolation_frames if clips else 0
    if task.made == "prediction":
        return int(clips > 0)
    return Resolved(experiment).frames_of(Resolved(experiment).conditioning_range(task)[0]) if clips else 0


def _allowed(experiment: Experiment, task: Task) -> str:
    frames = Resolved(experiment).conditioning_choices(task)
    if not frames:
        return f"task {task.name} takes no known frames"
    return f"task {task.name} takes {' or '.join(map(str, frames))} known frames"


def _known_message(experiment: Experiment, task: Task, conditioning_frames: int) -> str:
    opening = ", ".join(sorted(name for name, t in TASKS.items() if t.conditioning_latents[1]))
    return (
        f"conditioning_frames = {conditioning_frames}: {_allowed(experiment, task)} "
        f"(tasks that continue known frames: {opening})"
    )


# --------------------------------------------------------------------------------------- plans


def latents_of_frames(experiment: Experiment, frames: int) -> int:
    """Latent frames of that many frames that open an output; UserError unless 0 or 1 + k * factor."""
    if frames == 0:
        return 0
    clip = experiment.clip
    return experiment.video_tokenizer.grid(frames, clip.height, clip.width)[0]


def latents_of_codes(experiment: Experiment, task: str, codes: int) -> int:
    """The latent frames whose codes open a task's output with so many, all loss spans together."""
    latents = range(Resolved(experiment).format.video[0])
    totals = [sum(Resolved(experiment).conditioning_codes(get_task(task), n)) for n in latents]
    if codes not in totals:
        raise UserError(
            f"{codes} known codes are no whole latent frames of task {task}: give one of {totals}"
        )
    return totals.index(codes)


def make_layout(experiment: Experiment, task: str) -> Layout:
    """The static layout of a task in a run."""
    return Resolved(experiment).layout(get_task(task))


def make_plan(experiment: Experiment, task: str, sample: SampleSpec, latents: int) -> Plan:
    """The decoding program of a task; guided where there is text and the scale is not 1.

    Args:
      latents: known latent frames that open the output.
    """
    layout = make_layout(experiment, task)
    return Plan(
        layout=layout,
        known=Resolved(experiment).conditioning_codes(get_task(task), latents),
        guided=layout.text_span is not None and sample.guidance != 1,
        truncation=Truncation.of(sample),
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
    experiment: Experiment,
    task: Task,
    paths: Sequence[str],
    conditioning_frames: int,
    ends: Sequence[str] = (),
    depths: Sequence[str] = (),
) -> Given:
    """What the task takes of the files, in the run's clip format.

    A condition is a whole clip, and its sound is filled up with silence; known frames are read as
    far as they go, and their sound with them.

    Args:
      ends: files whose first frames end the clips.
      depths: videos or pictures in which near is bright.

    Raises UserError (MediaError) for a file that does not give it.
    """
    if not paths:
        return Given()
    if task.condition == ("audio",):
        return Given(sounds=np.stack([_read_sound(path, experiment.clip) for path in paths]))
    whole = "video" in task.condition and task.made != "prediction" and not ends
    frames = experiment.clip.frames if whole else max(conditioning_frames, 1)
    wanted = experiment.clip.replace(frames=frames)
    clips = {path: media.read_clip(path, wanted) for path in paths}
    videos = np.stack([clips[path].video for path in paths])
    if not task.has_audio or not task.conditioning_latents[1]:
        return Given(
            videos=videos,
            ends=np.stack([media.read_clip(path, wanted).video for path in ends]) if ends else None,
            depths=np.stack([_read_depth(p, experiment.clip) for p in depths]) if depths else None,
        )
    for path, clip in clips.items():
        if clip.audio is None:
            raise media.MediaError(path, f"no sound, which task {task.name} continues")
    return Given(videos=videos, sounds=np.stack([clips[path].audio for path in paths]))


def _read_depth(path: str, clip: ClipSpec) -> np.ndarray:
    """Distances float32 (T, H, W), larger is farther, of a film or a picture in which near is bright."""
    frames = [frame for frame, _ in itertools.islice(media.read_frames(path, clip), clip.frames)]
    if len(frames) not in (1, clip.frames):
        raise media.MediaError(
            path, f"shows depth for {len(frames)} frames, expected {clip.frames}, or a picture for all of them"
        )
    shown = np.broadcast_to(np.stack(frames), (clip.frames, clip.height, clip.width, 3))
    return 255 - shown.mean(axis=-1, dtype=np.float32)


def _read_sound(path: str, clip: ClipSpec) -> np.ndarray:
    """int16 (clip.samples,) from the file's beginning, silence after its end."""
    seconds = clip.samples / clip.sample_rate_hz
    sound = media_sound.read_sound(path, clip.sample_rate_hz, max_seconds=seconds)
    if sound.notes:
        _LOG.info("%s: %s", path, ", ".join(sound.notes))
    samples = sound.samples[: clip.samples]
    return np.pad(samples, (0, clip.samples - len(samples)))
