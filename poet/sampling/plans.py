"""The static plan of a decoding program, and its conditioning ids: both follow from the layout.

Given codes that open the output stand in the prefill where they lie before the first sampled token: those of the first
span.  The others, which open later spans such as each level of the audio, are forced in the loop.

N samples, B batch, G given positions, L text positions, E width of a text state, K known codes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from poet import streams
from poet.sampling.fronts import Fronts, fronts
from poet.sampling.samplers import Truncation
from poet.spec import UserError
from poet.tasks.layout import HIDDEN, TEXT_STREAM, Layout, Span

# Samples that are sampled together where nobody says how many.
DEFAULT_BATCH = 8


class Text(NamedTuple):
    """Text encoder states: float32 [N, L, E], and int32 [N] pieces of each (0 is no text)."""

    states: np.ndarray
    lengths: np.ndarray

    def rows(self, index: np.ndarray) -> Text:
        return Text(self.states[index], self.lengths[index])


class Step(NamedTuple):
    """A run of positions that one loop decodes.

    `forced` is the place of its first id among the given ones; None where ids are sampled, or where
    the layout tells them.
    """

    span: Span
    forced: int | None = None


class Chunk(NamedTuple):
    """The part that one call of a program decodes: a latent frame of video, or a whole span of any other stream.

    The steps count positions from `start`, so that frames of a clip share one program.
    """

    start: int
    steps: tuple[Step, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The static plan of a decoding program; hashable.

    Attributes:
      layout: the task's sequence.
      known: leading codes of each loss span that are given, not sampled; () is none.
      guided: whether unconditional rows ride along for classifier-free guidance.
      scaled: whether guidance is an input of the model, in one pass (`SampleSpec.one_pass`).
      dropped: what these rows go without: streams of the condition, and "text"; () is the text alone.
      truncation: static sampler settings.
      lags: of rows and of latent frames (`poet.sampling.fronts`); (0, 0) is one code after the other.
    """

    layout: Layout
    known: tuple[int, ...] = ()
    guided: bool = False
    scaled: bool = False
    dropped: tuple[str, ...] = ()
    truncation: Truncation = Truncation()
    lags: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        spans = self.layout.loss_spans
        object.__setattr__(self, "known", tuple(self.known) or (0,) * len(spans))
        for span, known in zip(spans, self.known, strict=True):
            if not 0 <= known < span.segment.length:
                raise UserError(
                    f"{known} conditioning codes leave nothing to sample of the {span.segment.length} of "
                    f"stream {span.segment.stream!r}; give fewer conditioning frames"
                )
        dropped = (self.dropped or (TEXT_STREAM,)) if self.guided else ()
        object.__setattr__(self, "dropped", dropped)
        if TEXT_STREAM in dropped and self.layout.text_span is None:
            raise UserError("guidance needs a text to be guided by, and this task has none")

    @property
    def condition(self) -> tuple[str, ...]:
        """Streams whose codes the caller gives."""
        return self.layout.given_streams

    @functools.cached_property
    def hidden(self) -> np.ndarray:
        """bool [prefilled]: positions whose codes the unconditional rows go without."""
        dropped = [np.full(s.length, s.may_hide and s.stream in self.dropped) for s in self.layout.segments]
        return np.concatenate(dropped)[: self.prefilled]

    @functools.cached_property
    def opening(self) -> dict[str, int]:
        """Output stream -> how many of its codes are given, all its spans together."""
        counts = dict.fromkeys(self.layout.output_streams, 0)
        for span, known in zip(self.layout.loss_spans, self.known):
            counts[span.segment.stream] += known
        return counts

    def split(self, conditioning_NxK: np.ndarray) -> list[tuple[Span, np.ndarray]]:
        """Each loss span with those of the K known codes that open it."""
        parts = np.split(conditioning_NxK, np.cumsum(self.known)[:-1], axis=1)
        return list(zip(self.layout.loss_spans, parts))

    @property
    def prefilled(self) -> int:
        """Leading positions: prefix, first boundary tokens, known codes of the first span."""
        return self.layout.loss_spans[0].start + self.known[0]

    @functools.cached_property
    def given(self) -> np.ndarray:
        """int [G]: the given positions; the prefilled ones, then those forced in the loop."""
        later = zip(self.layout.loss_spans[1:], self.known[1:])
        forced = [np.arange(span.start, span.start + known) for span, known in later]
        return np.concatenate([np.arange(self.prefilled), *forced]).astype(np.int64)

    @property
    def forced(self) -> int:
        """Given positions that are not prefilled."""
        return sum(self.known[1:])

    @property
    def sampled_stop(self) -> int:
        """End of the last position that is sampled; what follows is forced."""
        return self.layout.loss_spans[-1].stop

    @property
    def tail(self) -> list[int]:
        """The ids after the last sampled position, which the layout forces."""
        return [span.segment.ids.low for span in self.layout.spans if span.start >= self.sampled_stop]

    @property
    def fan(self) -> int:
        """Rows per sample."""
        return 2 if self.guided else 1

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """The parts to decode, in order; a span that opens with conditioning codes gives two steps."""
        known = dict(zip(self.layout.loss_spans[1:], self.known[1:]))
        steps, place = [], 0
        for span in self.layout.spans:
            if not self.prefilled < span.stop <= self.sampled_stop:
                continue
            start = max(span.start, self.prefilled)
            opening = known.get(span, 0)
            if opening:
                steps.append(Step(Span(span.segment, start, start + opening), place))
                start, place = start + opening, place + opening
            steps.append(Step(Span(span.segment, start, span.stop)))
        return tuple(steps)

    def fronts(self, span: Span) -> Fronts | None:
        """In which order the codes of a step's span are sampled; None is one after the other."""
        if not self.lags[0] or span.segment.frame is None:
            return None
        _, rows, columns = span.segment.grid
        return fronts(((span.stop - span.start) // span.segment.frame, rows, columns), *self.lags)

    @property
    def model_steps(self) -> int:
        """How often the model runs after the prefill."""
        orders = [(span, self.fronts(span) if forced is None else None) for span, forced in self.steps]
        return sum(span.stop - span.start if order is None else len(order.steps.sampled) for span, order in orders)

    @functools.cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """`steps` cut after every latent frame of pictures and every other span that is sampled.

        Frames that overlap in time are one chunk.
        """
        chunks, held = [], []
        for span, forced in self.steps:
            frame = span.segment.frame if forced is None and not self.lags[1] else None
            size = frame or span.stop - span.start
            for start in range(span.start, span.stop, size):
                held.append(Step(Span(span.segment, start, min(start + size, span.stop)), forced))
                if forced is None and not span.segment.forced:
                    chunks.append(_from_zero(held))
                    held = []
        return tuple(chunks)


def _from_zero(steps: Sequence[Step]) -> Chunk:
    base = steps[0].span.start
    moved = [Step(Span(s.segment, s.start - base, s.stop - base), forced) for s, forced in steps]
    return Chunk(base, tuple(moved))


def given_tokens(plan: Plan, codes: Mapping[str, np.ndarray], conditioning_NxK: np.ndarray | None = None) -> np.ndarray:
    """Ids of the given positions, int32 [N, G] in the order of `plan.given`.

    Args:
      codes: local codes [N, n] of every stream of the condition (`source` among them), -1 where a code
        is not given.  Streams that repeat what opens the output are taken from `conditioning_NxK`.
      conditioning_NxK: local codes that open the loss spans, one after the other: K = sum(plan.known).

    Raises:
      UserError: codes of another shape, or missing.
    """
    layout, count = plan.layout, len(next(iter(codes.values())))
    conditioning_NxK = np.zeros((count, 0), np.int32) if conditioning_NxK is None else np.asarray(conditioning_NxK)
    expected = (count, sum(plan.known))
    if conditioning_NxK.shape != expected:
        raise UserError(f"expected known codes of shape {expected}, got {conditioning_NxK.shape}")
    opening = plan.split(conditioning_NxK)
    codes = {**codes, **_repeated(layout, count, opening)}
    filled = {n: np.zeros((count, size), np.int32) for n, size in layout.streams.items()}
    for name in layout.condition_streams:
        expected = (count, layout.streams[name])
        if name not in codes or np.shape(codes[name]) != expected:
            found = f"got {np.shape(codes[name])}" if name in codes else "none were given"
            raise UserError(f"expected codes of stream {name!r} of shape {expected}, {found}")
        filled[name] = np.asarray(codes[name])
    for span, known in opening:
        part = span.segment.part
        filled[span.segment.stream][:, part : part + known.shape[1]] = known
    return np.ascontiguousarray(layout.assemble(filled)[:, plan.given], np.int32)


def _repeated(layout: Layout, count: int, opening: Sequence[tuple[Span, np.ndarray]]) -> dict[str, np.ndarray]:
    """Streams of the prefix that repeat what opens an output stream, as far as it is known."""
    repeats = {name: streams.in_layout(name).opens for name in layout.condition_streams}
    found = {n: np.full((count, layout.streams[n]), HIDDEN, np.int32) for n, opened in repeats.items() if opened}
    for name, codes_NxM in found.items():
        parts = [s for s in layout.segments if s.stream == name]
        known = [codes for span, codes in opening if span.segment.stream == repeats[name]]
        for segment, codes in zip(parts, known, strict=True):
            codes_NxM[:, segment.part : segment.part + codes.shape[1]] = codes
    return found
