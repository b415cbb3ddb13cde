"""Values derived from an experiment: its format, layouts, groups and conditioning frames, each computed once.

A command resolves its experiment and hands this on; nothing here touches a device or a file.
"""

from __future__ import annotations

import dataclasses
import fractions
import functools
import math
from collections.abc import Mapping
from typing import Any

from poet import streams
from poet.runs import networks
from poet.spec import Experiment, UserError, as_written
from poet.spec.vocabulary import DURATIONS, Vocabulary
from poet.streams.audio import frames_within, time_of_frames
from poet.streams.base import Format, Stream
from poet.tasks.layout import Layout
from poet.tasks.registry import LANGUAGE_MODEL, TASKS, Task, get_task, group_name, task_layout

# The paper's short clip: longer ones say how long they are.
SHORT_FRAMES = 17

Shares = dict[str, fractions.Fraction]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """An experiment and all that is derived from it.

    Whatever a run cannot have raises `UserError` when it is first asked for: clips that no duration token stands
    for, a mixture without tasks, a task that needs a tokenizer which the run lacks.
    """

    spec: Experiment

    @functools.cached_property
    def format(self) -> Format:
        """Sizes of all streams, from the clip format and the tokenizers.

        Raises UserError for clips that no duration token stands for.
        """
        clip, audio, text = self.spec.clip, self.spec.audio_tokenizer, self.spec.text
        video, factor = self.spec.video_tokenizer.grid(clip.frames, clip.height, clip.width), self._factor
        if clip.frames > SHORT_FRAMES and video[0] >= DURATIONS:
            raise UserError(
                f"CLIP.frames = {clip.frames} are {video[0]} latent frames; the vocabulary has tokens for "
                f"{DURATIONS - 1} at most: use shorter clips, and continue them in sampling"
            )
        known = (frames_within(audio, clip, self.frames_of(n)) if n else 0 for n in range(video[0] + 1))
        return Format(
            video=video,
            text_length=text.length,
            audio_frames=audio.frames(clip.samples) if audio.path else 0,
            portrait=clip.portrait,
            long=clip.frames > SHORT_FRAMES,
            pieces_length=text.length if text.pieces else 0,
            audio_time=time_of_frames(audio, clip, factor),
            known_audio=tuple(known) if audio.path else (),
            opening_audio=self.spec.conditioning.sound_place == "prefix",
            clip=clip,
        )

    @property
    def _factor(self) -> int:
        """Frames of a latent frame but the first."""
        return self.spec.video_tokenizer.factor[0]

    def frames_of(self, latents: int) -> int:
        """Frames that so many latent frames show: 0, or 1 + (latents - 1) * factor."""
        return 1 + (latents - 1) * self._factor if latents else 0

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The id space."""
        return Vocabulary(self.spec.vocabulary)

    @property
    def devices(self) -> int:
        """Devices of the smallest mesh that MESH allows."""
        mesh = self.spec.mesh
        return math.prod(max(size, 1) for size in (mesh.data, mesh.fsdp, mesh.sequence, mesh.tensor))

    # ------------------------------------------------------------------------------------ the mixture

    @functools.cached_property
    def mixture(self) -> tuple[Task, ...]:
        """The tasks that DATA.mixture_rates gives a positive rate."""
        return tuple(get_task(name) for name, rate in self.spec.data.mixture_rates.items() if rate > 0)

    @functools.cached_property
    def network(self) -> str:
        """Name of the network that does the tasks of the mixture; UserError where they are of several."""
        tasks: dict[str, list[str]] = {}
        for task in self.mixture:
            tasks.setdefault(task.network, []).append(task.name)
        if len(tasks) > 1:
            found = "; ".join(f"{name}: {', '.join(names)}" for name, names in tasks.items())
            raise UserError(
                f"DATA.mixture_rates has tasks of {len(tasks)} networks ({found}): give each network a run of its own"
            )
        return next(iter(tasks), LANGUAGE_MODEL)

    @functools.cached_property
    def layouts(self) -> dict[str, Layout]:
        """Task of the mixture -> its layout.

        Raises UserError for a mixture of none, an unknown one, or one that a clip leaves nothing to predict.
        """
        if not self.mixture:
            raise UserError(
                "DATA.mixture_rates names no task: set e.g. DATA.mixture_rates = {'text_to_video': 1.0} "
                f"(tasks: {', '.join(TASKS)})"
            )
        for task in self.mixture:
            self.conditioning_range(task)
        return {task.name: self.layout(task) for task in self.mixture}

    @functools.cached_property
    def groups(self) -> dict[str, tuple[Layout, dict[str, float]]]:
        """Group -> (layout, rate of each of its tasks), in a stable order."""
        found: dict[str, tuple[Layout, dict[str, float]]] = {}
        for name, layout in sorted(self.layouts.items()):
            _, rates = found.setdefault(group_name(get_task(name)), (layout, {}))
            rates[name] = self.spec.data.mixture_rates[name]
        return found

    @functools.cached_property
    def batches(self) -> dict[str, int]:
        """Group -> sequences per step.

        `DATA.batch` counts those of the longest group; with `DATA.equal_tokens` shorter groups take
        as many more as have no more tokens, so that every step costs about the same (VideoPoet §5.1:
        about five times as many images as videos), in multiples of `DATA.batch_multiple`.
        """
        data, lengths = self.spec.data, {name: layout.length for name, (layout, _) in self.groups.items()}
        if not data.equal_tokens:
            return dict.fromkeys(lengths, data.batch)
        tokens, multiple = data.batch * max(lengths.values()), data.batch_multiple or data.batch
        return {name: max(1, tokens // length // multiple) * multiple for name, length in lengths.items()}

    @functools.cached_property
    def phases(self) -> list[tuple[int, Shares]]:
        """(Step that ends a phase of the run, share of its steps of each group), in order.

        Raises UserError where a phase wants images or other output that no task of the mixture makes.
        """
        steps, parts = self.spec.train.steps, self.spec.data.image_fractions
        rates = {name: sum(map(as_written, tasks.values())) for name, (_, tasks) in self.groups.items()}
        phases = [(round(until * steps), self._phase(rates, as_written(part))) for until, part in parts]
        return phases or [(steps, rates)]

    def _phase(self, rates: Shares, part: fractions.Fraction) -> Shares:
        """Rates scaled to give images that part of the steps."""
        closes = {name: streams.get(self.groups[name][0].output_streams[-1]).closes for name in rates}
        found = {}
        for closing, share, what in ((False, part, "images"), (True, 1 - part, "anything else")):
            members = {name: rate for name, rate in rates.items() if closes[name] is closing}
            if share and not members:
                raise UserError(
                    f"DATA.image_fractions = {self.spec.data.image_fractions} gives {float(share):g} of a phase to "
                    f"{what}, which no task of DATA.mixture_rates makes: give such a task a rate, or change "
                    "the fraction"
                )
            if share > 0:
                found |= {name: rate * share / sum(members.values()) for name, rate in members.items()}
        return found

    @property
    def usual_tokens(self) -> float:
        """Tokens that a step predicts where nothing is known, the mean over the steps of all groups."""
        shares = {name: sum(tasks.values()) for name, (_, tasks) in self.groups.items()}
        predicted = {n: self.batches[n] * layout.loss_length for n, (layout, _) in self.groups.items()}
        return sum(shares[name] * predicted[name] for name in shares) / sum(shares.values())

    @property
    def has_audio(self) -> bool:
        """Whether a task of the mixture takes or gives sound."""
        return any(task.has_audio for task in self.mixture)

    @property
    def has_text(self) -> bool:
        """Whether a task of the mixture is given a text."""
        return any(layout.text_span for layout in self.layouts.values())

    @functools.cached_property
    def stored_streams(self) -> tuple[Stream, ...]:
        """The streams of a token store for the mixture: every base stream of the run, and those of its tasks."""
        base = [s for s in streams.STREAMS.values() if s.base and not s.lacking(self.format)]
        named = {s.stored for task in self.mixture for s in (*task.conditions, *task.predicted) if s.stored}
        others = sorted(named - {stream.stored for stream in base})
        return (*base, *map(streams.in_store, others))

    def load(self, stream: Stream, mesh: Any = None) -> Any:
        """The frozen network of a stream, on a mesh or one device; UserError for none, or one that does not fit."""
        return stream.load(getattr(self.spec, stream.section, None), self.spec.vocabulary, mesh)

    @functools.cached_property
    def used_networks(self) -> dict[str, Stream]:
        """Frozen network that the mixture's codes come from -> a stream that loads it; the video's is always used."""
        used = {networks.VIDEO, *(name for task in self.mixture for name in task.frozen_networks)}
        return {s.network: s for s in self.stored_streams if s.network in used}

    # ------------------------------------------------------------------------------- one of the tasks

    @functools.cached_property
    def _layouts(self) -> dict[Task, Layout]:
        return {}

    def layout(self, task: Task) -> Layout:
        """The layout of a task, of the mixture or not.

        Raises UserError for a task with sound, or one that writes, in a run without it.
        """
        if task not in self._layouts:
            self._layouts[task] = task_layout(task, self.format, self.vocabulary)
        return self._layouts[task]

    def with_layouts(self, layouts: Mapping[Task, Layout]) -> Resolved:
        """The same with layouts as they were recorded, whatever this version would lay out."""
        found = Resolved(self.spec)
        found._layouts.update(layouts)
        return found

    def conditioning_range(self, task: Task) -> tuple[int, int]:
        """Fewest and most latent frames that open the output as given.

        Those of the declaration, less what would leave no latent frame to predict.

        Raises UserError where the clips of the run are given whole even at the fewest.
        """
        low, high = task.conditioning_latents
        latents = self.format.video[0]
        shown = max(low, *(stream.shows_latents for stream in task.conditions), 0)
        if shown >= latents and any(s.shows and s.grid(self.format)[0] == latents for s in task.predicted):
            raise UserError(
                f"task {task.name} is given {self.frames_of(shown)} of the {self.spec.clip.frames} "
                f"frames of a clip, which leaves nothing to predict: set CLIP.frames to "
                f"{self.frames_of(shown + 1)} or more, or drop the task"
            )
        return low, min(high, latents - 1)

    def conditioning_choices(self, task: Task) -> dict[int, int]:
        """Numbers of frames, one at least, that may open the output as given -> their latent frames."""
        low, high = self.conditioning_range(task)
        return {self.frames_of(n): n for n in range(max(low, 1), high + 1)}

    def conditioning_codes(self, task: Task, latents: int) -> tuple[int, ...]:
        """The number of conditioning codes at the start of each loss span, by conditioning latent frames.

        A visual span opens with whole latent frames, every level of the audio with the frames of codes
        that lie wholly within the time of the known video frames.
        """
        spans = self.layout(task).loss_spans
        return tuple(streams.in_layout(span.segment.stream).known(self.format, latents) for span in spans)

    def eval_latents(self, task: Task) -> int:
        """Latent frames given in evaluation: those of EVAL.conditioning_frames where the task leaves a choice.

        A task that takes one number of frames is given that, one that takes none nothing.

        Raises UserError where the task takes several numbers, and that is none of them.
        """
        choices, frames = self.conditioning_choices(task), self.spec.eval.conditioning_frames
        if len(choices) < 2:
            return max(choices.values(), default=0)
        if frames not in choices:
            nearest = min(choices, key=lambda n: abs(n - frames))
            raise UserError(
                f"EVAL.conditioning_frames = {frames}: task {task.name} takes {' or '.join(map(str, choices))} "
                f"in clips of {self.spec.clip.frames} frames; set EVAL.conditioning_frames = {nearest}"
            )
        return choices[frames]
