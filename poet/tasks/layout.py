"""The static layout of a sequence, from which everything else is derived.

A `Layout` is an ordered tuple of segments known at trace time.  Assembly and parsing, loss
positions, rotary positions, the prefix length, the head slice of each position, the decoding order
and the serving signature all come from it, so training and sampling cannot drift apart.

Order of segments (VideoPoet §3.2 and its special-token table):
`<bos> <task> <bot_i> text <eot_i> <bov_i> V_in <eov_i> <boa_i> A_in <eoa_i> <source> <res>
<duration> <bov_o> V_out <eov_o> <boa_o> A_out <eoa_o> <bot_o> T_out <eot_o> <eos>`.  A modality
absent from a task drops its boundary tokens too.  The output part begins at its first boundary token.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from poet import streams as registered
from poet.spec import UserError
from poet.spec.vocabulary import Range, Special, Vocabulary
from poet.streams.base import CONDITION, HIDDEN, OUTPUT, Format, Stream

# Where positions that belong to no place and time are counted from: away from every clip, whose own places
# begin at 0.
TEXT_ORIGIN = -128
TEXT_STREAM = "text"


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of positions that share a role and a legal id range.

    Attributes:
      stream: name of the stream whose codes fill it, or of the special token that stands there.
      part: first element of the stream that this segment holds (audio levels share one stream).
      length: positions.
      role: "condition" (bidirectional prefix) or "output" (causal).
      ids: legal ids; a range of one id is forced: no loss, no sampling.
      grid: (t, h, w) whose product is `length`; rotary positions count along it.
      time: of sound, the place of its first position on the latent frames' axis, and the step to the next.
    """

    stream: str
    part: int
    length: int
    role: str
    ids: Range
    grid: tuple[int, int, int]
    time: tuple[float, float] | None = None

    @property
    def may_hide(self) -> bool:
        """Whether a position may hold `Special.HIDDEN` instead of a code: those of given streams may."""
        return self.role == CONDITION and self.ids.table in ("visual", "audio")

    @property
    def forced(self) -> bool:
        return self.ids.size == 1

    @property
    def is_text(self) -> bool:
        """True where positions are filled by text encoder states instead of table rows."""
        return self.ids.low == Special.TEXT and self.forced

    @property
    def frame(self) -> int | None:
        """Positions of one latent frame of pictures; None for anything else."""
        shows = self.ids.table == "visual" and not self.forced
        return self.grid[1] * self.grid[2] if shows else None

    @property
    def padding(self) -> int | None:
        """The id that fills the segment up after a written text's end, which carries no loss."""
        return self.ids.low if self.ids.table == "text" else None


