"""Embedding lookup in a table that is split over the mesh.

A table's rows are split over `tensor` and its columns over `sequence`, then `fsdp`.  Gathering it, or
handing the lookup to the partitioner, would move the whole table at every step.  Instead each device
looks its columns up for the tokens of its whole fsdp group, and an all-to-all turns columns into clips:
only activations move, and the table's gradient stays with the table.  Columns
stay split over `sequence`, whose devices have the same clips.

Shape suffixes: B batch, N positions, D width, V rows of a table.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from poet.distributed.mesh import BATCH_AXES, several, total


def lookup(rows_VxD: jax.Array, ids_BxN: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table, [B, N, D] in `dtype`, split over the batch axes; D is split where columns of the
    table are split over other axes than those.  Ids are clipped to the table.

    Args:
      rows_VxD: split as its sharding says; whole on every device if no mesh is set.
      ids_BxN: int32 row numbers, split over the batch axes.
    """
    spec = jax.typeof(rows_VxD).sharding.spec
    plan = _Plan(rows_VxD.shape[0], rows_VxD.dtype, jnp.dtype(dtype), (*spec, None, None)[:2])
    return _lookup(plan, rows_VxD, ids_BxN)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static arguments.

    Attributes:
      placed: mesh axes of the table's rows and columns.
    """

    rows: int
    table_dtype: jnp.dtype
    dtype: jnp.dtype
    placed: tuple[str | tuple[str, ...] | None, str | tuple[str, ...] | None]

    @property
    def rows_axis(self) -> str | None:
        """The axis that really splits rows: None if it has one device."""
        return next(iter(several(self.placed[0])), None)

    @property
    def columns_axis(self) -> str | None:
        """The axis that really splits columns, and clips as well."""
        return next((axis for axis in several(self.placed[1]) if axis in BATCH_AXES), None)

    @property
    def result(self) -> PartitionSpec:
        """The sharding of the result: columns that no exchange completes stay where they are."""
        rest = tuple(axis for axis in several(self.placed[1]) if axis not in BATCH_AXES)
        return PartitionSpec(BATCH_AXES, None, rest) if rest else PartitionSpec(BATCH_AXES)

    def map(self, local: Any, *, backward: bool = False) -> Any:
        """`local` on every device; a table is its first input, or what it returns if backward."""
        if jax.sharding.get_abstract_mesh().empty:
            return local
        batch, table = PartitionSpec(BATCH_AXES), PartitionSpec(*self.placed)
        # Gradients are written by hand, so the replication types need no proof.
        return jax.shard_map(
            local,
            in_specs=(self.result, batch) if backward else (table, batch),
            out_specs=table if backward else self.result,
            check_vma=False,
        )

    def here(self, ids_BxN: jax.Array, held: int) -> tuple[jax.Array, jax.Array | None]:
        """Row numbers in this device's shard of `held` rows, and which lie in it (None: all)."""
        ids_BxN = jnp.clip(ids_BxN, 0, self.rows - 1)
        if not self.rows_axis:
            return ids_BxN, None
        here_BxN = ids_BxN - held * jax.lax.axis_index(self.rows_axis)
        return jnp.clip(here_BxN, 0, held - 1), (here_BxN >= 0) & (here_BxN < held)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(plan: _Plan, rows_VxD: jax.Array, ids_BxN: jax.Array) -> jax.Array:
    return plan.map(functools.partial(_forward_local, plan))(rows_VxD, ids_BxN)


def _forward(plan: _Plan, rows_VxD: jax.Array, ids_BxN: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _lookup(plan, rows_VxD, ids_BxN), ids_BxN


def _backward(plan: _Plan, ids_BxN: jax.Array, dx_BxNxD: jax.Array) -> tuple[jax.Array, None]:
    return plan.map(functools.partial(_backward_local, plan), backward=True)(dx_BxNxD, ids_BxN), None


_lookup.defvjp(_forward, _backward)


def _forward_local(plan: _Plan, rows_VxD: jax.Array, ids_BxN: jax.Array) -> jax.Array:
    here_BxN, inside_BxN = plan.here(_of_group(plan, ids_BxN), rows_VxD.shape[0])
    x_BxNxD = rows_VxD[here_BxN].astype(plan.dtype)
    if inside_BxN is not None:
        x_BxNxD = jax.lax.psum(jnp.where(inside_BxN[..., None], x_BxNxD, 0), plan.rows_axis)
    if plan.columns_axis:
        x_BxNxD = jax.lax.all_to_all(x_BxNxD, plan.columns_axis, 0, 2, tiled=True)
    return x_BxNxD


def _backward_local(plan: _Plan, dx_BxNxD: jax.Array, ids_BxN: jax.Array) -> jax.Array:
    """The gradient of this device's shard of the table, in the table's dtype."""
    if plan.columns_axis:
        dx_BxNxD = jax.lax.all_to_all(dx_BxNxD, plan.columns_axis, 2, 0, tiled=True)
    held = plan.rows // (jax.lax.axis_size(plan.rows_axis) if plan.rows_axis else 1)
    here_BxN, inside_BxN = plan.here(_of_group(plan, ids_BxN), held)
    dx_BxNxD = dx_BxNxD.astype(plan.table_dtype)
    if inside_BxN is not None:
        dx_BxNxD = jnp.where(inside_BxN[..., None], dx_BxNxD, 0)
    drows_VxD = jnp.zeros((held, dx_BxNxD.shape[-1]), plan.table_dtype).at[here_BxN].add(dx_BxNxD)
    return total(drows_VxD, [axis for axis in BATCH_AXES if axis != plan.columns_axis])


def _of_group(plan: _Plan, ids_BxN: jax.Array) -> jax.Array:
    """The ids of every device that holds other columns of the same rows."""
    if not plan.columns_axis:
        return ids_BxN
    return jax.lax.all_gather(ids_BxN, plan.columns_axis, axis=0, tiled=True)
