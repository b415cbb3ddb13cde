"""Cached decoding: prefill what is given, then one compiled loop over the rest of the layout.

Everything follows from the layout: which positions are given, which ids are legal where (the head
is sliced to them, so an illegal id cannot be sampled), and which boundary tokens are forced.

With guidance, every sample takes two rows of one pass, one after the other: conditional, then
unconditional.  So a batch may be split over devices: both rows of a sample lie on one.

B samples, R rows (B, or 2 B when guided), S layout length, N prefilled positions,
L text positions, E width of a text state, D model width, K codes that are forced in the loop.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from poet.distributed.mesh import BATCH_AXES
from poet.models.layers import constrain
from poet.sampling import samplers
from poet.sampling.plans import Plan
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec.vocabulary import Special
from poet.tasks.layout import Span

# What the model's `prefill` and `decode` pass on; opaque here.
Cache = Any
State = tuple[Cache, jax.Array]


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
    if plan.hidden.any():
        uncond_R = constrain(jnp.arange(tokens_RxN.shape[0]) % plan.fan == 1, "batch")
        tokens_RxN = jnp.where(uncond_R[:, None] & plan.hidden, jnp.int32(Special.HIDDEN), tokens_RxN)
    return model.prefill(params, tokens_RxN, plan.layout, text, plan.sampled_stop)


def decode(
    model: Any,
    plan: Plan,
    params: Any,
    cache: Cache,
    x_RxD: jax.Array,
    rows_B: jax.Array,
    sampling_params: SamplingParams,
    forced_BxK: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Decodes all positions after the prefilled ones; returns (tokens_Bx(S-N) int32, cache).

    Args:
      cache, x_RxD: from `prefill`; donate the cache, its buffers are updated in place.
      rows_B: id of each sample within its request, which with the seed determines its noise.
      forced_BxK: ids of the K = `plan.forced` given positions that are not prefilled, in the order
        of `plan.given`; absent where there are none.
    """
    params, keys_B = model.by_layer(params), samplers.row_keys(sampling_params.seed, rows_B)
    state, pieces = (cache, x_RxD), []
    for span, place in plan.steps:
        if place is None:
            pick = functools.partial(_pick, model, plan, params, span, keys_B, sampling_params)
        else:
            pick = functools.partial(_look_up, forced_BxK, place - span.start)
        state, tokens_BxQ = _advance(model, plan, params, state, span, pick)
        pieces.append(tokens_BxQ)
    tail = [s.segment.ids.low for s in plan.layout.spans if s.start >= plan.sampled_stop]
    # Added to sampled tokens, so that it is sharded as they are.
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
        # A forced token is sharded as sampled ones are, which it is concatenated with.
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
    sampling_params: SamplingParams,
    x_RxD: jax.Array,
    position: jax.Array,
) -> jax.Array:
    """The id at `position`: forced, or sampled from the legal slice of the head; factors of a code one
    after the other, guided and truncated each by itself."""
    ids = span.segment.ids
    if span.segment.forced:
        return jnp.full(keys_B.shape, ids.low, jnp.int32)
    factors, sampled = model.factors(ids), []
    now = sampling_params.at(plan.layout.latents, position)
    cap = now.guidance_cap if plan.truncation.capped else None
    for number, part in enumerate(factors.ranges):
        if sampled:
            x_RxD = model.given(params, x_RxD, samplers.fan_out(sampled[-1], plan.fan))
        # Sorting needs a row's logits on one device; the head leaves them split over `tensor`.
        logits = constrain(model.logits(params, x_RxD, part).astype(jnp.float32), "batch", None)
        if plan.guided:
            logits = samplers.guide(logits, now.guidance, cap)
        keys_B = samplers.factor_keys(keys_B, number)
        sampled.append(_sample(plan.truncation, logits, keys_B, position, now) + part.low)
    return factors.join(sampled)


def _sample(
    truncation: Truncation, logits_BxV: jax.Array, keys_B: jax.Array, position: jax.Array, sampling_params: SamplingParams
) -> jax.Array:
    """`samplers.sample`, each device its own rows: the partitioner may gather them all to sort."""

    def local(*arguments: Any) -> jax.Array:
        return samplers.sample(*arguments, truncation)

    if jax.sharding.get_abstract_mesh().empty:
        return local(logits_BxV, keys_B, position, sampling_params)
    batch, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    # Rows are independent, so the replication types need no proof.
    return jax.shard_map(
        local, in_specs=(batch, batch, whole, whole), out_specs=batch, check_vma=False
    )(logits_BxV, constrain(keys_B, "batch"), position, sampling_params)


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


@dataclasses.dataclass(frozen=True)
class ModelPrograms:
    """`poet.sampling.engine.Programs` of a model in this process; one loop decodes everything.

    Attributes:
      params: what `model.compute_params` gives.
      batch: 0, any number of samples is taken at once.
    """

    decoder: Decoder
    params: Any
    text_width: int = 0
    batch: int = 0
    loops: int = 1

    @property
    def plan(self) -> Plan:
        return self.decoder.plan

    def prefill(self, tokens_BxN: jax.Array, *text: jax.Array) -> State:
        return self.decoder.prefill(self.params, tokens_BxN, *text)

    def decode(
        self, loop: int, state: State, rows_B: jax.Array, sampling_params: SamplingParams, forced_BxK: jax.Array
    ) -> tuple[jax.Array, Cache]:
        del loop
        forced = (forced_BxK,) if self.plan.forced else ()
        return self.decoder.decode(self.params, *state, jnp.asarray(rows_B), sampling_params, *forced)
