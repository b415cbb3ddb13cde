"""Cached decoding: prefill what is given, then one compiled loop over the rest of the layout.

Everything follows from the layout: which positions are given, which ids are legal where (the head
is sliced to them, so an illegal id cannot be drawn), and which boundary tokens are forced.

With guidance, every sample takes two rows of one pass, one after the other: conditional, then
unconditional.  So a batch may be split over devices: both rows of a sample lie on one.

Given codes that open the output stand in the prefill where they lie before the first draw: those of
the first span.  The others, which open later spans such as each level of the audio, are forced in
the loop.

B samples, R rows (B, or 2 B when guided), S layout length, N prefilled and G given positions,
L text positions, E width of a text state, D model width, K known codes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from poet.distributed.mesh import BATCH_AXES
from poet.models.layers import constrain
from poet.sampling import samplers
from poet.sampling.samplers import Knobs, Truncation
from poet.spec import UserError
from poet.tasks.layout import HIDDEN, OPENING_STREAM, Layout, Span

# Samples that are drawn together where nobody says how many.
DEFAULT_BATCH = 8

# What the model's `prefill` and `decode` pass on; opaque here.
Cache = Any
State = tuple[Cache, jax.Array]


class Step(NamedTuple):
    """A run of positions that one loop decodes.

    `forced` is the place of its first id among the given ones; None where ids are drawn, or where
    the layout tells them.
    """

    span: Span
    forced: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What shapes a decoding program; hashable.

    Attributes:
      layout: the task's sequence.
      known: leading codes of each loss span that are given, not drawn; () is none.
      guided: whether unconditional rows ride along for classifier-free guidance.
      truncation: static sampler settings.
    """

    layout: Layout
    known: tuple[int, ...] = ()
    guided: bool = False
    truncation: Truncation = Truncation()

    def __post_init__(self) -> None:
        spans = self.layout.loss_spans
        object.__setattr__(self, "known", tuple(self.known) or (0,) * len(spans))
        for span, known in zip(spans, self.known, strict=True):
            if not 0 <= known < span.segment.length:
                raise UserError(
                    f"{known} known codes leave nothing to draw of the {span.segment.length} of "
                    f"stream {span.segment.stream!r}; give fewer known frames"
                )
        if self.guided and self.layout.text_span is None:
            raise UserError("guidance needs a text to be guided by, and this task has none")

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
    def drawn_stop(self) -> int:
        """End of the last position that is drawn; what follows is forced."""
        return self.layout.loss_spans[-1].stop

    @property
    def fan(self) -> int:
        """Rows per sample."""
        return 2 if self.guided else 1

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """What is left to decode, in order; a span that opens with known codes gives two steps."""
        known = dict(zip(self.layout.loss_spans[1:], self.known[1:]))
        steps, place = [], 0
        for span in self.layout.spans:
            if not self.prefilled < span.stop <= self.drawn_stop:
                continue
            start = max(span.start, self.prefilled)
            opening = known.get(span, 0)
            if opening:
                steps.append(Step(Span(span.segment, start, start + opening), place))
                start, place = start + opening, place + opening
            steps.append(Step(Span(span.segment, start, span.stop)))
        return tuple(steps)


def given_tokens(
    plan: Plan, streams: Mapping[str, np.ndarray], known_BxK: np.ndarray | None = None
) -> np.ndarray:
    """Ids of the given positions, int32 [B, G] in the order of `plan.given`.

    Args:
      streams: local codes [B, n] of every stream of the condition (`source` among them), -1 where a code
        is not given.  The sound that opens the output is taken from `known_BxK`.
      known_BxK: local codes that open the loss spans, one after the other: K = sum(plan.known).
    """
    layout, batch = plan.layout, len(next(iter(streams.values())))
    streams = {**streams, **_opening_sound(plan, batch, known_BxK)}
    filled = {n: np.zeros((batch, size), np.int32) for n, size in layout.streams.items()}
    for name in layout.condition_streams:
        expected = (batch, layout.streams[name])
        if name not in streams or np.shape(streams[name]) != expected:
            found = f"got {np.shape(streams[name])}" if name in streams else "none were given"
            raise UserError(f"expected codes of stream {name!r} of shape {expected}, {found}")
        filled[name] = np.asarray(streams[name])
    expected = (batch, sum(plan.known))
    known_BxK = np.zeros((batch, 0), np.int32) if known_BxK is None else np.asarray(known_BxK)
    if known_BxK.shape != expected:
        raise UserError(f"expected known codes of shape {expected}, got {known_BxK.shape}")
    stops = np.cumsum(plan.known)
    for span, known, stop in zip(layout.loss_spans, plan.known, stops):
        part = slice(span.segment.part, span.segment.part + known)
        filled[span.segment.stream][:, part] = known_BxK[:, stop - known : stop]
    return np.ascontiguousarray(layout.assemble(filled)[:, plan.given], np.int32)


