"""Cached decoding: prefill what is given, then one compiled loop over the rest of the layout.

Everything follows from the layout: which positions are given, which ids are legal where (the head
is sliced to them, so an illegal id cannot be drawn), and which boundary tokens are forced.

With guidance, every sample takes two rows of one pass: conditional rows first, unconditional after.

B samples, R rows (B, or 2 B when guided), S layout length, N given positions, L text positions,
E width of a text state, D model width, K known codes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from poet.models.layers import constrain
from poet.sampling import samplers
from poet.sampling.samplers import Knobs, Truncation
from poet.specs import UserError
from poet.tasks.layout import Layout, Span

# What the model's `prefill` and `decode` pass on; opaque here.
Cache = Any
State = tuple[Cache, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What shapes a decoding program; hashable.

    Attributes:
      layout: the task's sequence.
      known: leading codes of the first output stream that are given, not drawn.
      guided: whether unconditional rows ride along for classifier-free guidance.
      truncation: static sampler settings.
    """

    layout: Layout
    known: int = 0
    guided: bool = False
    truncation: Truncation = Truncation()

    def __post_init__(self) -> None:
        first = self.layout.loss_spans[0]
        if not 0 <= self.known < first.stop - first.start:
            raise UserError(
                f"{self.known} known codes leave nothing to draw of the {first.segment.length} of "
                f"stream {first.segment.stream!r}; give fewer known frames"
            )
        if self.guided and self.layout.text_span is None:
            raise UserError("guidance needs a text to be guided by, and this task has none")

    @property
    def given(self) -> int:
        """Positions that are prefilled: the prefix, the first boundary tokens, the known codes."""
        return self.layout.loss_spans[0].start + self.known

    @property
    def drawn_stop(self) -> int:
        """End of the last position that is drawn; what follows is forced."""
        return self.layout.loss_spans[-1].stop

    @property
    def fan(self) -> int:
        """Rows per sample."""
        return 2 if self.guided else 1

    @functools.cached_property
    def steps(self) -> tuple[Span, ...]:
        """Spans to be decoded, the first one without what is known."""
        spans = (s for s in self.layout.spans if self.given < s.stop <= self.drawn_stop)
        return tuple(Span(s.segment, max(s.start, self.given), s.stop) for s in spans)


def given_tokens(
    plan: Plan, streams: Mapping[str, np.ndarray], known_BxK: np.ndarray | None = None
) -> np.ndarray:
    """Ids of the given positions, int32 [B, N].

    Args:
      streams: local codes [B, n] of every stream of the condition (`source` among them).
      known_BxK: local codes that open the first output stream, K = `plan.known`.
    """
    batch = next(iter(streams.values())).shape[0]
    sizes = plan.layout.streams
    filled = {n: np.zeros((batch, size), np.int32) for n, size in sizes.items()} | dict(streams)
    if plan.known:
        known_BxK = np.asarray(known_BxK)
        if known_BxK.shape != (batch, plan.known):
            raise UserError(
                f"expected known codes of shape {(batch, plan.known)}, got {known_BxK.shape}"
            )
        filled[plan.layout.loss_spans[0].segment.stream][:, : plan.known] = known_BxK
    tokens_BxN = plan.layout.assemble(filled)[:, : plan.given]
    return np.ascontiguousarray(tokens_BxN, np.int32)


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
    tokens_RxN = jnp.tile(tokens_BxN, (plan.fan, 1))
    return model.prefill(params, tokens_RxN, plan.layout, text, plan.drawn_stop)


def decode(
    model: Any,
    plan: Plan,
    params: Any,
    cache: Cache,
    x_RxD: jax.Array,
    rows_B: jax.Array,
    knobs: Knobs,
) -> tuple[jax.Array, Cache]:
    """Decodes all positions after the given ones; returns (tokens_Bx(S-N) int32, cache).

    Args:
      cache, x_RxD: from `prefill`; donate the cache, its buffers are updated in place.
      rows_B: id of each sample within its request, which with the seed determines its noise.
    """
    keys_B = samplers.row_keys(knobs.seed, rows_B)
    state, pieces = (cache, x_RxD), []
    for span in plan.steps:
        pick = functools.partial(_pick, model, plan, params, span, keys_B, knobs)
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
        token_B = pick(x_RxD, position)
        token_R, ids = jnp.tile(token_B, plan.fan), span.segment.ids
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
    """The id at `position`: forced, or drawn from the legal slice of the head."""
    ids = span.segment.ids
    if span.segment.forced:
        return jnp.full(keys_B.shape, ids.low, jnp.int32)
    # Sorting needs a row's logits on one device; the head leaves them split over `tensor`.
    logits = constrain(model.logits(params, x_RxD, ids).astype(jnp.float32), "batch", None)
    if plan.guided:
        logits = samplers.guide(logits, knobs.guidance)
    return samplers.sample(logits, keys_B, position, knobs, plan.truncation) + ids.low


class Decoder:
    """The two compiled programs of a plan; each batch size compiles once."""

    def __init__(self, model: Any, plan: Plan):
        self.plan = plan
        self.prefill = jax.jit(functools.partial(prefill, model, plan))
        self.decode = jax.jit(functools.partial(decode, model, plan), donate_argnums=1)

    def __call__(
        self,
        params: Any,
        tokens_BxN: np.ndarray,
        rows_B: np.ndarray,
        knobs: Knobs,
        states_RxLxE: np.ndarray | None = None,
        lengths_R: np.ndarray | None = None,
    ) -> np.ndarray:
        """Whole sequences [B, S], int32, that `layout.parse` accepts."""
        cache, x_RxD = self.prefill(params, tokens_BxN, states_RxLxE, lengths_R)
        tokens, _ = self.decode(params, cache, x_RxD, jnp.asarray(rows_B, jnp.int32), knobs)
        return np.concatenate([tokens_BxN, np.asarray(tokens)], axis=1)
