"""Lookup in a split table: values and gradients are those of a whole one; only activations move."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.distributed import mesh as mesh_lib
from poet.models.lookup import lookup
from poet.planning import hlo
from poet.spec import MeshSpec

ROWS, WIDTH, BATCH, LENGTH = 64, 16, 8, 5


@pytest.mark.parametrize("shape", ((1, 8, 1, 1), (1, 2, 1, 4), (2, 2, 1, 2), (1, 2, 2, 2)), ids=str)
def test_values_and_gradients_equal_a_whole_table(shape):
    """Repeated ids add up; ids outside the table are clipped, as the plain lookup does."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    ids = rng.integers(-2, ROWS + 2, (BATCH, LENGTH)).astype(np.int32)
    weights = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    mesh = mesh_lib.build(MeshSpec(**dict(zip(mesh_lib.AXES, shape))))
    with jax.set_mesh(mesh):
        placement = mesh_lib.Rules().shardings(mesh, ("vocab", "table_embed"))
        arguments = jax.device_put(table, placement), *jax.device_put((ids, weights), mesh_lib.batch_sharding(mesh))

        def loss(table, ids, weights):
            x = lookup(table, ids, jnp.dtype("float32"))
            return jnp.sum(x * weights), x

        derived = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, x), gradient = derived(*arguments)
    clipped = np.clip(ids, 0, ROWS - 1)
    want = np.zeros((ROWS, WIDTH))
    np.add.at(want, clipped, weights.astype(np.float64))
    np.testing.assert_array_equal(x, table[clipped])
    np.testing.assert_allclose(gradient, want, atol=1e-5)
    assert gradient.sharding == placement


def test_what_moves_is_of_the_size_of_the_activations():
    """Values, their gradients and the ids; of a table of any number of rows."""
    mesh = mesh_lib.build(MeshSpec(data=1, fsdp=8, tensor=1))
    rows = jax.ShapeDtypeStruct(
        (4096, WIDTH), jnp.float32, sharding=mesh_lib.Rules().shardings(mesh, ("vocab", "table_embed"))
    )
    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32, sharding=mesh_lib.batch_sharding(mesh))

    def loss(table, ids):
        return jnp.sum(lookup(table, ids, jnp.dtype("float32")) ** 2)

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(rows, ids).compile().as_text()
    moved = hlo.totals(hlo.collectives(text))
    activations, clips = BATCH // 8 * LENGTH * WIDTH * 4, BATCH * LENGTH * 4
    assert moved["all-to-all"] == 2 * activations
    assert sum(moved.values()) <= 2 * activations + clips
