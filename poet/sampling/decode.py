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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from poet.distributed.mesh import BATCH_AXES
from poet.models.cache import Places
from poet.models.layers import constrain
from poet.sampling import samplers
from poet.sampling.engine import Prefills
from poet.sampling.fronts import Front, Fronts
from poet.sampling.plans import Plan, Step
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec.vocabulary import Special
from poet.tasks.layout import Span

# What the model's `prefill` and `decode` pass on; opaque here.
Cache = Any
State = tuple[Cache, jax.Array]
# What guidance with momentum carries from position to position: [B, ids] of each factor of a code, else nothing.
Updates = tuple[jax.Array, ...]


def prefill(
    model: Any,
    plan: Plan,
    params: Any,
    tokens_BxN: jax.Array,
    states_RxLxE: jax.Array | None = None,
    lengths_R: jax.Array | None = None,
    *beta_R: jax.Array,
) -> State:
    """Runs the given positions through the model once; returns (cache, x_RxD of the last one).

    Text is absent for a layout without text positions; a row of length 0 has no text.  `beta_R` follows for a plan that
    is `scaled` (`poet.models.guidance`).
    """
    text = None
    if plan.layout.text_span is not None:
        mask_RxL = jnp.arange(states_RxLxE.shape[1]) < lengths_R[:, None]
        text = (states_RxLxE, mask_RxL, *beta_R)
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
    params, state = model.by_layer(params), (cache, x_RxD)
    tokens_BxQ, state = advance(model, plan, plan.steps, params, *state, 0, rows_B, sampling_params, forced_BxK)
    # Added to sampled tokens, so that it is sharded as they are.
    tail_Bx1 = jnp.zeros_like(tokens_BxQ[:, :1])
    return jnp.concatenate([tokens_BxQ, tail_Bx1 + jnp.array(plan.tail, jnp.int32)], axis=1), state[0]


def advance(
    model: Any,
    plan: Plan,
    steps: Sequence[Step],
    params: Any,
    cache: Cache,
    x_RxD: jax.Array,
    start: jax.Array | int,
    rows_B: jax.Array,
    sampling_params: SamplingParams,
    forced_BxK: jax.Array | None = None,
) -> tuple[jax.Array, State]:
    """Decodes some steps, one loop each; returns (tokens_BxQ int32, state).

    Args:
      steps: whose spans count positions from `start`.
      params: those of `Model.by_layer`; the others as of `decode`.
    """
    keys_B, state, pieces = samplers.row_keys(sampling_params.seed, rows_B), (cache, x_RxD), []
    for span, place in steps:
        begin, updates = start + span.start, ()
        if place is None:
            pick = functools.partial(_pick, model, plan, params, span, keys_B, sampling_params)
            updates = _no_updates(model, plan, span, rows_B.shape[0])
        else:
            pick = functools.partial(_look_up, forced_BxK, place - begin)
        order = plan.fronts(span) if place is None else None
        if order is None:
            positions = start + jnp.arange(span.start, span.stop)
            state, tokens_BxQ = _loop(model, plan, params, state, updates, span, positions, pick)
        else:
            state, tokens_BxQ = _front_loop(model, plan, params, state, order, span, begin, pick)
        pieces.append(tokens_BxQ)
    return jnp.concatenate(pieces, axis=1), state


