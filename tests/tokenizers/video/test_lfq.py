"""The lookup-free quantizer against brute force over all 2^K codes in float64 (spec A3-A5)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from poet.distributed import mesh as meshes
from poet.spec import MeshSpec, UserError
from poet.tokenizers.video import lfq


@functools.partial(jax.jit, static_argnames=("temperature", "groups", "samples"))
def terms(z: jax.Array, **modes) -> dict[str, jax.Array]:
    return vars(lfq.losses(z, **modes))


def losses(z: jax.Array, **modes) -> lfq.LFQLosses:
    """Compiled: one operation after another would be compiled one by one."""
    return lfq.LFQLosses(**terms(z, **modes))


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
    ids = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=6, max_size=6))
    ids = np.array(ids + [0, 2**bits - 1], np.int32)
    codes = np.asarray(lfq.ids_to_bits(jnp.asarray(ids), bits))
    binary = [[int(b) for b in reversed(f"{i:0{bits}b}")] for i in ids]
    np.testing.assert_array_equal(codes, np.array(binary) * 2.0 - 1)
    np.testing.assert_array_equal(lfq.bits_to_ids(codes > 0), ids)


def test_least_significant_bit_first_and_zero_is_on() -> None:
    q, ids = lfq.quantize(jnp.array([[0.0, -0.0, -1e-30], [-3.0, 2.0, -1.0], [-1.0, -1.0, 5.0]]))
    np.testing.assert_array_equal(ids, [0b011, 0b010, 0b100])
    np.testing.assert_array_equal(q[0], [1, 1, -1])


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
def test_losses_match_the_formula_over_all_codes(bits: int, temperature: float, spread: float) -> None:
    z = np.random.default_rng(bits).normal(size=(40, bits)).astype(np.float32) * spread
    got = losses(jnp.asarray(z).reshape(2, 4, 5, bits), temperature=temperature)
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
    got = losses(jnp.asarray(z), temperature=0.1, groups=2).batch_entropy
    np.testing.assert_allclose(got, (consecutive + strided) / 2, rtol=1e-4)
    exact = losses(jnp.asarray(z), temperature=0.1).batch_entropy
    assert consecutive != pytest.approx(strided, rel=1e-3)
    assert exact < got


@settings(max_examples=25, deadline=None)
@given(groups=st.integers(1, 5), spread=st.floats(0.01, 3.0), shared=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_groups_bound_the_exact_batch_entropy(groups: int, spread: float, shared: float, seed: int) -> None:
    """Equal for one group; above it for more groups, if the bits depend on each other."""
    rng = np.random.default_rng(seed)
    z = (1 - shared) * rng.normal(size=(24, 5)) + shared * rng.normal(size=(24, 1))
    z = jnp.asarray(z * spread, jnp.float32)
    exact = full_entropies(np.asarray(z), 1.0)[1]
    got = float(losses(z, temperature=1.0, groups=groups).batch_entropy)
    if groups == 1:
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)
    assert exact * (1 - 1e-4) - 1e-5 <= got <= 5 * np.log(2) * (1 + 1e-5)


def test_sampled_tokens_are_one_of_each_stretch() -> None:
    np.testing.assert_array_equal(lfq.sample_tokens(12, 4), [0, 3, 6, 9])
    np.testing.assert_array_equal(lfq.sample_tokens(10, 4), [0, 2, 5, 7])
    drawn = np.asarray(lfq.sample_tokens(40_000, 500, jax.random.key(0)))
    np.testing.assert_array_equal(drawn // 80, np.arange(500))


def test_every_token_is_sampled_equally_often() -> None:
    """10 tokens into 4 stretches of 2.5, so tokens 2 and 7 are shared by two stretches."""
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    drawn = jax.jit(jax.vmap(lambda key: lfq.sample_tokens(10, 4, key)))(keys)
    shares = np.bincount(np.asarray(drawn).reshape(-1), minlength=10) / draws
    # A count of these draws has a standard deviation of at most 0.0035.
    np.testing.assert_allclose(shares, 4 / 10, atol=0.018)


def test_batch_entropy_of_samples_is_that_of_those_tokens() -> None:
    z = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    key = jax.random.key(3)
    for chosen, rows in ((None, np.arange(0, 60, 5)), (key, lfq.sample_tokens(60, 12, key))):
        got = losses(jnp.asarray(z), temperature=1.0, samples=12, key=chosen)
        expected = full_entropies(z[np.asarray(rows)], 1.0)[1]
        np.testing.assert_allclose(got.batch_entropy, expected, rtol=1e-4)
        # The other terms are over all tokens.
        np.testing.assert_allclose(got.sample_entropy, full_entropies(z, 1.0)[0], rtol=1e-4)


@pytest.mark.parametrize("samples", [60, 61, 10**6])
def test_as_many_samples_as_tokens_is_full(samples: int) -> None:
    z = jnp.asarray(np.random.default_rng(0).normal(size=(60, 5)), jnp.float32)
    full = losses(z, temperature=1.0)
    for key in (None, jax.random.key(0)):
        got = losses(z, temperature=1.0, samples=samples, key=key)
        assert float(got.batch_entropy) == float(full.batch_entropy)


def test_sampled_batch_entropy_tends_to_the_full_one_from_below() -> None:
    """The mean over draws rises with the number of tokens towards the entropy of all of them."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4096, 5)) * 0.5, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 50)

    def mean_over_draws(samples: int) -> float:
        draw = lambda key: (
            lfq.losses(  # noqa: E731
                z, temperature=1.0, samples=samples, key=key
            ).batch_entropy
        )
        return float(jnp.mean(jax.jit(jax.vmap(draw))(keys)))

    few, some, many = (mean_over_draws(n) for n in (8, 64, 1024))
    full = full_entropies(np.asarray(z), 1.0)[1]
    assert few < some < many < full * (1 + 1e-5)
    assert full - many < 0.01 * full < full - few


