"""The arrays of T5's encoder, and how they are read onto a mesh, shard by shard.

D width, N heads, H width of a head, F hidden width, K buckets of relative positions, V rows of the
piece table, Y layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from poet.checkpoints.weights import check_arrays
from poet.distributed.mesh import LogicalAxes, Rules
from poet.spec import UserError
from poet.tokenizers.t5_files import CONFIG, PIECES, Tensors
from poet.tokenizers.t5_shape import POSITIONS, T5Shape

FINAL_NORM = "encoder.final_layer_norm.weight"

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the network, or of every layer.

    Attributes:
        name: the tensor that it is read from; {layer} stands for a layer's number.
        dims: its dims, without the leading one of all layers.
        axes: logical axes of `dims`.
        inputs: how many leading dims are the tensor's columns; 0 for one that is not turned.
    """

    name: str
    dims: tuple[int, ...]
    axes: LogicalAxes
    inputs: int = 0

    @property
    def layered(self) -> bool:
        return "{layer}" in self.name


def leaves(shape: T5Shape) -> dict[str, Leaf]:
    """Name in the network -> leaf; those of layers are named layers/NAME."""
    block = "encoder.block.{layer}."
    d, n, h, f = shape.width, shape.heads, shape.head_width, shape.hidden
    positions = (shape.buckets, n), (None, None)
    heads, hidden = (d, n, h), (d, f)
    found = {
        # Split over both axes, unlike the trained tables: nothing is scattered back into it.
        "pieces": Leaf(PIECES, (shape.pieces, d), ("vocab", "embed")),
        "final_norm": Leaf(FINAL_NORM, (d,), (None,)),
        "layers/attention_norm": Leaf(f"{block}layer.0.layer_norm.weight", (d,), (None,)),
        "layers/mlp_norm": Leaf(f"{block}layer.1.layer_norm.weight", (d,), (None,)),
    }
    if shape.positions_per_layer:
        found["layers/positions"] = Leaf(block + POSITIONS, *positions)
    else:
        found["positions"] = Leaf("encoder.block.0." + POSITIONS, *positions)
    for name in ("query", "key", "value"):
        found[f"layers/{name}"] = Leaf(
            f"{block}layer.0.SelfAttention.{name[0]}.weight", heads, ("embed", "heads", "head_dim"), 1
        )
    found["layers/out"] = Leaf(f"{block}layer.0.SelfAttention.o.weight", (n, h, d), ("heads", "head_dim", "embed"), 2)
    dense = f"{block}layer.1.DenseReluDense."
    for name, stored in (("gate", "wi_0"), ("up", "wi_1")) if shape.gated else (("up", "wi"),):
        found[f"layers/{name}"] = Leaf(f"{dense}{stored}.weight", hidden, ("embed", "mlp"), 1)
    found["layers/down"] = Leaf(f"{dense}wo.weight", (f, d), ("mlp", "embed"), 1)
    return found


def abstract_params(shape: T5Shape, dtype: str) -> Params:
    """Tree of the network's arrays as ShapeDtypeStruct; norms and positions stay float32."""
    return _nested(
        {
            name: jax.ShapeDtypeStruct(
                (shape.layers, *leaf.dims) if leaf.layered else leaf.dims, dtype if "embed" in leaf.axes else "float32"
            )
            for name, leaf in leaves(shape).items()
        }
    )


def parameters(shape: T5Shape) -> int:
    """Weights of the encoder: 4.76e9 for v1.1 xxl."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(shape, "float32")))


def logical_axes(shape: T5Shape) -> Params:
    """Tree of the network's arrays -> logical axes of each."""
    return _nested(
        {name: ("layers", *leaf.axes) if leaf.layered else leaf.axes for name, leaf in leaves(shape).items()}
    )


