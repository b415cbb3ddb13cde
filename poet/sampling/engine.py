"""The decoding engine: from what N samples are given to whole sequences, and from these to media.

It owns what does not depend on where its programs come from: checks of what is given, its tokens, batches, the
row of each sample (which with the seed determines its noise), guidance's rows, the order of loops.  `Programs`
and `Codecs` are filled by a model in this process (`poet.sampling.generate`) or by an export
(`poet.serving.runtime`), so the model's code is not imported here.

N samples, B batch, S layout length, P prefilled and G given positions, L text positions, E width of a text
state, K known codes, T video frames, F audio samples.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from poet import streams
from poet.sampling import collapse
from poet.sampling.plans import DEFAULT_BATCH, Plan, Text, given_tokens
from poet.sampling.progress import OnStep, Progress, Sampling
from poet.sampling.samplers import SamplingParams
from poet.spec import SampleSpec, UserError
from poet.spec.vocabulary import SOURCES
from poet.tasks import arrays
from poet.tasks.layout import HIDDEN, TEXT_STREAM, Layout

_LOG = logging.getLogger(__name__)


class Sampled(dict[str, Any]):
    """The media of N samples: medium (`poet.streams.base.Stream.medium`) -> media.

    video: uint8 [N, T, H, W, 3], T is 1 for an image.  audio: int16 [N, F].  texts: N of them.  Each is None where
    the task does not generate it.

    Attributes:
      findings: for each sample how it collapsed, in words (`poet.sampling.collapse`); [] where it did not.
      codes: output stream -> the codes [N, n] that its media were decoded from.
      tokens: int32 [N, S], the whole sequences.
    """

    findings: Sequence[Sequence[str]] = ()
    codes: Mapping[str, np.ndarray] = {}
    tokens: np.ndarray = np.zeros((0, 0), np.int32)
    video = property(lambda self: self.get("video"))
    audio = property(lambda self: self.get("audio"))
    texts = property(lambda self: self.get("text"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """The conditions of N samples, a row each.

    Attributes:
      text, negative: states of texts, and of those that guidance leads away from; None is no text.
      condition: codes [N, n] of each stream of `Plan.condition`, -1 where a code is not given.
      known: codes [N, K] that open the loss spans, one after the other; None where none do.
      source: the data source whose look is asked for, an index below 128.
    """

    text: Text | None = None
    negative: Text | None = None
    condition: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    known: np.ndarray | None = None
    source: int = 0


class Row(NamedTuple):
    """What one sample is given: its tokens int32 [G], and states and lengths of text of its `Plan.fan` rows, if any."""

    given_G: np.ndarray
    text: tuple[np.ndarray, ...]


class Programs(Protocol):
    """Compiled programs of one plan.

    Attributes:
      batch: samples that a call takes; 0 takes any number.
      loops: calls of `decode` that finish a sequence, such as one for each latent frame.
      text_width: E.
    """

    plan: Plan
    batch: int
    loops: int
    text_width: int

    def prefill(self, tokens_BxP: np.ndarray, *text: np.ndarray) -> Any:
        """The state after the prefilled positions.

        `text` is states [R, L, E] and lengths [R] of R = B * plan.fan rows, or nothing for a layout without; of a plan
        that is scaled, beta [R] follows (`beta_rows`).
        """

    def decode(
        self, loop: int, state: Any, rows_B: np.ndarray, sampling_params: SamplingParams, forced_BxK: np.ndarray
    ) -> tuple[Any, Any]:
        """(int32 [B, q] of the next q positions, the state after them); `state` may not be used again."""

    def merge(self, state: Any, other: Any, taken_B: np.ndarray) -> Any:
        """One state of two after the same loop: of each sample the other's where `taken_B`, bool, says so.

        Neither may be used again.
        """


class Codecs(Protocol):
    """The tokenizers of a task's streams, which are called by their names in its layout."""

    def tokenize(self, stream: str, media: np.ndarray) -> np.ndarray:
        """Codes of N samples' media: all of a condition, or those that open an output stream; int32 [N, codes].

        Raises UserError for media that are too short or no such.
        """

    def detokenize(self, stream: str, codes_NxM: np.ndarray) -> Any:
        """Media of N samples, from all codes of the stream."""