@pytest.mark.parametrize("modes", [{"groups": -1}, {"groups": 6}, {"samples": -1}], ids=str)
def test_impossible_modes_are_refused(modes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="TOKENIZER_TRAIN.entropy_"):
        lfq.losses(jnp.zeros((4, 5)), **modes)


# Batch entropy of the mode, for float64 z (30, 5), by brute force.
MODES: dict[str, tuple[dict[str, int], Callable[[np.ndarray], float]]] = {
    "full": ({}, lambda z: full_entropies(z, 1.0)[1]),
    "one group": ({"groups": 1}, lambda z: full_entropies(z, 1.0)[1]),
    "two groups": (
        {"groups": 2},
        lambda z: sum(full_entropies(z[:, columns], 1.0)[1] / 2 for columns in ([0, 1], [2, 3, 4], [0, 2, 4], [1, 3])),
    ),
    "ten tokens": ({"samples": 10}, lambda z: full_entropies(z[::3], 1.0)[1]),
}


@pytest.mark.parametrize("name", MODES)
def test_gradient_is_that_of_the_formula(name: str) -> None:
    """Central differences in float64 of sample entropy, minus batch entropy, plus commitment."""
    modes, batch_entropy = MODES[name]
    z = np.random.default_rng(1).normal(size=(30, 5))
    codes = np.where(z >= 0, 1.0, -1.0)

    def formula(z: np.ndarray) -> float:
        return full_entropies(z, 1.0)[0] - batch_entropy(z) + np.mean((codes - z) ** 2)

    def total(z: jax.Array) -> jax.Array:
        out = lfq.losses(z, temperature=1.0, **modes)
        return out.entropy + out.commitment

    expected = np.empty_like(z)
    for place in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[place] = 1e-5
        expected[place] = (formula(z + step) - formula(z - step)) / 2e-5
    got = jax.jit(jax.grad(total))(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 5])
