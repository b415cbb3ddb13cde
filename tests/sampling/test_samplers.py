"""Samplers against NumPy oracles: exact support sets, exact distributions, independence of batches."""

from __future__ import annotations

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optimised
import pytest

from poet.sampling import samplers
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec import SampleSpec

FAST = hypothesis.settings(max_examples=40, deadline=None)
SIZE = 12
# No subnormals: XLA flushes them to zero, the oracle does not.
LOGITS = hypothesis.extra.numpy.arrays(
    np.float32, (3, SIZE), elements=st.floats(-8, 8, width=32, allow_subnormal=False)
)


def oracle_support(logits_V: np.ndarray, top_k: int, top_p: float) -> tuple[set[int], float]:
    """Kept ids by definition in float64, and how close any id is to the nucleus boundary."""
    order = sorted(range(len(logits_V)), key=lambda i: (-float(logits_V[i]), i))
    order = order[: top_k or len(order)]
    weights = np.exp(np.float64(logits_V[order]) - np.float64(logits_V.max()))
    probabilities = weights / weights.sum()
    before = np.concatenate([[0.0], np.cumsum(probabilities)[:-1]])
    kept = {i for i, b in zip(order, before) if b < top_p or top_p >= 1}
    margin = np.abs(before[1:] - top_p).min(initial=1.0) if top_p < 1 else 1.0
    return kept | {order[0]}, float(margin)


def support(logits_BxK: np.ndarray, ids_BxK: np.ndarray) -> list[set[int]]:
    return [set(ids[np.isfinite(row)].tolist()) for row, ids in zip(logits_BxK, ids_BxK)]


_candidates = jax.jit(samplers.candidates, static_argnums=2)
_sample = jax.jit(samplers.sample, static_argnums=4)
_guide = jax.jit(samplers.guide, static_argnums=2)


def guide(rows, before=None, **settings):
    """Guided logits under these settings of SAMPLE."""
    spec = SampleSpec(**settings)
    return _guide(rows, SamplingParams.of(spec), Truncation.of(spec), before)[0]


@FAST
@hypothesis.given(LOGITS, st.sampled_from([0, 1, 3, 5, SIZE, SIZE + 9]), st.floats(0.01, 1.0), st.booleans())
def test_candidates_are_exactly_those_of_the_definition(logits, top_k, top_p, nucleus):
    hypothesis.assume(top_k or nucleus)
    expected = [oracle_support(row, top_k, top_p if nucleus else 1.0) for row in logits]
    hypothesis.assume(min(margin for _, margin in expected) > 1e-5)
    kept = _candidates(logits, jnp.float32(top_p), Truncation(top_k=top_k, nucleus=nucleus))
    assert support(*map(np.asarray, kept)) == [ids for ids, _ in expected]


@FAST
@hypothesis.given(LOGITS, st.sampled_from([0, 3]), st.floats(0.01, 1.0), st.integers(0, 2**32 - 1))
def test_draws_lie_in_the_support(logits, top_k, top_p, seed):
    truncation = Truncation(top_k=top_k, nucleus=True)
    spec = SampleSpec(top_k=top_k, top_p=top_p, temperature=0.7, seed=seed)
    expected = [oracle_support(row / np.float32(0.7), top_k, top_p) for row in logits]
    hypothesis.assume(min(margin for _, margin in expected) > 1e-5)
    keys = samplers.row_keys(jnp.uint32(seed), jnp.arange(3))
    drawn = np.asarray(_sample(logits, keys, 5, SamplingParams.of(spec), truncation))
    assert all(int(t) in ids for t, (ids, _) in zip(drawn, expected))


@FAST
@hypothesis.given(LOGITS, st.sampled_from([Truncation(), Truncation(top_k=4, nucleus=True)]))
def test_temperature_zero_is_argmax(logits, truncation):
    keys = samplers.row_keys(jnp.uint32(0), jnp.arange(3))
    drawn = _sample(logits, keys, 0, SamplingParams.of(SampleSpec(temperature=0.0, top_p=0.5)), truncation)
    np.testing.assert_array_equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (4, 1.0), (0, 0.8), (5, 0.7)])
def test_draws_follow_the_distribution(top_k, top_p):
    """Frequencies of 40,000 draws within 5 standard errors of the truncated softmax in float64."""
    draws, temperature = 40_000, 0.8
    row = np.random.default_rng(0).normal(size=SIZE).astype(np.float32) * 2
    spec = SampleSpec(temperature=temperature, top_k=top_k, top_p=top_p)
    keys = samplers.row_keys(jnp.uint32(3), jnp.arange(draws))
    logits = jnp.broadcast_to(row, (draws, SIZE))
    drawn = np.asarray(_sample(logits, keys, 1, SamplingParams.of(spec), Truncation.of(spec)))
    kept, margin = oracle_support(row / np.float32(temperature), top_k, top_p)
    assert margin > 1e-4
    p = np.where([i in kept for i in range(SIZE)], np.exp(np.float64(row) / temperature), 0)
    p /= p.sum()
    frequency = np.bincount(drawn, minlength=SIZE) / draws
    assert np.all(np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / draws))