def _opening_sound(plan: Plan, batch: int, known_BxK: np.ndarray | None) -> dict[str, np.ndarray]:
    """The stream of the prefix that holds the sound which opens the output; {} for a layout without one."""
    parts = [s for s in plan.layout.segments if s.stream == OPENING_STREAM]
    if not parts:
        return {}
    codes = np.full((batch, sum(s.length for s in parts)), HIDDEN, np.int32)
    stops = np.cumsum(plan.known)
    sound = [(known, stop) for span, known, stop in zip(plan.layout.loss_spans, plan.known, stops)
             if span.segment.stream == "audio"]
    for part, (known, stop) in zip(parts, sound, strict=True):
        if known:
            codes[:, part.part : part.part + known] = known_BxK[:, stop - known : stop]
    return {OPENING_STREAM: codes}


def prefill(
    model: Any,
    plan: Plan,
    params: Any,
    tokens_BxN: jax.Array,
    states_RxLxE: jax.Array | None = None,
    lengths_R: jax.Array | None = None,
) -> State:
    """Runs the given positions through the model once; returns (cache, x_RxD of the last one).

    Text is absent for a layout without text positions; a row of length 0 has no text.
    """
    text = None
    if plan.layout.text_span is not None:
        mask_RxL = jnp.arange(states_RxLxE.shape[1]) < lengths_R[:, None]
        text = (states_RxLxE, mask_RxL)
    tokens_RxN = samplers.fan_out(tokens_BxN, plan.fan)
    return model.prefill(params, tokens_RxN, plan.layout, text, plan.drawn_stop)