def test_gradient_over_chunks_is_that_of_one(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four whole chunks and an odd one, of five bits together and of each bit alone."""
    z = jnp.asarray(np.random.default_rng(3).normal(size=(30, 5)), jnp.float32)

    def entropy(z: jax.Array) -> jax.Array:
        return lfq.losses(z, temperature=1.0, groups=groups).batch_entropy

    expected = jax.jit(jax.value_and_grad(entropy))(z)
    monkeypatch.setattr(lfq, "CHUNK", 7)
    for got, one in zip(jax.jit(jax.value_and_grad(entropy))(z), expected, strict=True):
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-8)


@functools.cache
def mesh_of_eight() -> Mesh:
    return meshes.build(MeshSpec(data=2, fsdp=4))


@pytest.mark.parametrize("modes", [{}, {"groups": 2}, {"samples": 24}], ids=str)
def test_eight_shards_give_the_losses_of_the_whole_batch(modes: dict[str, int]) -> None:
    """Each shard takes its share of the samples, so evenly spaced ones are those of the whole."""
    z = jnp.asarray(np.random.default_rng(2).normal(size=(8, 9, 6)) * 0.5, jnp.float32)

    def total(z: jax.Array, mesh_axes: tuple[str, ...] = ()) -> jax.Array:
        out = lfq.losses(z, temperature=1.0, mesh_axes=mesh_axes, **modes)
        return jnp.stack([out.commitment, out.sample_entropy, out.batch_entropy])

    def both(run: Callable[[jax.Array], jax.Array], z: jax.Array) -> tuple:
        terms, pullback = jax.vjp(run, z)
        return terms, pullback(jnp.array([1.0, 2.0, -3.0]))[0]

    expected = jax.jit(functools.partial(both, total))(z)
    with jax.set_mesh(mesh_of_eight()):
        batch = PartitionSpec(meshes.BATCH_AXES)
        sharded = jax.shard_map(
            functools.partial(total, mesh_axes=meshes.BATCH_AXES), in_specs=batch, out_specs=PartitionSpec()
        )
        got = jax.jit(functools.partial(both, sharded))(jax.device_put(z, meshes.batch_sharding(mesh_of_eight())))
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_shards_draw_their_samples_apart() -> None:
    """All shards hold the same 16 tokens, and one key: drawn together they would be 2 of them."""
    tokens = np.random.default_rng(4).normal(size=(1, 16, 6)).astype(np.float32)
    with jax.set_mesh(mesh_of_eight()):
        sharded = jax.shard_map(
            lambda z: lfq.losses(z, samples=16, key=jax.random.key(0), mesh_axes=meshes.BATCH_AXES).batch_entropy,
            in_specs=PartitionSpec(meshes.BATCH_AXES),
            out_specs=PartitionSpec(),
        )
        z = jax.device_put(np.repeat(tokens, 8, axis=0), meshes.batch_sharding(mesh_of_eight()))
        entropy = float(jax.jit(sharded)(z))
    assert np.log(4) < entropy < np.log(16)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e4])
def test_gradients_stay_finite_at_any_magnitude(scale: float) -> None:
    z = jax.random.normal(jax.random.key(0), (8, 18)) * scale

    def total(z: jax.Array) -> jax.Array:
        out = lfq.losses(z)
        return out.entropy + out.commitment

    assert np.isfinite(jax.jit(jax.grad(total))(z)).all()


def test_full_codebook_of_18_bits_needs_megabytes() -> None:
    """1,280 latents x 2^18 codes in float32 would be 1.3 GB."""
    z = jax.ShapeDtypeStruct((1280, 18), jnp.float32)
    compiled = jax.jit(jax.grad(lambda z: lfq.losses(z).entropy)).lower(z).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20


def test_entropy_weight_anneals_from_three_to_one() -> None:
    known = {0: 3.0, 1: 2.999, 500: 2.5, 1000: 2.0, 1999: 1.001, 2000: 1.0, 9000: 1.0}
    factors = [float(lfq.entropy_anneal(jnp.int32(s), 3.0, 2000)) for s in known]
    np.testing.assert_allclose(factors, list(known.values()), rtol=1e-6)
    assert float(lfq.entropy_anneal(jnp.int32(5), 3.0, 0)) == 1
