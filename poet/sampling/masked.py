"""Sampling of masked codes in a few passes: each keeps the codes that the model is surest of (MaskGIT).

A code is sampled factor by factor, by Gumbel noise on guided logits; what is kept, by its log-probability with
Gumbel noise that falls to nothing.  All noise is a function of (seed, row, part, pass): a sample depends on
nothing else in its batch.

Shape suffixes: B rows, R rows of all branches, S high-resolution positions, M low-resolution positions,
D width, V values of a factor, L text positions, E width of text states.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from poet.models.superres import Params, SuperResolution
from poet.sampling.passes import BRANCHES, Passes, SamplingParams, Text
from poet.sampling.samplers import row_keys
from poet.streams.base import HIDDEN


@dataclasses.dataclass(frozen=True)
class Network:
    """A network in this process, as `poet.sampling.superres.Sampler`.

    Attributes:
      params: what `model.compute_params` gives.
    """

    model: SuperResolution
    params: Params

    def __call__(self, plan: Passes, *inputs: Any) -> jax.Array:
        """`sample` of its parameters."""
        return sample(self.model, plan, self.params, *inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def sample(
    model: SuperResolution,
    plan: Passes,
    params: Params,
    codes_BxS: jax.Array,
    low_BxM: jax.Array,
    text: Text | None,
    rows_B: jax.Array,
    sampling: SamplingParams,
) -> jax.Array:
    """Codes int32 [B, S] of the high resolution.

    Args:
      codes_BxS: int32; those that are known, which stay, and `HIDDEN`.
      low_BxM: int32 codes of the low resolution.
      text: states [B, L, E] and bool [B, L]; it must be there where a branch sees it.
      rows_B: int32 number of each row in its request.
    """
    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, sampling.part))(row_keys(sampling.seed, rows_B))
    low_RxM, text_R = _branches(plan, low_BxM, text)
    unknown_Bx1 = jnp.sum(codes_BxS == HIDDEN, axis=1, keepdims=True)

    def step(number: jax.Array, read_BxS: jax.Array) -> jax.Array:
        read_RxS = _side_by_side([read_BxS] * len(plan.branches))
        x_RxSxD = model.states(params, read_RxS, low_RxM, plan.grid, text_R)
        keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number), 3), out_axes=1)(keys_B)
        found_BxS, surety_BxS = _codes(model, plan, params, x_RxSxD, keys[:2], sampling)
        done = (number + 1) / sampling.steps
        noise_BxS = jax.vmap(lambda key: jax.random.gumbel(key, read_BxS.shape[1:]))(keys[2])
        surety_BxS += sampling.choice_temperature * (1 - done) * noise_BxS
        masked_BxS = read_BxS == HIDDEN
        surety_BxS = jnp.where(masked_BxS, surety_BxS, jnp.inf)
        left_Bx1 = still_masked(unknown_Bx1, jnp.sum(masked_BxS, axis=1, keepdims=True), done)
        return jnp.where(masked_BxS & ~_least(surety_BxS, left_Bx1), found_BxS, read_BxS)

    return jax.lax.fori_loop(0, sampling.steps, step, codes_BxS)


def still_masked(unknown: jax.Array, masked: jax.Array, done: jax.Array | float) -> jax.Array:
    """How many of a clip's codes stay masked after a pass, int32 of any shape: a cosine of the passes' fraction `done`
    of those that are `unknown` at first, and one fewer than were `masked` before it at the most."""
    # Rounded, since the cosine of a right angle is not 0 in float32.
    left = jnp.floor(unknown * jnp.cos(jnp.pi / 2 * done) + 1e-4).astype(jnp.int32)
    return jnp.clip(left, 0, jnp.maximum(masked - 1, 0))


def _branches(plan: Passes, low_BxM: jax.Array, text: Text | None) -> tuple[jax.Array, Text | None]:
    """The inputs of each branch: [R, M] and the text's [R, L, E] with its mask."""
    low_RxM = _side_by_side([low_BxM if sees else jnp.full_like(low_BxM, HIDDEN) for sees, _ in plan.branches])
    if text is None or not plan.reads_text:
        return low_RxM, None
    states_BxLxE, mask_BxL = text
    masks = [mask_BxL if sees else jnp.zeros_like(mask_BxL) for _, sees in plan.branches]
    return low_RxM, (_side_by_side([states_BxLxE] * len(masks)), _side_by_side(masks))


def _side_by_side(branches: Sequence[jax.Array]) -> jax.Array:
    """[R, ...]: the branches of a clip one after the other, so that they stay on its device."""
    return jnp.stack(branches, axis=1).reshape(-1, *branches[0].shape[1:])


def _apart(x_RxSxV: jax.Array, count: int) -> list[jax.Array]:
    """The reverse of `_side_by_side`: [B, S, V] of each branch."""
    x = x_RxSxV.reshape(-1, count, *x_RxSxV.shape[1:])
    return [x[:, number] for number in range(count)]


def _codes(
    model: SuperResolution, plan: Passes, params: Params, x_RxSxD: jax.Array, keys: jax.Array, sampling: SamplingParams
) -> tuple[jax.Array, jax.Array]:
    """Sampled codes [B, S], and their log-probabilities by the guided distributions, all factors together."""
    factors, found, surety = model.factors(model.vocabulary.visual), [], []
    weights = [sampling.weights[BRANCHES.index(branch)] for branch in plan.branches]
    for factor, keys_B in zip(factors.ranges, keys):
        parts = _apart(model.logits(params, x_RxSxD, factor), len(weights))
        logits_BxSxV = functools.reduce(jnp.add, (w * part for w, part in zip(weights, parts)))
        ids_BxS = _sample(logits_BxSxV, keys_B, sampling.temperature)
        logp_BxSxV = jax.nn.log_softmax(logits_BxSxV)
        # Not gathered: over `tensor`, every device holds some of the values.
        chosen_BxSxV = jnp.arange(logp_BxSxV.shape[-1]) == ids_BxS[..., None]
        surety.append(jnp.sum(logp_BxSxV, axis=-1, where=chosen_BxSxV))
        found.append(ids_BxS + factor.low)
        if factor is not factors.ranges[-1]:
            x_RxSxD = model.given(params, x_RxSxD, _side_by_side([found[-1]] * len(parts)))
    return factors.join(found) - model.vocabulary.visual.low, sum(surety, jnp.zeros(()))


def _sample(logits_BxSxV: jax.Array, keys_B: jax.Array, temperature: jax.Array) -> jax.Array:
    """int32 [B, S]: argmax of logits and Gumbel noise of the temperature."""
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits_BxSxV.shape[1:], mode="high"))(keys_B)
    # Times the noise instead of through the logits, so that 0 is greedy.
    return jnp.argmax(logits_BxSxV + temperature * noise, axis=-1).astype(jnp.int32)


def _least(x_BxS: jax.Array, count_Bx1: jax.Array) -> jax.Array:
    """bool [B, S]: the `count` smallest of each row, the first ones of equals."""
    rank_BxS = jnp.argsort(jnp.argsort(x_BxS, axis=1), axis=1)
    return rank_BxS < count_Bx1
