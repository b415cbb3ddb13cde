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
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from poet.spec import UserError
from poet.spec.vocabulary import Range, Special, Vocabulary

CONDITION, OUTPUT = "condition", "output"
# Where positions that belong to no place and time are counted from: away from every clip, whose own places
# begin at 0.
TEXT_ORIGIN = -128
# Rows and columns of sound, outside every picture; a level takes the row before that of the one before it.
SOUND_ROW, SOUND_COLUMN = -2, -2
# The local code of what a condition does not give.
HIDDEN = -1
TEXT_STREAM = "text"  # States of a text encoder, which are given.
PIECES_STREAM = "pieces"  # Pieces of a text vocabulary, which are drawn.
OPENING_AUDIO = "opening_audio"  # Given sound that opens the output, where it stands in the prefix too.
OPENING_STREAM = f"{OPENING_AUDIO}_in"


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
        return tuple(
            s for s in self.spans if s.segment.role == OUTPUT and not s.segment.forced
        )

    @property
    def loss_length(self) -> int:
        return sum(s.stop - s.start for s in self.loss_spans)

    @functools.cached_property
    def text_span(self) -> Span | None:
        """Where text encoder states stand, if this layout has text."""
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
            if s.ids.table == "visual":
                rows.append(np.indices(s.grid).reshape(3, -1).T)
            elif s.time is not None:
                first, step = s.time
                row = SOUND_ROW - s.part // s.length
                places = [[first + step * i, row, SOUND_COLUMN] for i in range(s.length)]
                rows.append(np.array(places))
            else:
                rows.append(count + np.arange(s.length)[:, None] + np.zeros(3))
                count += s.length
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
                f"this layout needs streams {sorted(self.streams)}; missing {missing}, "
                f"given {sorted(streams)}"
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

    def is_prefix_of(self, other: Layout) -> bool:
        """True if every sequence of this layout opens a sequence of `other` (T2I opens T2V).

        The last segment may be a leading part of the corresponding one: an image is the first
        latent frame of a clip.
        """
        *head, last = self.segments
        n = len(head)
        if tuple(head) != other.segments[:n] or len(other.segments) <= n:
            return False
        whole = other.segments[n]
        same = (last.part, last.role, last.ids, last.grid[1:]) == (
            whole.part,
            whole.role,
            whole.ids,
            whole.grid[1:],
        )
        return same and last.length <= whole.length

    def visible(self) -> np.ndarray:
        """Attention pattern by definition, bool [length, length]: query i sees key j.

        The oracle of tests; the model never builds it.
        """
        i, j = np.indices((self.length, self.length))
        return (j <= i) | ((i < self.prefix_length) & (j < self.prefix_length))


@dataclasses.dataclass(frozen=True)
class Format:
    """Sizes of the token streams of a run.

    Attributes:
      video: latent grid (t, h, w) of a clip, e.g. (5, 16, 16).
      audio_frames: latent audio frames, e.g. 106; 0 if the run has no audio.
      text_length: positions kept for text states.
      portrait: whether `<res>` is emitted (VideoPoet: only for 128x224).
      long: whether `<duration>` is emitted; absent, it means clips of 17 frames or less, as an absent
        `<res>` means square ones.  An image says both as the clip that it opens does.
      pieces_length: positions of a text that is written; 0 if the run writes none.
      audio_time: place of the first audio frame on the axis of latent frames, and the step to the next.
      opening_audio: audio frames within the time of 0, 1, 2... latent frames, where the sound that opens an
        output with a picture stands in the prefix too; () where it does not.
    """

    video: tuple[int, int, int]
    text_length: int
    audio_frames: int = 0
    portrait: bool = False
    long: bool = False
    pieces_length: int = 0
    audio_time: tuple[float, float] = (0.0, 1.0)
    opening_audio: tuple[int, ...] = ()


