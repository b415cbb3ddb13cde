"""What a task can be asked for: checks of a request before any device work."""

from __future__ import annotations

from typing import Sequence

from poet.specs import Experiment, UserError
from poet.tasks.registry import TASKS, Task, get_task, run_format


def check_request(
    experiment: Experiment, task: str, prompts: Sequence[str], known_frames: int, clips: int
) -> None:
    """Raises UserError unless the task can be asked for this; `clips` counts those given."""
    declared = get_task(task)
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
    low, high = allowed_latents(experiment, declared)
    if not low <= latents <= high:
        raise UserError(_known_message(experiment, declared, known_frames))
    if latents and not clips:
        raise UserError(f"{known_frames} known frames need a clip that shows them: give --clip")
    if clips and not latents:
        raise UserError(f"a clip was given but known_frames is 0: {_allowed(experiment, declared)}")


def known_latents(experiment: Experiment, known_frames: int) -> int:
    """Latent frames of that many frames; UserError unless 0 or 1 + k * factor."""
    if known_frames == 0:
        return 0
    clip = experiment.clip
    return experiment.video_tokenizer.grid(known_frames, clip.height, clip.width)[0]


def allowed_latents(experiment: Experiment, task: Task) -> tuple[int, int]:
    """Fewest and most known latents: the declaration's, always leaving one latent to draw."""
    low, high = task.known_latents
    return low, min(high, run_format(experiment).video[0] - 1)


def _allowed(experiment: Experiment, task: Task) -> str:
    low, high = allowed_latents(experiment, task)
    factor = experiment.video_tokenizer.factor[0]
    frames = [1 + factor * (latents - 1) for latents in range(max(low, 1), high + 1)]
    if not frames:
        return f"task {task.name} takes no known frames"
    return f"task {task.name} takes {' or '.join(map(str, frames))} known frames"


def _known_message(experiment: Experiment, task: Task, known_frames: int) -> str:
    opening = ", ".join(sorted(name for name, t in TASKS.items() if t.known_latents[1]))
    return (
        f"known_frames = {known_frames}: {_allowed(experiment, task)} "
        f"(tasks that continue known frames: {opening})"
    )
