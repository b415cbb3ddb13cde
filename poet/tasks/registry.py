"""The tasks: each a short declaration; adding one touches this file alone.

A task names the streams of its condition and of its output.  Its layout, data pipeline, loss,
sampling and evaluation follow.  Tasks with equal layouts train in one group.
"""

from __future__ import annotations

import dataclasses

from poet.specs import Experiment, UserError, choose
from poet.tasks.layout import Format, Layout, build_layout
from poet.vocabulary import Special, Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One declaration.

    Attributes:
      name: the key of `DATA.rates` and of `--task`.
      token: the `<task>` id, one per distinct output type (VideoPoet §3.2).
      text: whether the layout has text positions (a text may still be dropped or empty).
      condition: streams of the bidirectional prefix.
      output: streams to be predicted.
      known_latents: smallest and largest number of latent frames that open the output as given;
        they carry no loss in training and are forced in sampling (spec §1.3, form a).
    """

    name: str
    token: Special
    text: bool
    condition: tuple[str, ...] = ()
    output: tuple[str, ...]
    known_latents: tuple[int, int] = (0, 0)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="unconditional", token=Special.TASK_VIDEO, text=False, output=("video",)
        ),
        Task(name="text_to_image", token=Special.TASK_VIDEO, text=True, output=("image",)),
        Task(name="text_to_video", token=Special.TASK_VIDEO, text=True, output=("video",)),
        Task(
            name="image_to_video",
            token=Special.TASK_VIDEO,
            text=True,
            output=("video",),
            known_latents=(1, 1),
        ),
        Task(
            name="frame_prediction",
            token=Special.TASK_VIDEO,
            text=False,
            output=("video",),
            known_latents=(1, 3),
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of this name; UserError with near names otherwise."""
    return choose(name, TASKS, "task")


def run_format(experiment: Experiment) -> Format:
    """Stream sizes of a run, from its clip format and its tokenizers."""
    clip = experiment.clip
    return Format(
        video=experiment.video_tokenizer.grid(clip.frames, clip.height, clip.width),
        text_length=experiment.text.length,
        portrait=clip.portrait,
    )


def task_layout(task: Task, fmt: Format, vocabulary: Vocabulary) -> Layout:
    """The static layout of a task in a run."""
    return build_layout(
        task_token=task.token,
        text=task.text,
        condition=task.condition,
        output=task.output,
        fmt=fmt,
        vocabulary=vocabulary,
    )


def layouts(experiment: Experiment) -> dict[str, Layout]:
    """Task name -> layout for every task that the mixture gives a positive rate."""
    fmt, vocabulary = run_format(experiment), Vocabulary(experiment.vocabulary)
    names = [n for n, rate in experiment.data.rates.items() if rate > 0]
    if not names:
        raise UserError(
            "DATA.rates names no task: set e.g. DATA.rates = {'text_to_video': 1.0} "
            f"(tasks: {', '.join(TASKS)})"
        )
    return {name: task_layout(get_task(name), fmt, vocabulary) for name in names}


def group_name(task: Task) -> str:
    """Name of the group of a task: tasks that share it share a layout.

    >>> group_name(TASKS["image_to_video"])
    'text-to-video'
    """
    condition = [*(["text"] if task.text else []), *task.condition]
    prefix = "+".join(condition) + "-to-" if condition else ""
    return prefix + "+".join(task.output)


def groups(experiment: Experiment) -> dict[str, tuple[Layout, dict[str, float]]]:
    """Group name -> (layout, rate of each of its tasks), in a stable order."""
    table = layouts(experiment)
    result: dict[str, tuple[Layout, dict[str, float]]] = {}
    for name, layout in sorted(table.items()):
        members = result.setdefault(group_name(get_task(name)), (layout, {}))[1]
        members[name] = experiment.data.rates[name]
    return result


def group_batches(experiment: Experiment) -> dict[str, int]:
    """Sequences per step of each group.

    `DATA.batch` counts those of the longest group; with `DATA.equal_tokens` shorter groups take
    proportionally more, so that every step costs about the same (VideoPoet §5.1: about five times
    as many images as videos).
    """
    table = groups(experiment)
    longest = max(layout.length for layout, _ in table.values())
    batch = experiment.data.batch
    if not experiment.data.equal_tokens:
        return dict.fromkeys(table, batch)
    return {g: batch * max(1, longest // layout.length) for g, (layout, _) in table.items()}
