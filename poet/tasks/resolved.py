"""What follows from an experiment: its format, layouts, groups and known frames, each computed once.

A command resolves its experiment and hands this on; nothing here touches a device or a file.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from poet.spec import Experiment
from poet.spec.vocabulary import Vocabulary
from poet.streams.base import Stream
from poet.tasks import registry
from poet.tasks.layout import Format, Layout
from poet.tasks.registry import Shares, Task


@dataclasses.dataclass(frozen=True)
class Resolved:
    """An experiment and all that is derived from it.

    Whatever a run cannot have raises `UserError` when it is first asked for: clips that no duration token stands
    for, a mixture without tasks, a task that needs a tokenizer which the run lacks.
    """

    spec: Experiment

    @functools.cached_property
    def format(self) -> Format:
        """Sizes of all streams."""
        return registry.run_format(self.spec)

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
        """The tasks that DATA.rates gives a positive rate."""
        return tuple(registry.mixture(self.spec))

    @functools.cached_property
    def layouts(self) -> dict[str, Layout]:
        """Task of the mixture -> its layout."""
        return registry.layouts(self.spec)

    @functools.cached_property
    def groups(self) -> dict[str, tuple[Layout, dict[str, float]]]:
        """Group -> (layout, rate of each of its tasks), in a stable order."""
        return registry.groups(self.spec)

    @functools.cached_property
    def batches(self) -> dict[str, int]:
        """Group -> sequences per step."""
        return registry.group_batches(self.spec)

    @functools.cached_property
    def phases(self) -> list[tuple[int, Shares]]:
        """(Step that ends a phase of the run, share of its steps of each group), in order."""
        return registry.group_shares(self.spec)

    @property
    def usual_tokens(self) -> float:
        """Tokens that a step predicts where nothing is known, the mean over the steps of all groups."""
        shares = {name: sum(tasks.values()) for name, (_, tasks) in self.groups.items()}
        predicted = {n: self.batches[n] * layout.loss_length for n, (layout, _) in self.groups.items()}
        return sum(shares[name] * predicted[name] for name in shares) / sum(shares.values())

    @property
    def has_audio(self) -> bool:
        """Whether a task of the mixture takes or gives sound."""
        return registry.has_audio(self.spec)

    @property
    def has_text(self) -> bool:
        """Whether a task of the mixture is given a text."""
        return any(layout.text_span for layout in self.layouts.values())

    @functools.cached_property
    def stored_streams(self) -> tuple[Stream, ...]:
        """What a token store for the mixture holds."""
        return registry.stored_streams(self.spec)

    @functools.cached_property
    def used_networks(self) -> dict[str, Stream]:
        """Frozen network that the mixture's codes come from -> a stream that loads it."""
        return registry.used_networks(self.spec)

    # ------------------------------------------------------------------------------- one of the tasks

    @functools.cached_property
    def _layouts(self) -> dict[Task, Layout]:
        return {}

    def layout(self, task: Task) -> Layout:
        """The layout of a task, of the mixture or not."""
        if task not in self._layouts:
            self._layouts[task] = registry.task_layout(task, self.format, self.vocabulary)
        return self._layouts[task]

    def known_range(self, task: Task) -> tuple[int, int]:
        """Fewest and most latent frames that open the output as given."""
        return registry.known_range(self.spec, task)

    def known_codes(self, task: Task, latents: int) -> tuple[int, ...]:
        """How many codes open each loss span as given, for known latent frames."""
        return registry.known_codes(self.spec, task, latents)

    def eval_latents(self, task: Task) -> int:
        """Latent frames given in evaluation (EVAL.known_frames)."""
        return registry.eval_latents(self.spec, task)