def _loop(
    model: Any,
    plan: Plan,
    params: Any,
    state: State,
    updates: Updates,
    span: Span,
    positions: jax.Array,
    pick: Callable[[jax.Array, jax.Array, Updates], tuple[jax.Array, Updates]],
) -> tuple[State, jax.Array]:
    """One loop over the positions of a span: pick each token from the last state, then take it in."""

    def step(carry: tuple[State, Updates], place: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        ((cache, x_RxD), updates), (position, first) = carry, place
        updates = jax.tree.map(lambda x: jnp.where(first, 0, x), updates)
        token_B, updates = pick(x_RxD, position, updates)
        # A forced token is sharded as sampled ones are, which it is concatenated with.
        token_B = constrain(token_B, "batch")
        token_R, ids = samplers.fan_out(token_B, plan.fan), span.segment.ids
        return (model.decode(params, cache, token_R, position, plan.layout, ids), updates), token_B

    first_Q = np.arange(len(positions)) % (span.segment.frame or len(positions)) == 0
    (state, _), tokens_QxB = jax.lax.scan(step, (state, updates), (positions, first_Q))
    return state, tokens_QxB.T


def _front_loop(
    model: Any,
    plan: Plan,
    params: Any,
    state: State,
    order: Fronts,
    span: Span,
    begin: jax.Array | int,
    pick: Callable[[jax.Array, jax.Array, Updates], tuple[jax.Array, Updates]],
) -> tuple[State, jax.Array]:
    """`_loop` whose steps each sample the codes of a front, and take them in; the span begins at position `begin`."""
    (cache, x_RxD), length = state, len(order.order)
    from_begin_C = jnp.arange(cache.mask.shape[1]) - begin
    step_C = jnp.asarray(order.order)[jnp.clip(from_begin_C, 0, length - 1)]
    pick_each = jax.vmap(lambda x_RxD, position: pick(x_RxD, position, ())[0], in_axes=(1, 0), out_axes=1)

    def step(carry: tuple[Cache, jax.Array, jax.Array], now: tuple[jax.Array, Front]) -> tuple[Any, None]:
        (cache, x_RxQxD, tokens_BxN), (number, front) = carry, now
        sampled_BxQ = pick_each(x_RxQxD, begin + jnp.minimum(front.sampled, length - 1))
        tokens_BxN = tokens_BxN.at[:, front.sampled].set(sampled_BxQ, mode="drop")
        tokens_RxQ = samplers.fan_out(tokens_BxN[:, front.inputs], plan.fan)
        there_C = (from_begin_C < 0) | (step_C <= number)
        visible_QxC = there_C & (from_begin_C < front.targets[:, None])
        places = Places(begin + front.inputs, begin + front.targets, front.kept)
        cache, x_RxQxD = model.decode_several(
            params, cache, tokens_RxQ, places, visible_QxC, plan.layout, span.segment.ids
        )
        return (cache, x_RxQxD, tokens_BxN), None

    steps, slots = order.steps.sampled.shape
    tokens_BxN = jnp.zeros((x_RxD.shape[0] // plan.fan, length), jnp.int32)
    carry = cache, jnp.stack([x_RxD] * slots, axis=1), tokens_BxN
    (cache, x_RxQxD, tokens_BxN), _ = jax.lax.scan(step, carry, (jnp.arange(steps), order.steps))
    return (cache, x_RxQxD[:, 0]), tokens_BxN


def _no_updates(model: Any, plan: Plan, span: Span, batch: int) -> Updates:
    """The state of guidance before the first position of a span."""
    if not plan.truncation.momentum or span.segment.forced:
        return ()
    sizes = [part.size for part in model.factors(span.segment.ids).ranges]
    return tuple(constrain(jnp.zeros((batch, size), jnp.float32), "batch", None) for size in sizes)


def _pick(
    model: Any,
    plan: Plan,
    params: Any,
    span: Span,
    keys_B: jax.Array,
    sampling_params: SamplingParams,
    x_RxD: jax.Array,
    position: jax.Array,
    updates: Updates,
) -> tuple[jax.Array, Updates]:
    """The id at `position`: forced, or sampled from the legal slice of the head; factors of a code one
    after the other, guided and truncated each by itself."""
    ids = span.segment.ids
    if span.segment.forced:
        return jnp.full(keys_B.shape, ids.low, jnp.int32), updates
    factors, sampled, updated = model.factors(ids), [], list(updates)
    now = sampling_params.at(plan.layout.latents, position)
    for number, part in enumerate(factors.ranges):
        if sampled:
            x_RxD = model.given(params, x_RxD, samplers.fan_out(sampled[-1], plan.fan))
        # Sorting needs a row's logits on one device; the head leaves them split over `tensor`.
        logits = constrain(model.logits(params, x_RxD, part).astype(jnp.float32), "batch", None)
        if plan.guided:
            logits, update = samplers.guide(logits, now, plan.truncation, updates[number] if updates else None)
            updated[number : number + 1] = [update] * bool(updates)
        keys_B = samplers.factor_keys(keys_B, number)
        sampled.append(_sample(plan.truncation, logits, keys_B, position, now) + part.low)
    return factors.join(sampled), tuple(updated)


def _sample(
    truncation: Truncation,
    logits_BxV: jax.Array,
    keys_B: jax.Array,
    position: jax.Array,
    sampling_params: SamplingParams,
) -> jax.Array:
    """`samplers.sample`, each device its own rows: the partitioner may gather them all to sort."""

    def local(*arguments: Any) -> jax.Array:
        return samplers.sample(*arguments, truncation)

    if jax.sharding.get_abstract_mesh().empty:
        return local(logits_BxV, keys_B, position, sampling_params)
    batch, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    # Rows are independent, so the replication types need no proof.
    return jax.shard_map(local, in_specs=(batch, batch, whole, whole), out_specs=batch, check_vma=False)(
        logits_BxV, constrain(keys_B, "batch"), position, sampling_params
    )


def _look_up(
    forced_BxK: jax.Array, shift: jax.Array | int, x_RxD: jax.Array, position: jax.Array, updates: Updates
) -> tuple[jax.Array, Updates]:
    """The given id at `position`."""
    del x_RxD
    return jax.lax.dynamic_index_in_dim(forced_BxK, position + shift, axis=1, keepdims=False), updates


def joined(*states: State) -> State:
    """The rows of several prefills, in turn."""
    caches, x = zip(*states)
    return type(caches[0]).joined(caches), jnp.concatenate(x)


def merged(fan: int, state: State, other: State, taken_B: jax.Array) -> State:
    """A state with the samples of another one, at the same position, where `taken_B` says so."""
    taken_R = jnp.repeat(taken_B, fan)
    (cache, x_RxD), (other_cache, other_x_RxD) = state, other
    return cache.merged(other_cache, taken_R), jnp.where(taken_R[:, None], other_x_RxD, x_RxD)


class Decoder:
    """The compiled programs of a plan; each batch size compiles once.

    `prefill` and `decode` are those above; `advance` takes the steps of a chunk first, `join` states of prefills,
    `merge` two states of the same position.
    """

    def __init__(self, model: Any, plan: Plan):
        self.model, self.plan = model, plan
        self.prefill = jax.jit(functools.partial(prefill, model, plan))
        self.decode = jax.jit(functools.partial(decode, model, plan), donate_argnums=1)
        self.advance = jax.jit(functools.partial(advance, model, plan), static_argnums=0, donate_argnums=2)
        self.join = jax.jit(joined)
        self.merge = jax.jit(functools.partial(merged, plan.fan), donate_argnums=0)


class ModelPrograms:
    """`poet.sampling.engine.Programs` of a model in this process: a loop for each chunk of the plan.

    Args:
      params: what `model.compute_params` gives.
      loop_params: `model.by_layer` of these; made if it is None.
      batch: samples of a call; 0 takes any number, and samples may then differ in rounding with it.
    """

    def __init__(self, decoder: Decoder, params: Any, text_width: int = 0, batch: int = 0, loop_params: Any = None):
        self.decoder, self.params, self.text_width, self.batch = decoder, params, text_width, batch
        self._loop_params = decoder.model.by_layer(params) if loop_params is None else loop_params
        self._prefills = Prefills(lambda *given: self.decoder.prefill(self.params, *given), decoder.plan.fan)

    @property
    def plan(self) -> Plan:
        return self.decoder.plan

    @property
    def loops(self) -> int:
        return len(self.plan.chunks)

    def prefill(self, tokens_BxN: np.ndarray, *text: np.ndarray) -> State:
        return self.decoder.join(*self._prefills(tokens_BxN, *text))

    def decode(
        self, loop: int, state: State, rows_B: np.ndarray, sampling_params: SamplingParams, forced_BxK: np.ndarray
    ) -> tuple[jax.Array, State]:
        start, steps = self.plan.chunks[loop]
        forced = (forced_BxK,) if self.plan.forced else ()
        tokens_BxQ, state = self.decoder.advance(
            steps, self._loop_params, *state, jnp.int32(start), jnp.asarray(rows_B), sampling_params, *forced
        )
        if loop == self.loops - 1 and self.plan.tail:
            tail = np.tile(np.int32(self.plan.tail), (len(rows_B), 1))
            tokens_BxQ = jnp.concatenate([tokens_BxQ, tail], axis=1)
        return tokens_BxQ, state

    def merge(self, state: State, other: State, taken_B: np.ndarray) -> State:
        """One state of two after the same loop: of each sample the other's where `taken_B` says so."""
        return self.decoder.merge(state, other, jnp.asarray(taken_B))


class SpreadPrograms:
    """The same programs on several devices, a block of samples on each: a sample is that of one device to the byte."""

    def __init__(self, each: Sequence[ModelPrograms]):
        """`each` has parameters on a device of its own, and a fixed batch."""
        self.each = each
        self.plan, self.loops, self.text_width = each[0].plan, each[0].loops, each[0].text_width
        self.batch = sum(programs.batch for programs in each)

    def _parts(self, array: np.ndarray) -> list[np.ndarray]:
        return np.split(array, len(self.each))

    def prefill(self, tokens_BxN: np.ndarray, *text: np.ndarray) -> list[State]:
        parts = zip(*map(self._parts, (tokens_BxN, *text)))
        return [programs.prefill(*part) for programs, part in zip(self.each, parts)]

    def decode(
        self,
        loop: int,
        states: list[State],
        rows_B: np.ndarray,
        sampling_params: SamplingParams,
        forced_BxK: np.ndarray,
    ) -> tuple[np.ndarray, list[State]]:
        seed, count = sampling_params.seed, len(self.each)
        # One for all samples, or each its own.
        seeds = jnp.split(seed, count) if jnp.ndim(seed) else [seed] * count
        each = [dataclasses.replace(sampling_params, seed=part) for part in seeds]
        parts = zip(states, self._parts(rows_B), each, self._parts(forced_BxK))
        # All of them run before the first is waited for.
        found = [programs.decode(loop, *part) for programs, part in zip(self.each, parts)]
        tokens, states = zip(*found)
        return np.concatenate([np.asarray(part) for part in tokens]), list(states)

    def merge(self, states: list[State], others: list[State], taken_B: np.ndarray) -> list[State]:
        """One state of two after the same loop; see `ModelPrograms`."""
        parts = zip(self.each, states, others, self._parts(taken_B))
        return [programs.merge(state, other, taken) for programs, state, other, taken in parts]
