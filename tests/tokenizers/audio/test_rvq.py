"""The residual quantizer: brute force in float64, another library's numbers, a mesh, and learning."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from poet.distributed import mesh as meshes
from poet.distributed.mesh import BATCH_AXES
from poet.spec import AudioTokenizerSpec, AudioTrainSpec, MeshSpec
from poet.tokenizers.audio import rvq

SPEC = AudioTokenizerSpec(levels=4, codes=16, dim=5)
# Made by tests/benchmarks/residual_vq_peer.py.
PEER = Path(__file__).parents[2] / "fixtures" / "residual_vq.npz"


def latents(batch: int = 8, frames: int = 25, dim: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, frames, dim)).astype(np.float32)


@functools.cache
def books() -> dict:
    return rvq.kmeans(latents(), rvq.empty(SPEC), jax.random.key(1), 10)


def uses(ids: np.ndarray, codes: int = 16) -> np.ndarray:
    """int (L, N): how often every code of every level is in ids (B, L, F)."""
    levels = np.asarray(ids).swapaxes(0, 1)
    return np.stack([np.bincount(level.ravel(), minlength=codes) for level in levels])


def brute_force(z: np.ndarray, vectors: np.ndarray, levels: np.ndarray) -> tuple:
    """Float64: ids of every level, the sum of the first `levels`, and the commitment."""
    ids = np.zeros((len(z), len(vectors), z.shape[1]), int)
    total, distances = np.zeros(z.shape), []
    for b in range(len(z)):
        for f in range(z.shape[1]):
            for level, codes in enumerate(np.float64(vectors)):
                rest = z[b, f] - total[b, f]
                ids[b, level, f] = np.argmin(((rest - codes) ** 2).sum(-1))
                chosen = codes[ids[b, level, f]]
                if level < levels[b]:
                    distances.append(((rest - chosen) ** 2).mean())
                    total[b, f] += chosen
    return ids, total, np.mean(distances)


def test_quantizing_equals_brute_force_with_levels_dropped() -> None:
    z, levels = latents(4, 9), np.array([1, 4, 2, 3])
    ids, total, commitment = brute_force(z, np.asarray(books()["vectors"]), levels)
    found = rvq.quantize(z, books()["vectors"], levels)
    used = np.arange(4)[None, :, None] < levels[:, None, None]
    np.testing.assert_array_equal(np.where(used, found.ids, 0), np.where(used, ids, 0))
    np.testing.assert_allclose(found.z, total, atol=1e-6)
    np.testing.assert_allclose(found.commitment, commitment, rtol=1e-5)


def test_encoding_and_decoding_are_what_training_does() -> None:
    z, vectors = latents(), books()["vectors"]
    whole = rvq.quantize(z, vectors)
    ids = rvq.encode(z, vectors)
    np.testing.assert_array_equal(ids, whole.ids)
    np.testing.assert_allclose(rvq.decode(ids, vectors), whole.z, atol=1e-6)
    np.testing.assert_array_equal(rvq.encode(z, vectors[:2]), ids[:, :2])


def test_error_falls_with_every_level() -> None:
    z, vectors = latents(seed=5), books()["vectors"]
    ids = rvq.encode(z, vectors)
    errors = [float(jnp.mean((rvq.decode(ids[:, :n], vectors) - z) ** 2)) for n in range(1, 5)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]


def test_gradients_go_straight_through_and_to_the_commitment() -> None:
    z, vectors = jnp.asarray(latents(2, 3)), books()["vectors"]
    weight = latents(2, 3, seed=3)

    def through(z: jax.Array) -> jax.Array:
        return jnp.sum(weight * rvq.straight_through(z, rvq.quantize(z, vectors).z))

    np.testing.assert_allclose(jax.grad(through)(z), weight, rtol=1e-6)
    gradient = jax.grad(lambda z: rvq.quantize(z, vectors).commitment)(z)
    ids, _, _ = brute_force(np.asarray(z), np.asarray(vectors), np.array([4, 4]))
    # Every level pulls z, through its residual, to its own vector alone.
    total, expected = np.zeros(z.shape), np.zeros(z.shape)
    for level in range(4):
        total += np.asarray(vectors)[level][ids[:, level]]
        expected += 2 * (z - total) / z.size / 4
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_k_means_halves_the_error_of_random_codes_and_uses_every_code() -> None:
    z = latents(16, 50)
    start = rvq.kmeans(z, rvq.empty(SPEC), jax.random.key(1), 0)
    done = rvq.kmeans(z, rvq.empty(SPEC), jax.random.key(1), 20)
    errors = [float(rvq.quantize(z, b["vectors"]).commitment) for b in (start, done)]
    assert errors[1] < 0.8 * errors[0]
    assert float(done["usage"].min()) > 0
    np.testing.assert_allclose(done["usage"].sum(1), 16 * 50)
    # Lloyd's fixed point: every vector of the first level is the mean of those that chose it.
    flat, ids = z.reshape(-1, 5), np.asarray(rvq.nearest(z.reshape(-1, 5), done["vectors"][0]))
    means = np.stack([flat[ids == n].mean(0) for n in range(16)])
    np.testing.assert_allclose(done["vectors"][0], means, atol=0.1)


def test_update_is_a_moving_average_and_dead_codes_come_back_from_the_batch() -> None:
    train = AudioTrainSpec(codebook_decay=0.9, dead_fraction=0.5)
    z = latents()
    state = {k: np.array(v) for k, v in books().items()}
    state["usage"][1, 3], state["vectors"][1, 3] = 0.0, 50.0  # far from everything, never chosen
    quantized = rvq.quantize(z, state["vectors"])
    new = rvq.update(state, quantized, jax.random.key(0), train)
    counts = uses(quantized.ids)
    usage = 0.9 * state["usage"] + 0.1 * counts
    alive = usage >= 0.5 * usage.mean(axis=1, keepdims=True)
    assert not alive[1, 3]
    np.testing.assert_allclose(np.asarray(new["usage"])[alive], usage[alive], rtol=1e-5)
    rest = np.asarray(quantized.residuals)
    distances = np.abs(rest[1] - np.asarray(new["vectors"])[1, 3]).max(-1)
    assert distances.min() < 1e-6
    sums = np.zeros((4, 16, 5))
    for level in range(4):
        np.add.at(sums[level], np.asarray(quantized.ids[:, level]).ravel(), rest[level])
    expected = (0.9 * state["sums"] + 0.1 * sums) / np.maximum(usage, 1e-9)[..., None]
    np.testing.assert_allclose(np.asarray(new["vectors"])[alive], expected[alive], rtol=1e-4, atol=1e-5)


def test_few_codes_are_replaced_in_a_step_and_a_replaced_one_stays_a_while() -> None:
    """400 vectors a step for 1,024 codes, a third of which lies far from everything.

    Under an absolute bound of 2 uses a step, 916 of them were replaced at every step.
    """
    train, codes, steps = AudioTrainSpec(codebook_decay=0.9), 1024, 200
    spec = AudioTokenizerSpec(levels=1, codes=codes, dim=5)
    state = jax.tree.map(np.array, rvq.kmeans(latents(8, 50), rvq.empty(spec), jax.random.key(1), 2))
    state["vectors"][0, ::3] += 100.0
    state["sums"], state["usage"] = state["vectors"] * 0.4, np.full((1, codes), 0.4, np.float32)

    @jax.jit
    def step(state: dict, z: jax.Array, key: jax.Array) -> tuple[dict, jax.Array]:
        quantized = rvq.quantize(z, state["vectors"])
        counts = jnp.zeros(codes).at[quantized.ids.ravel()].add(1.0)
        new = rvq.update(state, quantized, key, train)
        return new, new["usage"][0] > 0.9 * state["usage"][0] + 0.1 * counts + 1e-4

    born, lives = np.full(codes, -1), []
    replaced = np.zeros((steps, codes), bool)
    for n in range(steps):
        state, replaced[n] = step(state, latents(8, 50, seed=n), jax.random.key(n))
        lives += list(n - born[replaced[n] & (born >= 0)])
        born[replaced[n]] = n
    assert replaced[:, ::3].any(axis=0).all(), "what is far from everything comes back"
    assert replaced[-100:].mean() < 0.01
    assert min(lives) > 20  # From the average use to a twentieth of it: 28 steps without one.


def test_dropped_levels_leave_their_codebooks_alone() -> None:
    train = AudioTrainSpec(codebook_decay=0.9, dead_fraction=0.0)
    quantized = rvq.quantize(latents(seed=9), books()["vectors"], np.full(8, 2))
    new = rvq.update(books(), quantized, jax.random.key(0), train)
    np.testing.assert_allclose(new["vectors"][2:], books()["vectors"][2:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["usage"][2:], 0.9 * books()["usage"][2:], rtol=1e-5)
    assert np.abs(new["vectors"][:2] - books()["vectors"][:2]).max() > 1e-4


def test_quantizer_dropout_draws_every_level_equally_often() -> None:
    drawn = np.asarray(rvq.random_levels(jax.random.key(0), 12_000, 12, 1.0))
    counts = np.bincount(drawn, minlength=13)
    assert counts[0] == 0 and np.abs(counts[1:] - 1000).max() < 5 * 1000**0.5
    half = np.asarray(rvq.random_levels(jax.random.key(1), 12_000, 12, 0.5))
    assert abs((half == 12).mean() - (0.5 + 0.5 / 12)) < 0.03
    assert (np.asarray(rvq.random_levels(jax.random.key(2), 100, 12, 0.0)) == 12).all()


def test_statistics_count_codes_by_level() -> None:
    ids = np.array([[[0, 1, 2, 3]] * 1 + [[5, 5, 5, 5]]])
    found = rvq.statistics(ids, 8)
    np.testing.assert_allclose(found["usage"], [0.5, 0.125])
    np.testing.assert_allclose(found["entropy_bits"], [2.0, 0.0], atol=1e-6)


# ------------------------------------------------------------------------------------------- mesh


@pytest.mark.parametrize("dead_fraction", [0.0, 0.5])
def test_a_mesh_learns_what_one_device_learns(dead_fraction: float) -> None:
    mesh = meshes.build(MeshSpec(data=2, fsdp=4))
    train = AudioTrainSpec(dead_fraction=dead_fraction)
    parts, whole = PartitionSpec(BATCH_AXES), PartitionSpec()

    def learn(z: jax.Array, axes: tuple[str, ...]) -> tuple:
        quantized = rvq.quantize(z, books()["vectors"], None, axes)
        new = rvq.update(books(), quantized, jax.random.key(7), train, axes)
        return new, quantized.commitment, rvq.statistics(quantized.ids, 16, axes)

    with jax.set_mesh(mesh):
        sharded = jax.jit(jax.shard_map(lambda z: learn(z, BATCH_AXES), mesh=mesh, in_specs=parts, out_specs=whole))(
            jax.device_put(latents(), jax.NamedSharding(mesh, parts))
        )
    alone = learn(latents(), ())
    np.testing.assert_allclose(sharded[0]["usage"], alone[0]["usage"], rtol=1e-5)
    np.testing.assert_allclose(sharded[1], alone[1], rtol=1e-5)
    np.testing.assert_allclose(sharded[2]["usage"], alone[2]["usage"])
    counts = uses(rvq.quantize(latents(), books()["vectors"]).ids)
    usage = 0.99 * np.asarray(books()["usage"]) + 0.01 * counts
    alive = usage > dead_fraction * usage.mean(axis=1, keepdims=True)
    assert alive.mean() > 0.5
    np.testing.assert_allclose(
        np.asarray(sharded[0]["vectors"])[alive], np.asarray(alone[0]["vectors"])[alive], atol=1e-5
    )


def test_k_means_on_a_mesh_gives_equal_codebooks_everywhere_and_a_like_error() -> None:
    mesh = meshes.build(MeshSpec(data=2, fsdp=4))
    z = latents(16, 50)

    def run(z: jax.Array) -> dict:
        return rvq.kmeans(z, rvq.empty(SPEC), jax.random.key(1), 10, BATCH_AXES)

    with jax.set_mesh(mesh):
        placed = jax.device_put(z, jax.NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
        found = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=PartitionSpec(BATCH_AXES), out_specs=PartitionSpec()))(
            placed
        )
    copies = [np.asarray(shard.data) for shard in found["vectors"].addressable_shards]
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy, copies[0])
    alone = rvq.kmeans(z, rvq.empty(SPEC), jax.random.key(1), 10)
    errors = [float(rvq.quantize(z, jnp.asarray(b)).commitment) for b in (copies[0], alone["vectors"])]
    assert abs(errors[0] - errors[1]) < 0.1 * errors[1]


# ------------------------------------------------------------------------------- another library


def test_every_term_equals_vector_quantize_pytorchs() -> None:
    peer = np.load(PEER)
    levels = peer["vectors"].shape[0]
    quantized = rvq.quantize(peer["z"], peer["vectors"])
    np.testing.assert_array_equal(quantized.ids, peer["ids"].transpose(0, 2, 1))
    np.testing.assert_allclose(quantized.z, peer["quantized"], atol=1e-5)
    # It averages the losses of the levels one by one; here every level has as many vectors.
    np.testing.assert_allclose(quantized.commitment, peer["commitment"].mean(), rtol=1e-4)
    state = {"vectors": peer["vectors"], "usage": peer["usage"], "sums": peer["vectors"] * peer["usage"][..., None]}
    decay = float(peer["decay"])
    new = rvq.update(state, quantized, jax.random.key(0), AudioTrainSpec(codebook_decay=decay, dead_fraction=0.0))
    np.testing.assert_allclose(new["usage"], peer["usage_after"], rtol=1e-4, atol=1e-5)
    used = peer["usage_after"] > 1e-2
    assert used.mean() > 0.9 and levels == 4
    np.testing.assert_allclose(np.asarray(new["vectors"])[used], peer["vectors_after"][used], rtol=2e-3, atol=2e-3)