@dataclasses.dataclass(frozen=True)
class Span:
    """A segment placed in the sequence: positions [start, stop)."""

    segment: Segment
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """Ordered segments of one sequence; hashable and usable as a static argument."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        roles = [s.role for s in self.segments]
        if roles != sorted(roles):  # "condition" sorts before "output"
            raise UserError(f"a layout must hold its condition before its output, got {roles}")

    @functools.cached_property
    def spans(self) -> tuple[Span, ...]:
        stops = np.cumsum([s.length for s in self.segments]).tolist()
        return tuple(Span(s, e - s.length, e) for s, e in zip(self.segments, stops))

    @property
    def length(self) -> int:
        return sum(s.length for s in self.segments)

    @property
    def prefix_length(self) -> int:
        """Positions that attend to each other in both directions."""
        return sum(s.length for s in self.segments if s.role == CONDITION)

    @property
    def output_length(self) -> int:
        return self.length - self.prefix_length

    @functools.cached_property
    def loss_spans(self) -> tuple[Span, ...]:
        """Output spans whose ids are to be predicted; boundary tokens are forced, so not here.

        The token at position p is predicted from the hidden state at p - 1.
        """
        return tuple(s for s in self.spans if s.segment.role == OUTPUT and not s.segment.forced)

    @property
    def loss_length(self) -> int:
        return sum(s.stop - s.start for s in self.loss_spans)

    @functools.cached_property
    def text_span(self) -> Span | None:
        """The span of text encoder states, if this layout has text."""
        return next((s for s in self.spans if s.segment.is_text), None)

    @functools.cached_property
    def streams(self) -> dict[str, int]:
        """Stream name -> elements that `assemble` needs (forced tokens need none)."""
        sizes: dict[str, int] = {}
        for s in self.segments:
            if not s.forced:
                sizes[s.stream] = max(sizes.get(s.stream, 0), s.part + s.length)
        return sizes

    @functools.cached_property
    def condition_streams(self) -> tuple[str, ...]:
        """Streams that are wholly given, `source` among them."""
        given = (s for s in self.segments if s.role == CONDITION and not s.forced)
        return tuple(dict.fromkeys(s.stream for s in given))

    @functools.cached_property
    def given_streams(self) -> tuple[str, ...]:
        """Streams whose codes a caller gives; copies of what opens the output are made, `source` is a number."""
        named = {name: registered.in_layout(name) for name in self.condition_streams}
        return tuple(name for name, s in named.items() if s is not None and not s.constant and not s.opens)

    @functools.cached_property
    def aligned(self) -> tuple[tuple[Span, Span], ...]:
        """Condition positions and the output positions that show the same places, in the order of the output.

        Both spans of a pair are equally long.  Pictures alone; of several conditions that show a place, the first.
        """
        pictures = [span for span in self.spans if span.segment.frame]
        pairs: list[tuple[Span, Span]] = []
        for output in (span for span in pictures if span.segment.role == OUTPUT):
            given = next((s for s in pictures if s.segment.role == CONDITION and _shared(s, output)), None)
            if given is not None:
                length = _shared(given, output)
                first, second = (dataclasses.replace(s, stop=s.start + length) for s in (given, output))
                pairs.append((first, second))
        return tuple(pairs)

    @functools.cached_property
    def accompanied(self) -> tuple[tuple[Span, Span], ...]:
        """The conditioning pictures and the sound of the output that belongs to them, level by level."""
        pictures = [s for s in self.spans if s.segment.frame and s.segment.role == CONDITION]
        sounds = [s for s in self.spans if s.segment.time is not None and s.segment.role == OUTPUT]
        return tuple((pictures[0], sound) for sound in sounds) if pictures else ()

    @functools.cached_property
    def latents(self) -> np.ndarray:
        """int32 [length]: the latent frame in whose time each output position lies; 0 elsewhere."""
        return np.concatenate([_latents(s) for s in self.segments]).astype(np.int32)

    @functools.cached_property
    def output_streams(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.segment.stream for s in self.loss_spans))

    def positions(self, *, shared: bool = True) -> np.ndarray:
        """Rotary positions, float64 [length, 3] in (t, h, w).

        Pictures count along their grid from 0, in condition and output alike, so that the same place of
        the same clip is at distance 0; sound has the time of its picture, in latent frames.  All else
        advances the three together, from `TEXT_ORIGIN` on.

        With `shared` False every segment begins after the largest extent of the one before it.
        """
        if not shared:
            return self._separate_positions()
        rows: list[np.ndarray] = []
        count = TEXT_ORIGIN
        for s in self.segments:
            places = _places(s)
            if places is None:
                places = count + np.arange(s.length)[:, None] + np.zeros(3)
                count += s.length
            rows.append(places)
        return np.concatenate(rows).astype(np.float64)

    def _separate_positions(self) -> np.ndarray:
        rows, base = [], 0
        for s in self.segments:
            if s.grid == (s.length, 1, 1):
                steps = np.arange(s.length, dtype=np.int32)[:, None] + np.zeros(3, np.int32)
            else:
                steps = np.indices(s.grid, dtype=np.int32).reshape(3, -1).T
            rows.append(base + steps)
            base += max(s.grid)
        return np.concatenate(rows).astype(np.float64)

    def assemble(
        self,
        streams: Mapping[str, Any],
        concatenate: Callable[[Sequence[Any], int], Any] = np.concatenate,
        where: Callable[[Any, Any, Any], Any] = np.where,
    ) -> Any:
        """Ids [..., length] from local codes (0-based) [..., n] of each stream, int32.

        A code of a condition may be `HIDDEN`: not given.

        Works on NumPy, JAX and, with `tf.concat` and `tf.where`, unbatched TensorFlow arrays.

        Raises:
          UserError: a stream is missing.
        """
        missing = [name for name in self.streams if name not in streams]
        if missing:
            raise UserError(
                f"this layout needs streams {sorted(self.streams)}; missing {missing}, given {sorted(streams)}"
            )
        batch = self._batch_shape(streams)
        pieces = []
        for s in self.segments:
            if s.forced:
                pieces.append(np.full((*batch, s.length), s.ids.low, np.int32))
            else:
                codes = streams[s.stream][..., s.part : s.part + s.length]
                ids = codes + np.int32(s.ids.low)
                pieces.append(where(codes < 0, np.int32(Special.HIDDEN), ids) if s.may_hide else ids)
        return concatenate(pieces, -1)

    def _batch_shape(self, streams: Mapping[str, Any]) -> tuple[int, ...]:
        first = next(iter(self.streams), None)
        return tuple(streams[first].shape[:-1]) if first else ()

    def parse(self, tokens: Any) -> dict[str, np.ndarray]:
        """Inverse of `assemble`: local codes [..., n] of each stream from ids [..., length].

        Raises UserError if an id is outside the legal range of its position.
        """
        tokens = np.asarray(tokens)
        if tokens.shape[-1] != self.length:
            raise UserError(f"expected {self.length} ids, got {tokens.shape[-1]}")
        parts: dict[str, list[np.ndarray]] = {}
        for span in self.spans:
            s, ids = span.segment, tokens[..., span.start : span.stop]
            hidden = (ids == Special.HIDDEN) & s.may_hide
            if not np.all(hidden | (ids >= s.ids.low) & (ids < s.ids.high)):
                raise UserError(
                    f"positions {span.start}..{span.stop - 1} ({s.stream}) hold an id outside "
                    f"[{s.ids.low}, {s.ids.high})"
                )
            if not s.forced:
                parts.setdefault(s.stream, []).append(np.where(hidden, HIDDEN, ids - s.ids.low))
        return {name: np.concatenate(p, -1).astype(np.int32) for name, p in parts.items()}


def _shared(one: Span, other: Span) -> int:
    """Leading positions of two pictures, if the shorter one shows the places with which the longer one begins."""
    length = min(one.segment.length, other.segment.length)
    first, second = _places(one.segment), _places(other.segment)
    if first is None or second is None:
        return 0
    return length if np.array_equal(first[:length], second[:length]) else 0


def _places(segment: Segment) -> np.ndarray | None:
    """Rotary positions [length, 3] of a segment; None where it belongs to no place and time."""
    stream = registered.in_layout(segment.stream)
    return stream.places(segment) if stream else None


def _latents(segment: Segment) -> np.ndarray:
    """The latent frame of each position of a segment."""
    if segment.role == CONDITION or segment.forced:
        return np.zeros(segment.length)
    if segment.time is not None:
        first, step = segment.time
        return np.floor(np.maximum(first + step * np.arange(segment.length) + 0.5, 0))
    return np.arange(segment.length) // segment.frame if segment.frame else np.zeros(segment.length)


def _token(token: Special, role: str, vocabulary: Vocabulary) -> Segment:
    return Segment(token.name.lower(), 0, 1, role, vocabulary.special(token), (1, 1, 1))


def build_layout(
    *,
    task_token: Special,
    text: bool,
    condition: Sequence[str],
    output: Sequence[str],
    fmt: Format,
    vocabulary: Vocabulary,
    known: int = 0,
) -> Layout:
    """The layout of a task.

    `condition` and `output` name streams of `poet.streams`; `known` is the most latent frames of the output that
    are given.  An output that nothing closes, such as an image, omits its last boundary token and `<eos>`.
    """
    v = vocabulary
    given = [*(["text"] if text else []), *condition, "source"]
    predicted = [registered.get(name) for name in output]
    segments = [_token(Special.BOS, CONDITION, v), _token(task_token, CONDITION, v)]
    for name in given:
        segments += _wrapped(registered.get(name), CONDITION, fmt, v, known)
    shows = any(stream.shows for stream in predicted)
    if fmt.portrait and shows:
        segments.append(_token(Special.RES_PORTRAIT, CONDITION, v))
    if fmt.long and shows:
        duration = v.duration(fmt.video[0])
        segments.append(Segment("duration", 0, 1, CONDITION, duration, (1, 1, 1)))
    for stream in predicted:
        segments += _wrapped(stream, OUTPUT, fmt, v, known)
    if predicted[-1].closes:
        segments.append(_token(Special.EOS, OUTPUT, v))
    return Layout(tuple(segments))


def _wrapped(stream: Stream, role: str, fmt: Format, v: Vocabulary, known: int) -> list[Segment]:
    """A stream between its boundary tokens."""
    grid = stream.grid(fmt, known)
    length = math.prod(grid)
    body = [
        Segment(stream.called(role), part * length, length, role, ids, grid, stream.time(fmt))
        for part, ids in enumerate(stream.ids(v))
    ]
    marks = [_token(mark, role, v) for mark in stream.boundaries(role)]
    return [*marks[:1], *body, *marks[1:]]
