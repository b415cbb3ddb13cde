"""The tasks: each a short declaration; to add one, edit only this file.

A task names the streams of its condition and of its output.  Its layout, data pipeline, loss,
sampling and evaluation follow.  Tasks with equal layouts train in one group.
"""

from __future__ import annotations

import dataclasses
import math

from poet import streams
from poet.runs import networks
from poet.spec import UserError, choose
from poet.spec.vocabulary import Special, Vocabulary
from poet.streams.base import CONDITION, OUTPUT, Format, Stream
from poet.streams.derived import Derived
from poet.tasks.layout import Layout, build_layout

# Names of networks (`poet.training.networks`); a task that names none is of the first.
LANGUAGE_MODEL, SUPER_RESOLUTION = "language_model", "super_resolution"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One declaration.

    Attributes:
      name: the key of `DATA.mixture_rates` and of `--task`.
      token: the `<task>` id, one per distinct output type (VideoPoet §3.2).
      text: whether the layout has text positions (a text may still be dropped or empty).
      condition: streams of the bidirectional prefix, by their names in `poet.streams`: such as "video", "image"
        (the first frame) or "audio".
      made: the derived condition that replaces the clip.
      output: streams to predict; "pieces" are text tokens.
      conditioning_latents: smallest and largest number of conditioning latent frames that open the output,
        with the sound of the same time; they carry no loss in training and are forced in
        sampling (spec §1.3, form a).  `Resolved.conditioning_range` is the range in a run.
      network: the network that does it, by its name in `poet.training.networks`; a run trains one.
    """

    name: str
    token: Special
    text: bool
    condition: tuple[str, ...] = ()
    made: str = ""
    output: tuple[str, ...]
    conditioning_latents: tuple[int, int] = (0, 0)
    network: str = LANGUAGE_MODEL

    @property
    def conditions(self) -> tuple[Stream, ...]:
        """The streams of its condition, text apart."""
        made = streams.get(self.made) if self.made else None
        return tuple(made if made and made.slot == name else streams.get(name) for name in self.condition)

    @property
    def derived(self) -> Derived | None:
        """The stream of its condition that is derived from pixels, if there is one."""
        return next((stream for stream in self.conditions if isinstance(stream, Derived)), None)

    @property
    def predicted(self) -> tuple[Stream, ...]:
        """The streams of its output."""
        return tuple(map(streams.get, self.output))

    @property
    def openings(self) -> tuple[Stream, ...]:
        """Streams that repeat in the prefix the opening of an output without frames, if frames open, too."""
        if not self.conditioning_latents[1] or not any(stream.shows for stream in self.predicted):
            return ()
        return tuple(stream for stream in streams.STREAMS.values() if stream.opens in self.output)

    @property
    def frozen_networks(self) -> tuple[str, ...]:
        """Names of the frozen networks of its codes and texts (`poet.runs.networks`)."""
        names = {stream.network for stream in (*self.conditions, *self.predicted) if stream.network}
        return tuple(sorted(names | ({networks.TEXT} if self.text else set())))

    @property
    def has_audio(self) -> bool:
        """Whether the run needs an audio tokenizer."""
        return networks.AUDIO in self.frozen_networks

    @property
    def writes(self) -> bool:
        """Whether the run needs a vocabulary of text tokens."""
        return networks.PIECES in self.frozen_networks

    def stored(self, stream: str) -> str | None:
        """The stream of a token store whose leading codes fill a stream of the task's layout.

        None for one that is not stored (`source`) and filled with code 0.
        """
        named = {s.called(CONDITION): s for s in self.conditions} | {s.called(OUTPUT): s for s in self.predicted}
        found = named.get(stream) or streams.in_layout(stream)
        return found.stored if found else None


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="unconditional", token=Special.TASK_VIDEO, text=False, output=("video",)),
        Task(name="text_to_image", token=Special.TASK_VIDEO, text=True, output=("image",)),
        Task(name="text_to_video", token=Special.TASK_VIDEO, text=True, output=("video",)),
        Task(
            name="image_to_video", token=Special.TASK_VIDEO, text=True, output=("video",), conditioning_latents=(1, 1)
        ),
        Task(
            name="frame_prediction",
            token=Special.TASK_VIDEO,
            text=False,
            output=("video",),
            conditioning_latents=(1, 3),
        ),
        # What is given stands in the prefix: form b of spec §1.3.
        Task(
            name="image_to_video_bidirectional",
            token=Special.TASK_VIDEO,
            text=True,
            condition=("image",),
            output=("video",),
        ),
        Task(
            name="frame_prediction_bidirectional",
            token=Special.TASK_VIDEO,
            text=False,
            condition=("video",),
            made="prediction",
            output=("video",),
        ),
        Task(
            name="frame_interpolation",
            token=Special.TASK_VIDEO,
            text=False,
            condition=("video",),
            made="interpolation",
            output=("video",),
        ),
        Task(
            name="inpainting",
            token=Special.TASK_VIDEO,
            text=False,
            condition=("video",),
            made="inpainting",
            output=("video",),
        ),
        Task(
            name="outpainting",
            token=Special.TASK_VIDEO,
            text=True,
            condition=("video",),
            made="outpainting",
            output=("video",),
        ),
        # Half of the samples open with the first frame as it is (VideoPoet §3.3: a subset).
        Task(
            name="stylization",
            token=Special.TASK_VIDEO,
            text=True,
            condition=("video",),
            made="structure",
            output=("video",),
            conditioning_latents=(0, 1),
        ),
        Task(name="video_to_audio", token=Special.TASK_AUDIO, text=False, condition=("video",), output=("audio",)),
        Task(name="audio_to_video", token=Special.TASK_VIDEO, text=False, condition=("audio",), output=("video",)),
        Task(name="text_to_audio", token=Special.TASK_AUDIO, text=True, output=("audio",)),
        Task(name="text_to_video_with_audio", token=Special.TASK_VIDEO_AUDIO, text=True, output=("video", "audio")),
        Task(
            name="audio_video_continuation",
            token=Special.TASK_VIDEO_AUDIO,
            text=False,
            output=("video", "audio"),
            conditioning_latents=(1, 3),
        ),
        Task(name="captioning", token=Special.TASK_TEXT, text=False, condition=("video",), output=("pieces",)),
        Task(
            name="super_resolution",
            token=Special.TASK_VIDEO,
            text=True,
            condition=("low_resolution",),
            output=("video",),
            network=SUPER_RESOLUTION,
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of this name; UserError with similar names otherwise."""
    return choose(name, TASKS, "task")


def task_layout(task: Task, fmt: Format, vocabulary: Vocabulary) -> Layout:
    """The static layout of a task in a run.

    Raises UserError for a task with sound, or one that writes, in a run without it.
    """
    for stream in (*task.conditions, *task.predicted):
        if lacking := stream.lacking(fmt):
            raise UserError(f"task {task.name} {lacking}")
    known = task.conditioning_latents[1]
    openings = [stream.name for stream in task.openings if math.prod(stream.grid(fmt, known))]
    return build_layout(
        task_token=task.token,
        text=task.text,
        condition=(*(stream.name for stream in task.conditions), *openings),
        output=task.output,
        fmt=fmt,
        vocabulary=vocabulary,
        known=known,
    )


def group_name(task: Task) -> str:
    """Name of the group of a task: tasks that share it share a layout.

    >>> group_name(TASKS["image_to_video"])
    'text-to-video'
    """
    condition = [*(["text"] if task.text else []), *task.condition]
    prefix = "+".join(condition) + "-to-" if condition else ""
    return prefix + "+".join(task.output)
