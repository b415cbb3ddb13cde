"""The lookup-free quantizer against brute force over all 2^K codes in float64 (spec A3-A5)."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet.tokenizers import lfq


def full_entropies(z_NxK: np.ndarray, temperature: float) -> tuple[float, float]:
    """Per-sample and batch entropy from the softmax of 2 z.c / tau over every corner code."""
    z = z_NxK.astype(np.float64)
    codes = np.array(list(itertools.product((-1.0, 1.0), repeat=z.shape[1])))
    affinity = 2 * z @ codes.T / temperature
    p = np.exp(affinity - affinity.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)

    def entropy(q: np.ndarray) -> np.ndarray:
        return -np.sum(q * np.log(np.maximum(q, 1e-300)), axis=-1)

    return entropy(p).mean(), entropy(p.mean(0))


@settings(max_examples=50, deadline=None)
@given(bits=st.integers(1, 18), data=st.data())
def test_ids_and_bits_are_a_bijection(bits: int, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=8))
    ids = np.array(ids + [0, 2**bits - 1], np.int32)
    codes = np.asarray(lfq.ids_to_bits(jnp.asarray(ids), bits))
    binary = [[int(b) for b in reversed(f"{i:0{bits}b}")] for i in ids]
    np.testing.assert_array_equal(codes, np.array(binary) * 2.0 - 1)
    np.testing.assert_array_equal(lfq.bits_to_ids(codes > 0), ids)


def test_least_significant_bit_first_and_zero_is_on() -> None:
    q, ids = lfq.quantize(jnp.array([[0.0, -0.0, -1e-30], [-3.0, 2.0, -1.0], [-1.0, -1.0, 5.0]]))
    np.testing.assert_array_equal(ids, [0b011, 0b010, 0b100])
    np.testing.assert_array_equal(q[0], [1, 1, -1])


def test_two_factors_of_nine_bits_recombine() -> None:
    ids = np.random.default_rng(0).integers(0, 2**18, 100)
    low, high = np.split(np.asarray(lfq.ids_to_bits(jnp.asarray(ids), 18)) > 0, 2, axis=1)
    np.testing.assert_array_equal(
        np.asarray(lfq.bits_to_ids(low)) + 512 * np.asarray(lfq.bits_to_ids(high)), ids
    )


def test_codes_are_exactly_plus_minus_one_with_identity_gradient() -> None:
    z = jax.random.normal(jax.random.key(0), (50, 18)) * 3
    np.testing.assert_array_equal(np.abs(lfq.quantize(z)[0]), 1)
    g = jax.random.normal(jax.random.key(1), z.shape)
    (dz,) = jax.vjp(lambda z: lfq.quantize(z)[0], z)[1](g)
    np.testing.assert_array_equal(dz, g)


def test_half_precision_latents_are_quantized_in_float32() -> None:
    q, _ = lfq.quantize(jnp.ones((2, 4), jnp.bfloat16))
    assert q.dtype == jnp.float32
    assert lfq.losses(jnp.ones((2, 4), jnp.bfloat16)).entropy.dtype == jnp.float32


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("temperature,spread", [(0.01, 0.01), (0.01, 1.0), (1.0, 1.0)])
def test_losses_match_the_formula_over_all_codes(
    bits: int, temperature: float, spread: float
) -> None:
    z = np.random.default_rng(bits).normal(size=(40, bits)).astype(np.float32) * spread
    got = lfq.losses(jnp.asarray(z).reshape(2, 4, 5, bits), temperature=temperature)
    sample, batch = full_entropies(z, temperature)
    np.testing.assert_allclose(got.sample_entropy, sample, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.batch_entropy, batch, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.entropy, sample - batch, rtol=1e-4, atol=2e-5)
    commitment = np.mean((np.where(z >= 0, 1.0, -1.0) - z.astype(np.float64)) ** 2)
    np.testing.assert_allclose(got.commitment, commitment, rtol=1e-5)


def test_grouped_batch_entropy_averages_consecutive_and_strided_groups() -> None:
    z = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32) * 0.05
    z[:, 1] = z[:, 0]
    batch = lambda columns: full_entropies(z[:, columns], 0.1)[1]  # noqa: E731
    consecutive = batch([0, 1, 2]) + batch([3, 4, 5])
    strided = batch([0, 2, 4]) + batch([1, 3, 5])
    got = lfq.losses(jnp.asarray(z), temperature=0.1, groups=2).batch_entropy
    np.testing.assert_allclose(got, (consecutive + strided) / 2, rtol=1e-4)
    exact = lfq.losses(jnp.asarray(z), temperature=0.1).batch_entropy
    assert consecutive != pytest.approx(strided, rel=1e-3)
    assert exact < got


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e4])
def test_gradients_stay_finite_at_any_magnitude(scale: float) -> None:
    z = jax.random.normal(jax.random.key(0), (8, 18)) * scale

    def total(z: jax.Array) -> jax.Array:
        out = lfq.losses(z)
        return out.entropy + out.commitment

    assert np.isfinite(jax.grad(total)(z)).all()


def test_full_codebook_of_18_bits_needs_megabytes() -> None:
    """1,280 latents x 2^18 codes in float32 would be 1.3 GB."""
    z = jax.ShapeDtypeStruct((1280, 18), jnp.float32)
    compiled = jax.jit(jax.grad(lambda z: lfq.losses(z).entropy)).lower(z).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20


def test_entropy_weight_anneals_from_three_to_one() -> None:
    factors = [float(lfq.entropy_anneal(jnp.int32(s), 3.0, 2000)) for s in (0, 1000, 2000, 9000)]
    np.testing.assert_allclose(factors, [3, 2, 1, 1])
    assert float(lfq.entropy_anneal(jnp.int32(5), 3.0, 0)) == 1