def decode(
    model: Any,
    plan: Plan,
    params: Any,
    cache: Cache,
    x_RxD: jax.Array,
    rows_B: jax.Array,
    knobs: Knobs,
    forced_BxK: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Decodes all positions after the prefilled ones; returns (tokens_Bx(S-N) int32, cache).

    Args:
      cache, x_RxD: from `prefill`; donate the cache, its buffers are updated in place.
      rows_B: id of each sample within its request, which with the seed determines its noise.
      forced_BxK: ids of the K = `plan.forced` given positions that are not prefilled, in the order
        of `plan.given`; absent where there are none.
    """
    params, keys_B = model.by_layer(params), samplers.row_keys(knobs.seed, rows_B)
    state, pieces = (cache, x_RxD), []
    for span, place in plan.steps:
        if place is None:
            pick = functools.partial(_pick, model, plan, params, span, keys_B, knobs)
        else:
            pick = functools.partial(_look_up, forced_BxK, place - span.start)
        state, tokens_BxQ = _advance(model, plan, params, state, span, pick)
        pieces.append(tokens_BxQ)
    tail = [s.segment.ids.low for s in plan.layout.spans if s.start >= plan.drawn_stop]
    # Added to drawn tokens, so that it is sharded as they are.
    pieces.append(jnp.zeros_like(pieces[0][:, :1]) + jnp.array(tail, jnp.int32))
    return jnp.concatenate(pieces, axis=1), state[0]


def _advance(
    model: Any,
    plan: Plan,
    params: Any,
    state: State,
    span: Span,
    pick: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[State, jax.Array]:
    """One loop over a span: pick each token from the last state, then take it in."""

    def step(state: State, position: jax.Array) -> tuple[State, jax.Array]:
        cache, x_RxD = state
        # A forced token is sharded as drawn ones are, which it is concatenated with.
        token_B = constrain(pick(x_RxD, position), "batch")
        token_R, ids = samplers.fan_out(token_B, plan.fan), span.segment.ids
        return model.decode(params, cache, token_R, position, plan.layout, ids), token_B

    state, tokens_QxB = jax.lax.scan(step, state, jnp.arange(span.start, span.stop))
    return state, tokens_QxB.T


def _pick(
    model: Any,
    plan: Plan,
    params: Any,
    span: Span,
    keys_B: jax.Array,
    knobs: Knobs,
    x_RxD: jax.Array,
    position: jax.Array,
) -> jax.Array:
    """The id at `position`: forced, or drawn from the legal slice of the head; factors of a code one
    after the other, guided and truncated each by itself."""
    ids = span.segment.ids
    if span.segment.forced:
        return jnp.full(keys_B.shape, ids.low, jnp.int32)
    chain, drawn = model.chain(ids), []
    for number, draw in enumerate(chain.draws):
        if drawn:
            x_RxD = model.given(params, x_RxD, samplers.fan_out(drawn[-1], plan.fan))
        # Sorting needs a row's logits on one device; the head leaves them split over `tensor`.
        logits = constrain(model.logits(params, x_RxD, draw).astype(jnp.float32), "batch", None)
        if plan.guided:
            logits = samplers.guide(logits, knobs.guidance)
        keys_B = samplers.draw_keys(keys_B, number)
        drawn.append(_draw(plan.truncation, logits, keys_B, position, knobs) + draw.low)
    return chain.join(drawn)


def _draw(
    truncation: Truncation, logits_BxV: jax.Array, keys_B: jax.Array, position: jax.Array, knobs: Knobs
) -> jax.Array:
    """`samplers.sample`, each device its own rows: the partitioner may gather them all to sort."""

    def local(*arguments: Any) -> jax.Array:
        return samplers.sample(*arguments, truncation)

    if jax.sharding.get_abstract_mesh().empty:
        return local(logits_BxV, keys_B, position, knobs)
    batch, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    # Rows are independent, so the replication types need no proof.
    return jax.shard_map(
        local, in_specs=(batch, batch, whole, whole), out_specs=batch, check_vma=False
    )(logits_BxV, constrain(keys_B, "batch"), position, knobs)


def _look_up(
    forced_BxK: jax.Array, shift: int, x_RxD: jax.Array, position: jax.Array
) -> jax.Array:
    """The given id at `position`."""
    del x_RxD
    return jax.lax.dynamic_index_in_dim(forced_BxK, position + shift, axis=1, keepdims=False)


class Decoder:
    """The two compiled programs of a plan; each batch size compiles once."""

    def __init__(self, model: Any, plan: Plan):
        self.plan = plan
        self.prefill = jax.jit(functools.partial(prefill, model, plan))
        self.decode = jax.jit(functools.partial(decode, model, plan), donate_argnums=1)

    def __call__(
        self,
        params: Any,
        given_BxG: np.ndarray,
        rows_B: np.ndarray,
        knobs: Knobs,
        states_RxLxE: np.ndarray | None = None,
        lengths_R: np.ndarray | None = None,
    ) -> np.ndarray:
        """Whole sequences [B, S], int32, that `layout.parse` accepts.

        `given_BxG` is what `given_tokens` makes.
        """
        tokens_BxN, forced_BxK = np.split(given_BxG, [self.plan.prefilled], axis=1)
        forced = (forced_BxK,) if self.plan.forced else ()
        cache, x_RxD = self.prefill(params, tokens_BxN, states_RxLxE, lengths_R)
        rows_B = jnp.asarray(rows_B, jnp.int32)
        tokens, _ = self.decode(params, cache, x_RxD, rows_B, knobs, *forced)
        return np.concatenate([tokens_BxN, np.asarray(tokens)], axis=1)
