"""The tasks: each a short declaration; adding one touches this file alone.

A task names the streams of its condition and of its output.  Its layout, data pipeline, loss,
sampling and evaluation follow.  Tasks with equal layouts train in one group.
"""

from __future__ import annotations

import dataclasses
import fractions
import math

from poet import streams
from poet.runs import networks
from poet.spec import Experiment, UserError, as_written, choose
from poet.spec.vocabulary import DURATIONS, Special, Vocabulary
from poet.streams.audio import frames_within, time_of_frames
from poet.streams.base import CONDITION, OUTPUT, Format, Stream
from poet.streams.derived import Derived
from poet.tasks.layout import Layout, build_layout

# The paper's short clip: longer ones say how long they are.
SHORT_FRAMES = 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One declaration.

    Attributes:
      name: the key of `DATA.rates` and of `--task`.
      token: the `<task>` id, one per distinct output type (VideoPoet §3.2).
      text: whether the layout has text positions (a text may still be dropped or empty).
      condition: streams of the bidirectional prefix, by their names in `poet.streams`: such as "video", "image"
        (the first frame) or "audio".
      made: the derived stream that stands in the place of the clip itself.
      output: streams to be predicted; "pieces" is written text.
      known_latents: smallest and largest number of latent frames that open the output as given, and
        with them the sound of the same time; they carry no loss in training and are forced in
        sampling (spec §1.3, form a).  `known_range` is what a run makes of them.
    """

    name: str
    token: Special
    text: bool
    condition: tuple[str, ...] = ()
    made: str = ""
    output: tuple[str, ...]
    known_latents: tuple[int, int] = (0, 0)

    @property
    def given(self) -> tuple[Stream, ...]:
        """The streams of its condition, text apart."""
        made = streams.get(self.made) if self.made else None
        return tuple(made if made and made.slot == name else streams.get(name) for name in self.condition)

    @property
    def derived(self) -> Derived | None:
        """The stream of its condition that is derived from pixels, if there is one."""
        return next((stream for stream in self.given if isinstance(stream, Derived)), None)

    @property
    def predicted(self) -> tuple[Stream, ...]:
        """The streams of its output."""
        return tuple(map(streams.get, self.output))

    @property
    def openings(self) -> tuple[Stream, ...]:
        """Streams that say in the condition what opens an output without pictures, where pictures open, too."""
        if not self.known_latents[1] or not any(stream.shows for stream in self.predicted):
            return ()
        return tuple(stream for stream in streams.STREAMS.values() if stream.opens in self.output)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the frozen networks that its codes and texts come from (`poet.runs.networks`)."""
        names = {stream.network for stream in (*self.given, *self.predicted) if stream.network}
        return tuple(sorted(names | ({networks.TEXT} if self.text else set())))

    @property
    def has_audio(self) -> bool:
        """Whether the run needs an audio tokenizer."""
        return networks.AUDIO in self.networks

    @property
    def writes(self) -> bool:
        """Whether the run needs a vocabulary of text pieces."""
        return networks.PIECES in self.networks

    def stored(self, stream: str) -> str | None:
        """The stream of a token store whose leading codes fill a stream of the task's layout.

        None for one that needs nothing stored (`source`) and is filled with code 0.
        """
        named = {s.called(CONDITION): s for s in self.given} | {s.called(OUTPUT): s for s in self.predicted}
        found = named.get(stream) or streams.in_layout(stream)
        return found.stored if found else None

    @property
    def continues_sound(self) -> bool:
        """Whether given sound opens an output that has a picture before it."""
        return bool(self.openings)


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
            known_latents=(0, 1),
        ),
        Task(
            name="video_to_audio",
            token=Special.TASK_AUDIO,
            text=False,
            condition=("video",),
            output=("audio",),
        ),
        Task(
            name="audio_to_video",
            token=Special.TASK_VIDEO,
            text=False,
            condition=("audio",),
            output=("video",),
        ),
        Task(name="text_to_audio", token=Special.TASK_AUDIO, text=True, output=("audio",)),
        Task(
            name="text_to_video_with_audio",
            token=Special.TASK_VIDEO_AUDIO,
            text=True,
            output=("video", "audio"),
        ),
        Task(
            name="audio_video_continuation",
            token=Special.TASK_VIDEO_AUDIO,
            text=False,
            output=("video", "audio"),
            known_latents=(1, 3),
        ),
        Task(
            name="captioning",
            token=Special.TASK_TEXT,
            text=False,
            condition=("video",),
            output=("pieces",),
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of this name; UserError with near names otherwise."""
    return choose(name, TASKS, "task")


def run_format(experiment: Experiment) -> Format:
    """Stream sizes of a run, from its clip format and its tokenizers.

    Raises UserError for clips that no duration token stands for.
    """
    clip, audio = experiment.clip, experiment.audio_tokenizer
    video = experiment.video_tokenizer.grid(clip.frames, clip.height, clip.width)
    if clip.frames > SHORT_FRAMES and video[0] >= DURATIONS:
        raise UserError(
            f"CLIP.frames = {clip.frames} are {video[0]} latent frames; the vocabulary has tokens for "
            f"{DURATIONS - 1} at most: use shorter clips, and continue them in sampling"
        )
    return Format(
        video=video,
        text_length=experiment.text.length,
        audio_frames=audio.frames(clip.samples) if audio.path else 0,
        portrait=clip.portrait,
        long=clip.frames > SHORT_FRAMES,
        pieces_length=experiment.text.length if experiment.text.pieces else 0,
        audio_time=time_of_frames(audio, clip, experiment.video_tokenizer.factor[0]),
        known_audio=tuple(
            frames_within(audio, clip, frames_of(experiment, n)) if n else 0 for n in range(video[0] + 1)
        ) if audio.path else (),
        opening_audio=experiment.conditioning.given_sound == "prefix",
        clip=clip,
    )


def task_layout(task: Task, fmt: Format, vocabulary: Vocabulary) -> Layout:
    """The static layout of a task in a run.

    Raises UserError for a task with sound, or one that writes, in a run without it.
    """
    for stream in (*task.given, *task.predicted):
        if lacking := stream.lacking(fmt):
            raise UserError(f"task {task.name} {lacking}")
    known = task.known_latents[1]
    openings = [stream.name for stream in task.openings if math.prod(stream.grid(fmt, known))]
    return build_layout(
        task_token=task.token,
        text=task.text,
        condition=(*(stream.name for stream in task.given), *openings),
        output=task.output,
        fmt=fmt,
        vocabulary=vocabulary,
        known=known,
    )


def run_layout(experiment: Experiment, task: Task) -> Layout:
    """`task_layout` in the format of an experiment."""
    return task_layout(task, run_format(experiment), Vocabulary(experiment.vocabulary))


def known_range(experiment: Experiment, task: Task) -> tuple[int, int]:
    """Fewest and most latent frames that open the output as given in a run.

    Those of the declaration, less what would leave no latent frame to predict.

    Raises UserError where the clips of the run are given whole even at the fewest.
    """
    low, high = task.known_latents
    fmt = run_format(experiment)
    latents = fmt.video[0]
    shown = max(low, *(stream.shows_latents for stream in task.given), 0)
    if shown >= latents and any(s.shows and s.grid(fmt)[0] == latents for s in task.predicted):
        raise UserError(
            f"task {task.name} is given {frames_of(experiment, shown)} of the {experiment.clip.frames} "
            f"frames of a clip, which leaves nothing to predict: set CLIP.frames to "
            f"{frames_of(experiment, shown + 1)} or more, or leave the task out"
        )
    return low, min(high, latents - 1)


def frames_of(experiment: Experiment, latents: int) -> int:
    """Frames that so many latent frames show: 0, or 1 + (latents - 1) * factor."""
    return 1 + (latents - 1) * experiment.video_tokenizer.factor[0] if latents else 0


def known_choices(experiment: Experiment, task: Task) -> dict[int, int]:
    """Numbers of frames, one at least, that may open the output as given -> their latent frames."""
    low, high = known_range(experiment, task)
    return {frames_of(experiment, n): n for n in range(max(low, 1), high + 1)}


def eval_latents(experiment: Experiment, task: Task) -> int:
    """Latent frames given in evaluation: those of EVAL.known_frames where the task leaves a choice.

    A task that takes one number of frames is given that, one that takes none nothing.

    Raises UserError where the task takes several numbers, and that is none of them.
    """
    choices, frames = known_choices(experiment, task), experiment.eval.known_frames
    if len(choices) < 2:
        return max(choices.values(), default=0)
    if frames not in choices:
        nearest = min(choices, key=lambda n: abs(n - frames))
        raise UserError(
            f"EVAL.known_frames = {frames}: task {task.name} takes {' or '.join(map(str, choices))} "
            f"in clips of {experiment.clip.frames} frames; set EVAL.known_frames = {nearest}"
        )
    return choices[frames]


def known_codes(experiment: Experiment, task: Task, latents: int) -> tuple[int, ...]:
    """How many codes open each loss span of a task's layout as given, for known latent frames.

    A visual span opens with whole latent frames, every level of the audio with the frames of codes
    that lie wholly within the time of the known video frames.
    """
    fmt, spans = run_format(experiment), run_layout(experiment, task).loss_spans
    return tuple(streams.in_layout(span.segment.stream).known(fmt, latents) for span in spans)


def layouts(experiment: Experiment) -> dict[str, Layout]:
    """Task name -> layout for every task that the mixture gives a positive rate.

    Raises UserError for none, an unknown one, or one that a clip of the run leaves nothing to predict.
    """
    names = [n for n, rate in experiment.data.rates.items() if rate > 0]
    if not names:
        raise UserError(
            "DATA.rates names no task: set e.g. DATA.rates = {'text_to_video': 1.0} "
            f"(tasks: {', '.join(TASKS)})"
        )
    for name in names:
        known_range(experiment, get_task(name))
    return {name: run_layout(experiment, get_task(name)) for name in names}


def mixture(experiment: Experiment) -> list[Task]:
    """The tasks that the mixture gives a positive rate."""
    return [get_task(n) for n, rate in experiment.data.rates.items() if rate > 0]


def has_audio(experiment: Experiment) -> bool:
    """Whether a task of the mixture takes or gives sound."""
    return any(task.has_audio for task in mixture(experiment))


def made_conditions(experiment: Experiment) -> tuple[str, ...]:
    """Names of the derived streams that the mixture's tasks take."""
    return tuple(sorted({task.derived.name for task in mixture(experiment) if task.derived}))


def stored_streams(experiment: Experiment) -> tuple[Stream, ...]:
    """What a token store for the mixture holds: every base stream of the run, and what its tasks name beside them."""
    base = [s for s in streams.STREAMS.values() if s.base and s.configured(experiment)]
    named = {s.stored for task in mixture(experiment) for s in (*task.given, *task.predicted) if s.stored}
    others = sorted(named - {stream.stored for stream in base})
    return (*base, *map(streams.in_store, others))


def used_networks(experiment: Experiment) -> dict[str, Stream]:
    """Frozen network that the mixture's codes come from -> a stream that loads it; that of the video is always used."""
    used = {networks.VIDEO, *(name for task in mixture(experiment) for name in task.networks)}
    return {s.network: s for s in stored_streams(experiment) if s.network in used}


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


Shares = dict[str, fractions.Fraction]


def group_shares(experiment: Experiment) -> list[tuple[int, Shares]]:
    """The phases of a run: (step that ends it, share of its steps of each group), in order.

    Raises UserError where a phase wants images or other output that no task of the mixture makes.
    """
    table, steps = groups(experiment), experiment.train.steps
    rates = {name: sum(map(as_written, tasks.values())) for name, (_, tasks) in table.items()}
    if not experiment.data.image_fractions:
        return [(steps, rates)]
    images = {n: rate for n, rate in rates.items() if not streams.get(table[n][0].output_streams[-1]).closes}
    others = {n: rate for n, rate in rates.items() if n not in images}
    phases = []
    for until, share in experiment.data.image_fractions:
        parts = ((images, as_written(share), "images"), (others, 1 - as_written(share), "anything else"))
        phases.append((round(until * steps), {
            name: rate * part / sum(members.values())
            for members, part, what in parts
            if _asked(part, members, what, experiment)
            for name, rate in members.items()
        }))
    return phases


def _asked(part: fractions.Fraction, members: Shares, what: str, experiment: Experiment) -> bool:
    if part and not members:
        raise UserError(
            f"DATA.image_fractions = {experiment.data.image_fractions} gives {float(part):g} of a phase to "
            f"{what}, which no task of DATA.rates makes: give such a task a rate, or change the share"
        )
    return part > 0


def group_batches(experiment: Experiment) -> dict[str, int]:
    """Sequences per step of each group.

    `DATA.batch` counts those of the longest group; with `DATA.equal_tokens` shorter groups take
    as many more as have no more tokens, so that every step costs about the same (VideoPoet §5.1:
    about five times as many images as videos), in multiples of `DATA.batch_multiple`.
    """
    table = groups(experiment)
    longest = max(layout.length for layout, _ in table.values())
    batch = experiment.data.batch
    if not experiment.data.equal_tokens:
        return dict.fromkeys(table, batch)
    multiple = experiment.data.batch_multiple or batch
    return {
        g: max(1, batch * longest // layout.length // multiple) * multiple
        for g, (layout, _) in table.items()
    }