def _token(token: Special, role: str, vocabulary: Vocabulary) -> Segment:
    return Segment(token.name.lower(), 0, 1, role, vocabulary.special(token), (1, 1, 1))


def _visual(
    stream: str, grid: tuple[int, int, int], role: str, vocabulary: Vocabulary
) -> tuple[Segment, ...]:
    length = grid[0] * grid[1] * grid[2]
    return (Segment(stream, 0, length, role, vocabulary.visual, grid),)


def _audio(
    stream: str, frames: int, role: str, vocabulary: Vocabulary, time: tuple[float, float]
) -> tuple[Segment, ...]:
    """Level-major order (VideoPoet §5.2: slightly better than interleaved)."""
    return tuple(
        Segment(stream, level * frames, frames, role, vocabulary.audio(level), (frames, 1, 1), time)
        for level in range(vocabulary.spec.audio_levels)
    )


def build_layout(
    *,
    task_token: Special,
    text: bool,
    condition: Sequence[str],
    output: Sequence[str],
    fmt: Format,
    vocabulary: Vocabulary,
    opening_audio: int = 0,
) -> Layout:
    """The layout of a task.

    Streams are "image", "video", "audio" and "pieces"; in the condition they are named
    "<stream>_in".  "opening_audio" is a condition of the first `opening_audio` frames of audio.  An image output omits `<eov_o>` and `<eos>`, so that it is a literal prefix of video output
    (VideoPoet §3.2).
    """
    v = vocabulary
    segments = [_token(Special.BOS, CONDITION, v), _token(task_token, CONDITION, v)]
    if text:
        states = Segment(
            TEXT_STREAM, 0, fmt.text_length, CONDITION, v.special(Special.TEXT),
            (fmt.text_length, 1, 1),
        )
        segments += [
            _token(Special.BOT_I, CONDITION, v), states, _token(Special.EOT_I, CONDITION, v)
        ]
    for stream in condition:
        segments += _wrapped(stream, CONDITION, fmt, v, opening_audio)
    segments.append(Segment("source", 0, 1, CONDITION, v.source, (1, 1, 1)))
    visual = not {"video", "image"}.isdisjoint(output)
    if fmt.portrait and visual:
        segments.append(_token(Special.RES_PORTRAIT, CONDITION, v))
    if fmt.long and visual:
        duration = v.duration(fmt.video[0])
        segments.append(Segment("duration", 0, 1, CONDITION, duration, (1, 1, 1)))
    for stream in output:
        segments += _wrapped(stream, OUTPUT, fmt, v)
    if tuple(output) != ("image",):
        segments.append(_token(Special.EOS, OUTPUT, v))
    return Layout(tuple(segments))


def _wrapped(
    stream: str, role: str, fmt: Format, v: Vocabulary, opening_audio: int = 0
) -> list[Segment]:
    """A stream between its boundary tokens."""
    suffix = "_in" if role == CONDITION else ""
    io = "I" if role == CONDITION else "O"
    if stream in ("audio", OPENING_AUDIO):
        frames = fmt.audio_frames if stream == "audio" else opening_audio
        body = _audio(stream + suffix, frames, role, v, fmt.audio_time)
        begin, end = Special[f"BOA_{io}"], Special[f"EOA_{io}"]
    elif stream == PIECES_STREAM:
        grid = (fmt.pieces_length, 1, 1)
        body = (Segment(PIECES_STREAM, 0, fmt.pieces_length, role, v.text, grid),)
        begin, end = Special[f"BOT_{io}"], Special[f"EOT_{io}"]
    else:
        grid = (1, *fmt.video[1:]) if stream == "image" else fmt.video
        body = _visual(stream + suffix, grid, role, v)
        begin, end = Special[f"BOV_{io}"], Special[f"EOV_{io}"]
    closed = [] if stream == "image" and role == OUTPUT else [_token(end, role, v)]
    return [_token(begin, role, v), *body, *closed]
