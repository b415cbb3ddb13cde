"""Cross-entropy and its gradients against float64 NumPy, whole and in chunks, on every kind of mesh;
and what it moves, from the compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.distributed import mesh as mesh_lib
from poet.planning import hlo
from poet.spec import MeshSpec
from poet.spec.vocabulary import Range
from poet.training import cross_entropy

WIDTH, BATCH, LENGTH, Z_LOSS = 16, 8, 7, 1e-2
ROWS = {"a": 32, "b": 16}
WHOLE = {"a": Range(0, 32, "a", 0), "b": Range(32, 48, "b", 32)}
RANGES = {"whole": (WHOLE["a"],), "slice": (Range(40, 44, "b", 32),), "union": (WHOLE["a"], WHOLE["b"])}
MESHES = {"one": None, "fsdp": (2, 4, 1, 1), "tensor": (1, 2, 1, 4), "sequence": (1, 2, 2, 2)}


def inputs(ranges: tuple[Range, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.arange(r.low, r.high) for r in ranges])
    return {
        "x": rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32),
        **{name: rng.normal(size=(rows, WIDTH)).astype(np.float32) for name, rows in ROWS.items()},
        "labels": rng.choice(ids, (BATCH, LENGTH)).astype(np.int32),
        "weights": rng.integers(0, 2, (BATCH, LENGTH)).astype(np.float32),
    }


def oracle(ranges: tuple[Range, ...], values: dict[str, np.ndarray]):
    """Sums, and gradients of the mean objective by hand, without chunks, in float64."""
    x, weights = values["x"].astype(np.float64), values["weights"].astype(np.float64)
    rows = np.concatenate([values[r.table][r.low - r.table_low : r.high - r.table_low] for r in ranges]).astype(
        np.float64
    )
    ids = np.concatenate([np.arange(r.low, r.high) for r in ranges])
    logits = x @ rows.T
    peak = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - peak).sum(-1)) + peak[..., 0]
    onehot = (values["labels"][..., None] == ids).astype(np.float64)
    label = (logits * onehot).sum(-1)
    loss = ((log_z - label) * weights).sum()
    sums = [
        loss + Z_LOSS * (log_z**2 * weights).sum(),
        loss,
        ((logits.argmax(-1) == onehot.argmax(-1)) * weights).sum(),
        weights.sum(),
    ]
    p = np.exp(logits - log_z[..., None])
    dlogits = p * (1 + 2 * Z_LOSS * log_z)[..., None] - onehot
    dlogits *= (weights / weights.sum())[..., None]
    drows = np.einsum("bnv,bnd->vd", dlogits, x)
    tables = {name: np.zeros((n, WIDTH)) for name, n in ROWS.items()}
    for r in ranges:
        tables[r.table][r.low - r.table_low : r.high - r.table_low] = drows[: r.size]
        drows = drows[r.size :]
    return sums, dlogits @ rows, tables


def mean_objective(ranges: tuple[Range, ...]):
    def run(x, tables, labels, weights):
        sums, _ = cross_entropy.cross_entropy(x, tables, labels, weights, ranges=ranges, z_loss=Z_LOSS)
        return sums.objective / sums.count, sums

    return run


def placed(mesh: jax.sharding.Mesh | None, values: dict[str, np.ndarray]):
    tables = {name: values[name] for name in ROWS}
    rest = (values["labels"], values["weights"])
    if mesh is None:
        return values["x"], tables, *rest
    batch = mesh_lib.batch_sharding(mesh)
    axes = {name: ("vocab", "table_embed") for name in ROWS}
    tables = jax.device_put(tables, mesh_lib.Rules().shardings(mesh, axes))
    return jax.device_put(values["x"], batch), tables, *jax.device_put(rest, batch)


@pytest.mark.parametrize("budget", (2**28, 40))
@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("name", RANGES)
def test_sums_and_gradients_equal_float64(name, shape, budget, monkeypatch):
    """A table's gradient is zero outside the legal rows, and lies where the table lies."""
    monkeypatch.setattr(cross_entropy, "LOGITS_BUDGET", budget)
    ranges, values = RANGES[name], inputs(RANGES[name])
    mesh = MESHES[shape] and mesh_lib.build(MeshSpec(**dict(zip(mesh_lib.AXES, MESHES[shape]))))
    with jax.set_mesh(mesh) if mesh else jax.ensure_compile_time_eval():
        arguments = placed(mesh, values)
        derived = jax.value_and_grad(mean_objective(ranges), argnums=(0, 1), has_aux=True)
        (_, sums), (dx, dtables) = jax.jit(derived)(*arguments)
        alone = jax.jit(mean_objective(ranges))(*arguments)[1]
    want_sums, want_dx, want_tables = oracle(ranges, values)
    np.testing.assert_allclose(jax.tree.leaves(sums), want_sums, rtol=1e-5)
    np.testing.assert_allclose(jax.tree.leaves(alone), want_sums, rtol=1e-5)
    np.testing.assert_allclose(dx, want_dx, atol=1e-6)
    for table, want in want_tables.items():
        np.testing.assert_allclose(dtables[table], want, atol=1e-6)
        assert mesh is None or dtables[table].sharding == arguments[1][table].sharding


