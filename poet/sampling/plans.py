"""What a task's decoding program is, and whether what it is given fits it.

N samples, L text positions, E width of a text state, K known codes.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple

import numpy as np

from poet.tasks import given
from poet.sampling.decode import Plan
from poet.sampling.samplers import Truncation
from poet.spec import Experiment, SampleSpec, UserError
from poet.tasks.layout import HIDDEN, Layout
from poet.tasks.registry import get_task, known_codes, run_format, run_layout


class Text(NamedTuple):
    """Text encoder states: float32 [N, L, E], and int32 [N] pieces of each (0 is no text)."""

    states: np.ndarray
    lengths: np.ndarray

    def rows(self, index: np.ndarray) -> Text:
        return Text(self.states[index], self.lengths[index])


def latents_of(experiment: Experiment, task: str, codes: int) -> int:
    """The known latents whose codes are so many, all loss spans together."""
    latents = range(run_format(experiment).video[0])
    totals = [sum(known_codes(experiment, get_task(task), n)) for n in latents]
    if codes not in totals:
        raise UserError(
            f"{codes} known codes are no whole latent frames of task {task}: give one of {totals}"
        )
    return totals.index(codes)


def make_layout(experiment: Experiment, task: str) -> Layout:
    """The static layout of a task in a run."""
    return run_layout(experiment, get_task(task))


def make_plan(experiment: Experiment, task: str, sample: SampleSpec, latents: int) -> Plan:
    """The decoding program of a task; guided where there is text and the scale is not 1.

    Args:
      latents: known latent frames that open the output.
    """
    layout = make_layout(experiment, task)
    return Plan(
        layout=layout,
        known=known_codes(experiment, get_task(task), latents),
        guided=layout.text_span is not None and sample.guidance != 1,
        truncation=Truncation.of(sample),
    )


def check_given(
    experiment: Experiment,
    task: str,
    text: Text | None,
    negative: Text | None,
    condition: Mapping[str, np.ndarray],
    known: np.ndarray | None,
    count: int,
) -> None:
    """Raises UserError unless all of it has `count` rows of codes and states that there are."""
    texts = {"text": text, "negative": negative}
    states = {name: t.states for name, t in texts.items() if t is not None}
    given.rows({**states, **condition, "known": known}, count)
    for name, t in texts.items():
        if t is not None:
            given.rows({"states": t.states, "lengths": t.lengths})
            given.check_text(name, t.states, t.lengths, experiment.text.length)
    layout = make_layout(experiment, task)
    if states and layout.text_span is None:
        raise UserError(f"task {task} takes no text")
    for segment in (s for s in layout.segments if s.stream in condition and not s.forced):
        least = HIDDEN if segment.may_hide else 0
        given.check_codes(segment.stream, condition[segment.stream], segment.ids.size, least)
    if known is not None:
        opening = known_codes(experiment, get_task(task), latents_of(experiment, task, known.shape[1]))
        parts = np.split(known, np.cumsum(opening)[:-1], axis=1)
        for codes, span in zip(parts, layout.loss_spans):
            given.check_codes("known", codes, span.segment.ids.size)