def test_large_vocabulary_has_no_bias_to_low_ids():
    """Equal logits over 2^18 ids: the mean drawn id is the middle, within 4 standard errors."""
    size, draws = 2**18, 256
    keys = samplers.row_keys(jnp.uint32(0), jnp.arange(draws))
    sampling_params = SamplingParams.of(SampleSpec())
    one = optimised.jit(lambda key: samplers.sample(jnp.zeros((1, size)), key[None], 0, sampling_params, Truncation()))
    drawn = np.array([int(one(key)[0]) for key in keys])
    assert abs(drawn.mean() / size - 0.5) < 4 * np.sqrt(1 / 12 / draws)
    assert len(set(drawn.tolist())) > draws - 4


@FAST
@hypothesis.given(st.permutations(range(3)), LOGITS, st.integers(0, 2**32 - 1))
def test_a_draw_depends_on_its_row_id_alone(order, logits, seed):
    sampling_params, truncation = SamplingParams.of(SampleSpec(top_p=0.9, seed=seed)), Truncation(nucleus=True)
    keys = samplers.row_keys(sampling_params.seed, jnp.array([7, 8, 9]))
    whole = np.asarray(_sample(logits, keys, 2, sampling_params, truncation))
    order = np.array(order)
    mixed = np.asarray(_sample(logits[order], keys[order], 2, sampling_params, truncation))
    np.testing.assert_array_equal(mixed, whole[order])
    alone = [int(_sample(logits[i : i + 1], keys[i : i + 1], 2, sampling_params, truncation)[0]) for i in range(3)]
    assert alone == whole.tolist()


def test_truncation_keeps_the_noise_of_each_id():
    """If the untruncated draw lies in the support, truncation draws the same id."""
    logits = np.random.default_rng(1).normal(size=(400, SIZE)).astype(np.float32)
    keys = samplers.row_keys(jnp.uint32(5), jnp.arange(400))
    free = np.asarray(_sample(logits, keys, 3, SamplingParams.of(SampleSpec()), Truncation()))
    spec = SampleSpec(top_k=6, top_p=0.9)
    cut = np.asarray(_sample(logits, keys, 3, SamplingParams.of(spec), Truncation.of(spec)))
    inside = np.array([t in oracle_support(r, 6, 0.9)[0] for t, r in zip(free, logits)])
    assert 200 < inside.sum() < 400
    np.testing.assert_array_equal(free[inside], cut[inside])


def test_seed_row_and_position_each_change_the_noise():
    def noise(seed, row, position):
        key = samplers.row_keys(jnp.uint32(seed), jnp.array([row]))
        return np.asarray(samplers._noise(key, position, 8))

    base = noise(0, 0, 0)
    np.testing.assert_array_equal(base, noise(0, 0, 0))
    assert all(not np.allclose(base, noise(*other)) for other in [(1, 0, 0), (0, 1, 0), (0, 0, 1)])


@FAST
@hypothesis.given(LOGITS, LOGITS, st.floats(0, 10))
def test_guidance_is_the_formula(cond, uncond, scale):
    rows = jnp.stack([cond, uncond], axis=1).reshape(-1, cond.shape[-1])
    guided = guide(rows, guidance=scale)
    expected = np.float64(uncond) + scale * (np.float64(cond) - uncond)
    np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=1e-4)
    at_one = guide(rows, guidance=1.0)
    np.testing.assert_allclose(at_one, cond, rtol=1e-5, atol=1e-5)


