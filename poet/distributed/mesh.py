"""The device mesh, and the rules that place logical axes on it.

Mesh axes: `data` (across slices), `fsdp` (batch and parameter shards), `sequence` (positions and
parameter shards; optional), `tensor` (heads, MLP, vocabulary).  Axes are Explicit: a wrong sharding is
a type error at trace time, and optimizer moments inherit the shardings of their parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from poet.spec import MeshSpec, UserError, choose

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis -> mesh axis.  Tables are `vocab` x `table_embed`: rows over tensor, columns over
# sequence, then fsdp, as `models.lookup` and `training.cross_entropy` read them: what is exchanged
# over fsdp alone is then a run of columns.
DEFAULT_RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": BATCH_AXES,
    "layers": None,
    "embed": ("fsdp", "sequence"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "table_embed": ("sequence", "fsdp"),
    "text": None,
    "conv_in": None,
    "conv_out": "fsdp",
    "position": None,
    "sequence": "sequence",
    "columns": "sequence",
    "attended_heads": ("tensor", "sequence"),
}

LogicalAxes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Turns logical axes into partition specs; two dims on one mesh axis is an error."""

    table: Mapping[str, str | tuple[str, ...] | None] = dataclasses.field(default_factory=lambda: dict(DEFAULT_RULES))

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """PartitionSpec of an array whose dims carry these logical axes."""
        entries = [None if a is None else choose(a, self.table, "logical axis") for a in axes]
        owner: dict[str, str | None] = {}
        for name, entry in zip(axes, entries):
            for mesh_axis in (entry,) if isinstance(entry, str) else entry or ():
                if mesh_axis in owner:
                    raise UserError(
                        f"logical axes {owner[mesh_axis]!r} and {name!r} of one array both map to "
                        f"mesh axis {mesh_axis!r}; change one of the rules"
                    )
                owner[mesh_axis] = name
        return PartitionSpec(*entries)

    def shardings(self, mesh: Mesh | AbstractMesh, axes: Any) -> Any:
        """Tree of NamedSharding for a tree of logical-axis tuples."""
        return jax.tree.map(lambda a: NamedSharding(mesh, self.spec(a)), axes, is_leaf=is_axes)

    def check(self, mesh: Mesh | AbstractMesh, axes: Any, shapes: Any) -> None:
        """Raises UserError for the first dim that its mesh axes do not divide, naming the leaf."""
        leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)
        for (path, leaf_axes), leaf in zip(leaves, jax.tree.leaves(shapes), strict=True):
            for name, entry, dim in zip(leaf_axes, self.spec(leaf_axes), leaf.shape, strict=True):
                ways = ways_of(mesh, entry)
                if dim % ways:
                    raise UserError(
                        f"{jax.tree_util.keystr(path)}: dim {name!r} of size {dim} is not "
                        f"divisible by the {ways} devices of mesh axis {entry!r}; lower that mesh "
                        "axis (MESH.*) or change the model size"
                    )


def is_axes(node: Any) -> bool:
    """True for a leaf of a logical-axes tree: a plain tuple of names or None.

    A named tuple without fields, as optax has them, is no leaf.
    """
    return type(node) is tuple and all(a is None or isinstance(a, str) for a in node)


def ways_of(mesh: Mesh | AbstractMesh, entry: str | tuple[str, ...] | None) -> int:
    """Number of shards that a PartitionSpec entry cuts a dim into."""
    ways = 1
    for axis in (entry,) if isinstance(entry, str) else entry or ():
        ways *= mesh.shape[axis]
    return ways


def build(spec: MeshSpec, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The Explicit mesh over these devices (default: all of them).  Use under `jax.set_mesh`.

    Neighbours in the mesh are neighbours in the machine; slices of TPUs lie along `data`.
    """
    devices = jax.devices() if devices is None else devices
    shape, types = spec.shape(len(devices)), (AxisType.Explicit,) * len(AXES)
    # GPUs have slices too: the hosts that one switch joins.
    is_tpu = devices[0].platform == "tpu"
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if is_tpu else 1
    if shape[0] % slices:
        raise UserError(
            f"{slices} slices, but MESH.data = {shape[0]}: set MESH.data = {slices} or a multiple of "
            "it, so that parameters are gathered inside slices and only gradients cross between them"
        )
    placed = (
        mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
        if slices > 1
        else mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    )
    return Mesh(placed, AXES, axis_types=types)


def abstract(spec: MeshSpec, devices: int) -> AbstractMesh:
    """The same mesh without devices, for `poet describe` and ahead-of-time checks."""
    return AbstractMesh(spec.shape(devices), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Leading dim over the batch axes, the rest replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """How many shards a global batch is cut into."""
    return ways_of(mesh, BATCH_AXES)


def check_batch(mesh: Mesh | AbstractMesh, batch: int, what: str) -> None:
    """Raises UserError unless the batch divides over the mesh."""
    if batch % batch_ways(mesh):
        raise UserError(
            f"{what}: a batch of {batch} cannot be split over {batch_ways(mesh)} shards "
            f"(mesh axes {BATCH_AXES}); use a multiple of {batch_ways(mesh)}"
        )


def local_bytes(sharding: NamedSharding, shape: Sequence[int], dtype: Any) -> int:
    """Bytes of one device's shard."""
    size = jax.numpy.dtype(dtype).itemsize
    for dim in sharding.shard_shape(tuple(shape)):
        size *= dim
    return size


def several(entry: str | Sequence[str] | None, mesh: Mesh | AbstractMesh | None = None) -> tuple[str, ...]:
    """The axes that have more than one device, in this mesh or the one that is set.

    A collective over the others would move nothing and still copy.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    axes = (entry,) if isinstance(entry, str) else entry or ()
    return () if mesh.empty else tuple(axis for axis in axes if mesh.shape[axis] > 1)


def total(x: jax.Array, axes: str | Sequence[str]) -> jax.Array:
    """Sum over mesh axes, inside a `shard_map`."""
    return jax.lax.psum(x, several(axes)) if several(axes) else x