def tensor_shapes(shape: T5Shape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the encoder, as Hugging Face stores it."""
    found = {}
    for leaf in leaves(shape).values():
        dims = leaf.dims
        if leaf.inputs:
            dims = (math.prod(dims[leaf.inputs :]), math.prod(dims[: leaf.inputs]))
        for layer in range(shape.layers) if leaf.layered else (0,):
            found[leaf.name.format(layer=layer)] = dims
    return found


def check_tensors(tensors: Tensors, shape: T5Shape) -> None:
    """Raises UserError naming the first tensor that is missing, unknown or of another shape."""
    present, expected = set(tensors.names()), tensor_shapes(shape)
    for name in [*expected, *sorted(present - expected.keys())]:
        theirs = tensors.shape(name) if name in present else "absent"
        ours = expected.get(name, "absent")
        if theirs != ours:
            raise UserError(
                f"the weights in {tensors.folder} are not those of its shape: {name} is {theirs} in "
                f"the files and {ours} in {shape}; give the {CONFIG} that belongs to the weights"
            )


def load_params(tensors: Tensors, shape: T5Shape, mesh: Mesh, dtype: str) -> Params:
    """Reads the network's arrays, those of `abstract_params`, onto the mesh.

    Each device gets its own part, and the host holds the parts of one array at a time (4 GB for the
    largest of v1.1 xxl in float32, 2 GB in bfloat16).

    Raises:
        UserError: the mesh does not divide an array.
    """
    rules, axes, table = Rules(), logical_axes(shape), leaves(shape)
    structs = abstract_params(shape, dtype)
    rules.check(mesh, axes, structs)
    shardings = rules.shardings(mesh, axes)

    def load(path: Any, struct: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
        leaf = table[jax.tree_util.keystr(path, simple=True, separator="/")]
        return jax.make_array_from_callback(struct.shape, sharding, _reader(tensors, leaf, struct), dtype=struct.dtype)

    return jax.tree_util.tree_map_with_path(load, structs, shardings)


def _reader(tensors: Tensors, leaf: Leaf, struct: jax.ShapeDtypeStruct) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Index of a part -> its values.  Devices that share a part share one reading of it."""
    read: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(s.indices(dim)[:2] for s, dim in zip(index, struct.shape, strict=True))
        if bounds not in read:
            if leaf.layered:
                block = np.empty([stop - start for start, stop in bounds], struct.dtype)
                for row, layer in enumerate(range(*bounds[0])):
                    block[row] = _read_part(tensors, leaf, layer, bounds[1:])
            else:
                block = np.asarray(_read_part(tensors, leaf, 0, bounds), struct.dtype, order="C")
            read[bounds] = block
        return read[bounds]

    return part


def _read_part(tensors: Tensors, leaf: Leaf, layer: int, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    name = leaf.name.format(layer=layer)
    if not leaf.inputs:
        return tensors.read(name, *(slice(*bound) for bound in bounds))
    columns = _merged(bounds[: leaf.inputs], leaf.dims[: leaf.inputs])
    rows = _merged(bounds[leaf.inputs :], leaf.dims[leaf.inputs :])
    return tensors.read(name, rows, columns).T.reshape([stop - start for start, stop in bounds])


def _merged(bounds: Sequence[tuple[int, int]], dims: Sequence[int]) -> slice:
    """A part of several dims as a range of their product; only the first of them may be cut."""
    inner = math.prod(dims[1:])
    return slice(bounds[0][0] * inner, bounds[0][1] * inner)


def _nested(flat: Mapping[str, Any]) -> Params:
    """{'a/b': x} -> {'a': {'b': x}}."""
    tree: Params = {}
    for name, value in flat.items():
        *outer, last = name.split("/")
        node = tree
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


class UsedTensors(Mapping[str, np.ndarray]):
    """The encoder's tensors as stored, each read when it is looked up: for a fingerprint.

    One that is not of floating numbers, or not finite, is a UserError that names it.
    """

    def __init__(self, tensors: Tensors, shape: T5Shape):
        self._tensors, self._names = tensors, list(tensor_shapes(shape))

    def __getitem__(self, name: str) -> np.ndarray:
        value = self._tensors.read(name)
        check_arrays({name: value}, {name: value}, str(self._tensors.folder))
        # Hashing takes bytes of types that numpy itself has.
        return value if value.dtype.kind == "f" else value.view(f"u{value.dtype.itemsize}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