def test_full_softmax_equals_legal_where_other_ids_cannot_occur():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4)), jnp.float32)
    x = x.at[..., 0].set(1.0)
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), jnp.float32)
    tables = {"never": jnp.zeros((10, 4)).at[:, 0].set(-1e4), "rows": rows}
    labels, weights = jnp.array([[10, 11, 12, 15, 13]]), jnp.ones((1, 5))
    never, legal = Range(0, 10, "never", 0), Range(10, 16, "rows", 10)
    alone, both = (
        cross_entropy.cross_entropy(x, tables, labels, weights, ranges=ranges)[0]
        for ranges in ((legal,), (never, legal))
    )
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(both)):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("length, per_position", ((1280, 4 * 2**18), (106, 2**26), (7, 2**30)))
def test_chunks_divide_the_span_and_fit(length, per_position):
    chunks = cross_entropy.chunk_count(length, per_position)
    assert length % chunks == 0
    assert length // chunks * per_position <= cross_entropy.LOGITS_BUDGET or chunks == length


@pytest.mark.parametrize("shape", ((1, 8, 1, 1), (2, 4, 1, 1), (1, 4, 2, 1)), ids=str)
def test_the_head_is_gathered_once_and_its_gradient_scattered_once(shape, monkeypatch):
    """At most 2.1 times the head's bytes, and nothing inside the loop over chunks.  Replicas along `data`
    add one sum of the shard that each device holds; along `sequence` columns of the states are
    exchanged for positions, and those of their gradient back."""
    monkeypatch.setattr(cross_entropy, "LOGITS_BUDGET", 2000)
    ids, rows, length = (Range(0, 512, "a", 0),), 512, 16
    replicas, shards, ways, _ = shape
    mesh = mesh_lib.build(MeshSpec(**dict(zip(mesh_lib.AXES, shape))))
    batch = mesh_lib.batch_sharding(mesh)
    table = mesh_lib.Rules().shardings(mesh, ("vocab", "table_embed"))
    states = mesh_lib.Rules().shardings(mesh, ("batch", None, "columns" if ways > 1 else None))

    def make(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(lambda *a: mean_objective(ids)(*a)[0], argnums=(0, 1))).lower(
            make((BATCH, length, 64), jnp.float32, states),
            {"a": make((rows, 64), jnp.float32, table)},
            make((BATCH, length), jnp.int32, batch),
            make((BATCH, length), jnp.float32, batch),
        )
    text = lowered.compile().as_text()
    found = hlo.collectives(text)
    head = rows * 64 * 4
    moved = hlo.totals(found)
    assert "while(" in text and not any(c.in_loop for c in found)
    assert moved["all-gather"] == moved["reduce-scatter"] == head
    exchanged = BATCH // shards * length // ways * 64 * 4 if ways > 1 else 0
    assert moved.get("all-to-all", 0) == 2 * exchanged
    assert sum(moved.values()) <= 2.1 * head + (head // shards if replicas > 1 else 0)
