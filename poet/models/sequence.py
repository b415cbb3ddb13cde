"""Positions split over the mesh axis `sequence`, and attention on whole sequences.

Between attentions a device holds a part of each clip's positions, so that activations take a part of
the memory.  Around an attention an all-to-all gives every device all positions of a part of the heads
(Ulysses, 2309.14509), so that each attention kernel stays as it is.

A length that the axis does not divide is filled up behind its end, where no position looks: whatever
reads the states drops the filling, so every layout can be split that has a position for each device.

Where no mesh is set, or its axis has one device, all of this gives back what it is given.

Shape suffixes: B batch, S positions, D width, K key-value heads.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, reshard

from poet.distributed import mesh as mesh_lib
from poet.models.layers import constrain
from poet.spec import UserError
from poet.tasks.layout import Layout

AXIS = "sequence"


def is_split() -> bool:
    """Whether positions are split over the mesh that is set."""
    return bool(mesh_lib.several(AXIS))


def filled(x: jax.Array, dim: int) -> jax.Array:
    """`x` of any shape with zeros behind the positions in `dim`, as many as the axis needs to divide them."""
    if not is_split():
        return x
    padding = -x.shape[dim] % jax.sharding.get_abstract_mesh().shape[AXIS]
    return jnp.pad(x, [(0, padding if i == dim else 0) for i in range(x.ndim)]) if padding else x


def split(x_BxSxD: jax.Array) -> jax.Array:
    """A part of the positions on each device; S is divisible.  Dims behind S may lack, or be more."""
    if not is_split():
        return x_BxSxD
    return constrain(x_BxSxD, "batch", "sequence", *(None,) * (x_BxSxD.ndim - 2))


def whole(x_BxSxD: jax.Array) -> jax.Array:
    """All positions of a part of the width on each device: positions can be cut out where they lie."""
    return constrain(x_BxSxD, "batch", None, "columns") if is_split() else x_BxSxD


def to_heads(*arrays_BxSxK: jax.Array) -> tuple[jax.Array, ...]:
    """Queries, keys or values [B, S, K, ...], split over heads alone: `tensor`, then `sequence`.

    Raises UserError, while tracing, if there are too few heads.
    """
    if not is_split():
        return arrays_BxSxK
    check_heads(jax.sharding.get_abstract_mesh(), arrays_BxSxK[0].shape[2])
    return tuple(constrain(x, "batch", None, "attended_heads", *(None,) * (x.ndim - 3)) for x in arrays_BxSxK)


def from_heads(o_BxSxK: jax.Array, like: jax.Array) -> jax.Array:
    """The result of attention, of the same shape, placed as the queries were before `to_heads`."""
    return reshard(o_BxSxK, jax.typeof(like).sharding.spec) if is_split() else o_BxSxK


def check(mesh: Mesh | AbstractMesh, kv_heads: int, layout: Layout, what: str) -> None:
    """Raises UserError unless the mesh can split this layout's sequence and share out its heads."""
    check_heads(mesh, kv_heads)
    ways, read = mesh.shape[AXIS], layout.length - 1
    if ways > read:
        raise UserError(
            f"{what}: MESH.sequence = {ways} cannot split the {read} positions that are read of its "
            f"layout; use at most {read}, or drop this task from DATA.mixture_rates"
        )


def check_heads(mesh: Mesh | AbstractMesh, kv_heads: int) -> None:
    """Raises UserError unless every device gets whole key-value heads."""
    tensor, ways = mesh.shape["tensor"], mesh.shape[AXIS]
    if kv_heads % (tensor * ways) and ways > 1:
        free = kv_heads // tensor
        fitting = [str(n) for n in range(1, free + 1) if free % n == 0] if kv_heads % tensor == 0 else []
        raise UserError(
            f"MODEL.kv_heads = {kv_heads} is not divisible by MESH.sequence x MESH.tensor = {ways} x "
            f"{tensor}: attention gives each device all positions of whole key-value heads; use "
            + (f"MESH.sequence = {' or '.join(fitting)}" if fitting else "a lower MESH.tensor")
        )