class Media:
    """From media to codes and back, for one plan.

    Attributes:
      task: what messages call it.
    """

    def __init__(self, plan: Plan, codecs: Codecs, task: str):
        self.plan, self.codecs, self.task = plan, codecs, task

    def conditioning_codes(self, media: Mapping[str, np.ndarray]) -> np.ndarray:
        """Codes [N, K] that open the loss spans, in their order: of video first, then level by level of audio.

        Args:
          media: by medium, such as "video" uint8 [N, T, H, W, 3] and "audio" [N, F]; at least as long as what is
            known of them.
        """
        wanted = [stream for stream, codes in self.plan.opening.items() if codes]
        if not wanted:
            raise UserError(f"task {self.task} was compiled without conditioning frames: drop them")
        codes = {stream: self._tokenize(stream, media) for stream in wanted}
        arrays.rows(codes)
        return np.concatenate(list(codes.values()), axis=1)

    def condition_codes(
        self, media: Mapping[str, np.ndarray], cells: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Codes [N, n] of the streams that the task is conditioned on, by name in its layout.

        Args:
          media: by medium, those that the task takes; others are not read.
          cells: bool [N, t, h, w], which latents of the video are given; None is all of them.
        """
        codes = {name: self._tokenize(name, media) for name in self.plan.condition}
        if cells is None:
            return codes
        if not codes:
            raise UserError(f"task {self.task} takes no clip: drop cells")
        return {name: _hide(self.plan.layout, name, found, np.asarray(cells)) for name, found in codes.items()}

    def _tokenize(self, stream: str, media: Mapping[str, np.ndarray]) -> np.ndarray:
        medium = streams.in_layout(stream).medium
        if media.get(medium) is None:
            raise UserError(f"task {self.task} takes {medium} as its condition: pass {medium}")
        return self.codecs.tokenize(stream, media[medium])

    def detokenize(self, tokens_NxS: np.ndarray) -> Sampled:
        """The media of the output streams of whole sequences."""
        layout = self.plan.layout
        codes = layout.parse(tokens_NxS)
        names = layout.output_streams
        sampled = Sampled({streams.in_layout(n).medium: self.codecs.detokenize(n, codes[n]) for n in names})
        sampled.findings = collapse.findings(layout, tokens_NxS)
        sampled.codes, sampled.tokens = {name: codes[name] for name in names}, tokens_NxS
        return sampled


class Engine(Media):
    """Samples from programs of one plan; `on_step` is that of each `Sampling` that it starts."""

    def __init__(self, programs: Programs, codecs: Codecs, task: str, on_step: OnStep | None = None):
        super().__init__(programs.plan, codecs, task)
        self.programs, self._on_step = programs, on_step

    def sample(
        self,
        inputs: Inputs,
        count: int,
        sample: SampleSpec,
        *,
        batch: int = DEFAULT_BATCH,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> np.ndarray:
        """Samples whole sequences, int32 [N = count, S], that the layout parses.

        Args:
          sample: seed, temperature, top_p, min_p and guidance; what else it says is the plan's.
          batch: samples sampled together, where the programs leave it open; others are filled up.
          on_progress: called after every latent frame of every batch; what it raises ends the sampling.

        Raises:
          UserError: what is given does not fit the plan; before anything runs.
        """
        sampling = self.start(inputs, count, sample, batch=batch)
        for progress in sampling:
            if on_progress is not None:
                on_progress(progress)
        return sampling.tokens

    def start(self, inputs: Inputs, count: int, sample: SampleSpec, *, batch: int = DEFAULT_BATCH) -> Sampling:
        """`sample`, step by step: the iterator says after every latent frame what came, and can be left at any.

        Nothing is sampled before its first step; what is given is checked here.
        """
        self._check(inputs, count, batch)
        given_NxG = self._given(inputs, count)
        batch = self.programs.batch or min(batch, count)
        _LOG.info(
            "sampling %d of %s, %d at a time; the first time, compiling takes seconds to some minutes",
            count,
            self.task,
            batch,
        )
        parts = self._parts(inputs, given_NxG, sample, batch)
        return Sampling(self.plan.layout, count, parts, self.codecs.detokenize, self._on_step)

    def rows(self, inputs: Inputs, count: int) -> list[Row]:
        """What each of N samples is given, for a batch with samples of other requests (`poet.sampling.together`).

        Raises UserError as `sample`.
        """
        self._check(inputs, count, 1)
        text, fan = self._text_rows(inputs, np.arange(count)), self.plan.fan
        given_NxG = self._given(inputs, count)
        return [Row(given_NxG[n], tuple(array[fan * n : fan * (n + 1)] for array in text)) for n in range(count)]

    def _given(self, inputs: Inputs, count: int) -> np.ndarray:
        source = np.full((count, 1), inputs.source, np.int32)
        return given_tokens(self.plan, {**inputs.condition, "source": source}, inputs.known)

    def _parts(
        self, inputs: Inputs, given_NxG: np.ndarray, sample: SampleSpec, batch: int
    ) -> Generator[tuple[np.ndarray, int, np.ndarray]]:
        """(rows, first position, tokens) of every call of a program; rows that fill a batch up are not among them."""
        count, sampling_params = len(given_NxG), SamplingParams.of(sample)
        for start in range(0, count, batch):
            rows_B = np.arange(start, start + batch, dtype=np.int32)
            index, sampled = np.minimum(rows_B, count - 1), min(batch, count - start)
            text = self._text_rows(inputs, index) + beta_rows(self.plan, len(index), sample)
            for place, tokens in decode_batch(self.programs, given_NxG[index], rows_B, sampling_params, text):
                yield rows_B[:sampled], place, tokens[:sampled]

    def _check(self, inputs: Inputs, count: int, batch: int) -> None:
        """Raises UserError unless all of it has `count` rows of codes and states that there are."""
        if batch < 1 or count < 1 or not 0 <= inputs.source < SOURCES:
            raise UserError(
                f"batch = {batch}, count = {count}, source = {inputs.source}: batch and count must be "
                f"positive, source must lie in 0..{SOURCES - 1}"
            )
        texts = {"text": inputs.text, "negative": inputs.negative}
        texts = {name: text for name, text in texts.items() if text is not None}
        states = {name: text.states for name, text in texts.items()}
        arrays.rows({**states, **inputs.condition, "known": inputs.known}, count)
        for name, text in texts.items():
            self._check_text(name, text)
        self._check_codes(inputs)

    def _check_text(self, name: str, text: Text) -> None:
        span = self.plan.layout.text_span
        if span is None:
            raise UserError(f"task {self.task} takes no text")
        arrays.rows({"states": text.states, "lengths": text.lengths})
        positions = span.stop - span.start
        arrays.check_text(name, text.states, text.lengths, positions)
        expected = (len(text.lengths), positions, self.programs.text_width)
        if np.shape(text.states) != expected:
            raise UserError(f"the states of {name} have shape {np.shape(text.states)}, expected {expected}")

    def _check_codes(self, inputs: Inputs) -> None:
        for segment in self.plan.layout.segments:
            if segment.stream in inputs.condition and not segment.forced:
                least = HIDDEN if segment.may_hide else 0
                arrays.check_codes(segment.stream, inputs.condition[segment.stream], segment.ids.size, least)
        if inputs.known is not None:
            arrays.check_codes("known", inputs.known, np.iinfo(np.int32).max)
            for span, codes in self.plan.split(np.asarray(inputs.known)):
                arrays.check_codes("known", codes, span.segment.ids.size)

    def _text_rows(self, inputs: Inputs, index: np.ndarray) -> tuple[np.ndarray, ...]:
        """States and lengths of a batch; if guided, a conditional and an unconditional row per sample."""
        span, width = self.plan.layout.text_span, self.programs.text_width
        if span is None:
            return ()
        states = np.zeros((len(index), span.stop - span.start, width), np.float32)
        none = Text(states, np.zeros(len(index), np.int32))
        wanted = (inputs.text, inputs.negative if TEXT_STREAM in self.plan.dropped else inputs.text)[: self.plan.fan]
        rows = [none if text is None else text.rows(index) for text in wanted]
        states, lengths = (np.stack(a, 1).reshape(-1, *a[0].shape[1:]) for a in zip(*rows))
        return states.astype(np.float32), lengths.astype(np.int32)


def beta_rows(plan: Plan, count: int, sample: SampleSpec) -> tuple[np.ndarray, ...]:
    """What follows the texts of a batch where guidance is an input of the model: beta float32 [B], see `prefill`."""
    return (np.full(count, 1 / sample.schedule("guidance")[0], np.float32),) if plan.scaled else ()


def decode_batch(
    programs: Programs,
    given_BxG: np.ndarray,
    rows_B: np.ndarray,
    sampling_params: SamplingParams,
    text: tuple[np.ndarray, ...] = (),
) -> Iterator[tuple[int, np.ndarray]]:
    """Whole sequences of one batch, part by part: (first position, int32 [B, q]), conditioning tokens first.

    Args:
      given_BxG: what `given_tokens` makes.
      rows_B: id of each sample within its request, which with the seed determines its noise.
      text: as of `Programs.prefill`.
    """
    place = programs.plan.prefilled
    begin_BxP, forced_BxK = np.split(given_BxG, [place], axis=1)
    yield 0, begin_BxP
    state = programs.prefill(begin_BxP, *text)
    for loop in range(programs.loops):
        tokens, state = programs.decode(loop, state, rows_B, sampling_params, forced_BxK)
        tokens_BxQ = np.asarray(tokens)
        yield place, tokens_BxQ
        place += tokens_BxQ.shape[1]


class Prefills:
    """States of what is given, sample by sample, and once for adjacent samples that are given the same: the program,
    and so the bytes, are the same whoever else is sampled.

    Args:
      run: (tokens [1, P], states and lengths of the `fan` rows of a sample, or nothing) -> state.
    """

    def __init__(self, run: Callable[..., Any], fan: int):
        self._run, self._fan = run, fan
        self._last: dict[bytes, Any] = {}

    def __call__(self, tokens_BxP: np.ndarray, *text: np.ndarray) -> list[Any]:
        states = []
        for row in range(len(tokens_BxP)):
            rows = slice(self._fan * row, self._fan * (row + 1))
            given = [tokens_BxP[row : row + 1], *(array[rows] for array in text)]
            key = b"".join(np.ascontiguousarray(array).tobytes() for array in given)
            if key not in self._last:
                self._last = {key: self._run(*given)}
            states.append(self._last[key])
        return states


def sample_tokens(*batch: Any) -> np.ndarray:
    """Whole sequences of one batch, int32 [B, S]; the arguments are those of `decode_batch`."""
    return np.concatenate([tokens_BxQ for _, tokens_BxQ in decode_batch(*batch)], axis=1)


def _hide(layout: Layout, name: str, codes_NxK: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Codes of a clip, `HIDDEN` where its cells are not given."""
    grid = next(s.grid for s in layout.segments if s.stream == name)
    expected = (len(codes_NxK), *grid)
    if cells.shape != expected or cells.dtype != bool:
        raise UserError(f"cells are {cells.dtype}{list(cells.shape)}, expected bool{list(expected)}")
    return np.where(cells.reshape(codes_NxK.shape), codes_NxK, HIDDEN)