@FAST
@hypothesis.given(LOGITS, st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_min_p_keeps_ids_by_their_fraction_of_the_most_probable_one(logits, min_p):
    ratio = np.exp(np.float64(logits) - np.float64(logits).max(-1, keepdims=True))
    hypothesis.assume(np.abs(ratio - min_p).min(where=ratio < 1, initial=1.0) > 1e-5)
    kept = np.isfinite(np.asarray(samplers.floor(jnp.asarray(logits), jnp.float32(min_p))))
    np.testing.assert_array_equal(kept, ratio >= min_p)


def test_a_schedule_is_the_number_of_each_latent_frame():
    """Draws of every position under a schedule are those under its frame's numbers, all as one program."""
    logits = np.random.default_rng(2).normal(size=(50, SIZE)).astype(np.float32) * 3
    schedule = SampleSpec(
        temperature=(0.5, 2.0, 0.0), top_k=(3, 0, 5), top_p=(0.9, 1.0, 0.7), min_p=(0.0, 0.2, 0.0), guidance=1.0
    )
    latents, keys = np.array([0, 0, 1, 2, 1], np.int32), samplers.row_keys(jnp.uint32(0), jnp.arange(50))
    params = SamplingParams.of(schedule)
    for position, latent in enumerate(latents):
        fields = ("temperature", "top_k", "top_p", "min_p")
        single = schedule.replace(**{field: schedule.schedule(field)[latent] for field in fields})
        expected = samplers.sample(logits, keys, position, SamplingParams.of(single), Truncation.of(single))
        found = samplers.sample(logits, keys, position, params.at(latents, position), Truncation.of(schedule))
        np.testing.assert_array_equal(found, expected)


def test_capped_guidance_moves_no_further_than_its_cap():
    rng = np.random.default_rng(3)
    cond, uncond = rng.normal(size=(2, 4, SIZE)).astype(np.float32) * 3
    rows = jnp.stack([cond, uncond], axis=1).reshape(-1, SIZE)
    free = np.asarray(guide(rows, guidance=3.0, guidance_cap=1e6) - guide(rows, guidance=3.0))
    np.testing.assert_allclose(free - free.mean(-1, keepdims=True), 0, atol=1e-4)  # The same but for a constant.
    moved = np.asarray(guide(rows, guidance=3.0, guidance_cap=0.25)) - cond
    np.testing.assert_allclose(np.sqrt(np.mean(moved**2, axis=-1)), 2 * 0.25, rtol=1e-4)


def oracle_guide(cond, uncond, before, guidance, cap, parallel, momentum):
    """Adaptive projected guidance of one sample in float64, as in Algorithm 1 of 2410.02416; (logits, update)."""
    cond, uncond, before = (np.float64(x) for x in (cond, uncond, before))
    update = (cond - uncond) - (cond - uncond).mean() + momentum * before
    kept, size = update, np.sqrt(np.mean(update**2))
    if cap and size > cap:
        kept = kept * cap / size
    direction = cond - cond.mean()
    norm = np.linalg.norm(direction)
    unit = direction / norm if norm else direction
    along = (kept @ unit) * unit
    return cond + (guidance - 1) * (kept - along + parallel * along), update


@FAST
@hypothesis.given(
    LOGITS,
    LOGITS,
    LOGITS,
    st.floats(0, 10),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    st.sampled_from([-0.75, 0.0, 0.5]),
)
def test_adaptive_guidance_is_the_algorithm_of_its_paper(cond, uncond, before, scale, cap, parallel, momentum):
    spec = SampleSpec(guidance=scale, guidance_cap=cap, guidance_parallel=parallel, guidance_momentum=momentum)
    truncation = Truncation.of(spec)
    hypothesis.assume(truncation.capped or truncation.projected or truncation.momentum)
    # Directions that differ from 0 by rounding alone are 0 in one of both.
    hypothesis.assume((np.ptp(cond, axis=-1) > 1e-3).all())
    rows = jnp.stack([cond, uncond], axis=1).reshape(-1, SIZE)
    found = _guide(rows, SamplingParams.of(spec), truncation, before)
    for row in range(len(cond)):
        expected = oracle_guide(cond[row], uncond[row], before[row], scale, cap, parallel, momentum)
        np.testing.assert_allclose(found[0][row], expected[0], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found[1][row], expected[1], rtol=1e-5, atol=1e-4)


def test_without_the_parallel_part_guidance_does_not_sharpen():
    """Rows that differ from their unconditional ones by a temperature alone stay as they are."""
    cond = np.random.default_rng(0).normal(size=(3, SIZE)).astype(np.float32)
    rows = jnp.stack([cond, 0.5 * cond + 1], axis=1).reshape(-1, SIZE)
    np.testing.assert_allclose(guide(rows, guidance=4.0, guidance_parallel=0.0), cond, atol=1e-5)
    assert np.abs(np.asarray(guide(rows, guidance=4.0)) - cond).max() > 1


def test_neutral_adaptive_guidance_is_plain_guidance_and_its_program():
    plain = SampleSpec(guidance=3.0)
    neutral = plain.replace(guidance_cap=0.0, guidance_parallel=1.0, guidance_momentum=0.0)
    assert Truncation.of(plain) == Truncation.of(neutral) == Truncation()
    assert Truncation.of(SampleSpec(guidance_cap=1.0, guidance_parallel=0.0, guidance_momentum=0.5)) == Truncation()
