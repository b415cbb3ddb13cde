"""T5's encoder in JAX, v1.0 and v1.1, of any size: the last hidden state of every piece.

`TEXT.path` is a folder with the weights of Hugging Face or T5X (`poet.tokenizers.t5_files`), the
SentencePiece model `spiece.model` and `config.json`. On a mesh every matrix is cut over `fsdp` and
`tensor`, and so is the work: clips over `fsdp`, heads and hidden units over `tensor`.

B batch, L positions, D width, N heads, H width of a head, F hidden width, K buckets of relative
positions, V rows of the piece table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from poet.distributed import mesh as mesh_lib
from poet.models.layers import constrain, placement
from poet.spec import MeshSpec, TextSpec, UserError
from poet.tokenizers import t5_files, t5_shape, t5_weights
from poet.tokenizers import text as text_lib
from poet.tokenizers.pieces import MODEL, Pieces, load_pieces
from poet.tokenizers.t5_shape import T5Shape
from poet.tokenizers.t5_weights import Params

# The length that T5 was pretrained at; relative positions alone would allow any.
MAX_LENGTH = 512
# Finite, so that a row without pieces yields no NaN.
MASKED = -1e30


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5:
    """The loaded encoder; see `poet.tokenizers.text.TextEncoder`.

    Attributes:
        shape: sizes of the network.
        params: see `t5_weights.leaves`; norms and positions in float32, the rest in `dtype`.
        dtype: of matrix products; sums, norms and the states between layers are float32.
        mesh: the devices that hold `params` and share the work.
        vocabulary: the SentencePiece model.
    """

    name: str
    length: int
    width: int
    fingerprint: str
    shape: T5Shape
    dtype: str
    params: Params = dataclasses.field(repr=False)
    mesh: Mesh = dataclasses.field(repr=False)
    vocabulary: Pieces = dataclasses.field(repr=False)

    # Pieces around a text: </s>.
    controls: ClassVar[int] = 1

    def __call__(self, texts: Sequence[str]) -> text_lib.EncodedText:
        return self.encode_ids(self.pieces(texts))

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids, uncut, with the closing </s>; [] for no text."""
        return [ids if len(ids) > self.controls else [] for ids in self.vocabulary.ids(texts)]

    def traced(self) -> tuple[Callable[..., jax.Array], Params]:
        """(weights, ids [B, L], lengths [B]) -> states on one device as a pure function, and its weights."""
        return functools.partial(last_hidden_states, shape=self.shape, dtype=self.dtype), self.params

    def save_pieces(self, folder: Path) -> str:
        """Writes what makes pieces of a text into a folder; the name of the file."""
        (folder / MODEL).write_bytes(self.vocabulary.processor.serialized_model_proto())
        return MODEL

    def encode_ids(self, pieces: Sequence[Sequence[int]]) -> text_lib.EncodedText:
        """States of texts that are given as ids in [0, shape.pieces), closing piece included."""
        return text_lib.encode_pieces(pieces, self._states, length=self.length, width=self.width)

    def _states(self, ids_bxl: np.ndarray, lengths_b: np.ndarray) -> np.ndarray:
        rows = len(ids_bxl)
        extra = -rows % mesh_lib.batch_ways(self.mesh)
        sharding = mesh_lib.batch_sharding(self.mesh)
        with jax.set_mesh(self.mesh):
            states_BxLxD = last_hidden_states(
                self.params,
                jax.device_put(np.pad(ids_bxl, ((0, extra), (0, 0))), sharding),
                jax.device_put(np.pad(lengths_b, (0, extra)), sharding),
                shape=self.shape,
                dtype=self.dtype,
            )
        return np.asarray(states_BxLxD)[:rows]


def load(spec: TextSpec, mesh: Mesh | None = None) -> T5:
    """Loads the encoder in `spec.path` onto `mesh`, or onto one device where it is None.

    Raises:
        UserError: files are missing, unreadable or not those of one T5 encoder, the vocabulary has
            more pieces than the table has rows, the spec's length or width is not the encoder's, or
            the mesh does not divide it.
    """
    folder, vocabulary, tensors, shape = _open(spec)
    if mesh is None:
        mesh = mesh_lib.build(MeshSpec(data=1, fsdp=1, tensor=1), jax.local_devices()[:1])
    return T5(
        name=spec.encoder,
        length=spec.length,
        width=shape.width,
        fingerprint=_fingerprint(folder, tensors, shape),
        shape=shape,
        dtype=spec.dtype,
        params=t5_weights.load_params(tensors, shape, mesh, spec.dtype),
        mesh=mesh,
        vocabulary=vocabulary,
    )


def fingerprint_of(spec: TextSpec) -> str:
    """The fingerprint of the encoder of `spec`, tensor by tensor; raises as `load`."""
    folder, _, tensors, shape = _open(spec)
    return _fingerprint(folder, tensors, shape)


def _open(spec: TextSpec) -> tuple[Path, Pieces, Any, T5Shape]:
    """Folder, vocabulary, unread tensors and shape of the encoder, which fit each other and the spec."""
    folder = t5_files.find_folder(spec.path)
    vocabulary = load_pieces(folder / t5_files.VOCABULARY)
    tensors = t5_files.open_tensors(folder)
    shape = t5_shape.read_shape(tensors)
    text_lib.check_sizes(spec, width=shape.width, max_length=MAX_LENGTH)
    t5_weights.check_tensors(tensors, shape)
    if vocabulary.size > shape.pieces:
        raise UserError(
            f"{folder / t5_files.VOCABULARY} has {vocabulary.size} pieces, the table of the weights "
            f"{shape.pieces} rows: give the vocabulary that the weights were trained with"
        )
    return folder, vocabulary, tensors, shape


def _fingerprint(folder: Path, tensors: Any, shape: T5Shape) -> str:
    model = (folder / t5_files.VOCABULARY).read_bytes()
    used = t5_weights.UsedTensors(tensors, shape)
    return text_lib.fingerprint(f"t5 encoder {shape}", used, model)


# --------------------------------------------------------------------------------------- the network


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def last_hidden_states(
    params: Params, ids_BxL: jax.Array, lengths_B: jax.Array, *, shape: T5Shape, dtype: str
) -> jax.Array:
    """float32 states_BxLxD; called under the mesh that `params` lie on.

    Args:
        params: see `t5_weights.leaves`.
        ids_BxL: int32 in [0, V), B a multiple of the mesh's batch shards; ids from `lengths_B` on
            are not attended to.
        lengths_B: int32 in [0, L].

    States from `lengths_B` on mean nothing.
    """
    length = ids_BxL.shape[1]
    mask_Bx1x1xL = (jnp.arange(length) < lengths_B[:, None])[:, None, None, :]
    buckets_LxL = _buckets(length, shape)
    # Accelerators would otherwise multiply float32 in fewer bits.
    precision = "highest" if dtype == "float32" else None

    def layer_step(x_BxLxD: jax.Array, layer: Params) -> tuple[jax.Array, None]:
        positions_KxN = layer.get("positions", params.get("positions"))
        bias_NxLxL = jnp.moveaxis(positions_KxN[buckets_LxL], -1, 0)
        bias_1xNxLxL = constrain(bias_NxLxL[None], None, "heads", None, None)
        x_BxLxD = _attention(shape, dtype, layer, x_BxLxD, bias_1xNxLxL, mask_Bx1x1xL)
        return _feed_forward(shape, dtype, layer, x_BxLxD), None

    with jax.default_matmul_precision(precision):
        x_BxLxD, _ = jax.lax.scan(layer_step, _lookup(params["pieces"], ids_BxL), params["layers"])
    return _norm(x_BxLxD, params["final_norm"], shape.epsilon)


def _buckets(length: Any, shape: T5Shape) -> np.ndarray | jax.Array:
    """`relative_buckets`, of a length that may be a symbol of an exported program."""
    if isinstance(length, int):
        return relative_buckets(length, shape.buckets, shape.max_distance)
    longest_LxL = relative_buckets(MAX_LENGTH, shape.buckets, shape.max_distance)
    # By the way from query to key, from the farthest behind to the farthest ahead.
    of_way = np.concatenate([longest_LxL[::-1, 0], longest_LxL[0, 1:]])
    places_L = jnp.arange(length)
    return jnp.asarray(of_way)[places_L[None, :] - places_L[:, None] + MAX_LENGTH - 1]


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """int32 [L, L] in [0, buckets): the bucket of each query's (row) way to each key (column).

    Half the buckets are for keys behind the query and for itself, half for those ahead. Half of
    each are for one distance each, the others grow logarithmically up to `max_distance`.
    """
    ahead_LxL = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance_LxL = np.abs(ahead_LxL)
    side = buckets // 2
    exact = side // 2
    # Distances where the logarithm is a whole number belong to the higher bucket: the small number
    # outweighs rounding.
    octaves_LxL = np.log(np.maximum(distance_LxL, 1) / exact) / np.log(max_distance / exact)
    far_LxL = exact + np.floor(octaves_LxL * (side - exact) + 1e-6).astype(np.int32)
    bucket_LxL = np.where(distance_LxL < exact, distance_LxL, np.minimum(far_LxL, side - 1))
    return (bucket_LxL + side * (ahead_LxL > 0)).astype(np.int32)


def _lookup(pieces_VxD: jax.Array, ids_BxL: jax.Array) -> jax.Array:
    """float32 rows; every device looks all texts up in its columns, then texts are shared out."""
    whole = jax.sharding.get_abstract_mesh().empty  # On one device, as in an exported program.
    split = None if whole else mesh_lib.Rules().spec((None, None, "embed"))
    x_BxLxD = pieces_VxD.at[constrain(ids_BxL, None, None)].get(mode="clip", out_sharding=split)
    return constrain(x_BxLxD, "batch", None, None).astype(jnp.float32)


def _norm(x_BxLxD: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array:
    mean_square_BxLx1 = jnp.mean(jnp.square(x_BxLxD), axis=-1, keepdims=True)
    return x_BxLxD * jax.lax.rsqrt(mean_square_BxLx1 + epsilon) * scale_D


def _attention(
    shape: T5Shape, dtype: str, layer: Params, x_BxLxD: jax.Array, bias_1xNxLxL: jax.Array, mask_Bx1x1xL: jax.Array
) -> jax.Array:
    normed_BxLxD = _norm(x_BxLxD, layer["attention_norm"], shape.epsilon).astype(dtype)
    query, key, value = (
        jnp.einsum("bld,dnh->blnh", normed_BxLxD, constrain(layer[name], None, "heads", "head_dim"))
        for name in ("query", "key", "value")
    )
    # T5 does not divide by the root of H: its weights were initialised smaller instead.
    scores_BxNxLxL = jnp.einsum("blnh,bmnh->bnlm", query, key, preferred_element_type=jnp.float32)
    scores_BxNxLxL = jnp.where(mask_Bx1x1xL, scores_BxNxLxL + bias_1xNxLxL, MASKED)
    weights_BxNxLxL = jax.nn.softmax(scores_BxNxLxL, axis=-1).astype(dtype)
    mixed_BxLxNxH = jnp.einsum("bnlm,bmnh->blnh", weights_BxNxLxL, value)
    return x_BxLxD + jnp.einsum(
        "blnh,nhd->bld",
        mixed_BxLxNxH,
        constrain(layer["out"], "heads", "head_dim", None),
        out_sharding=placement("batch", None, None),
        preferred_element_type=jnp.float32,
    )


def _feed_forward(shape: T5Shape, dtype: str, layer: Params, x_BxLxD: jax.Array) -> jax.Array:
    normed_BxLxD = _norm(x_BxLxD, layer["mlp_norm"], shape.epsilon).astype(dtype)

    def dense(name: str) -> jax.Array:
        return jnp.einsum("bld,df->blf", normed_BxLxD, constrain(layer[name], None, "mlp"))

    if shape.gated:
        # The tanh form is the one that v1.1 was trained with.
        hidden_BxLxF = jax.nn.gelu(dense("gate"), approximate=True) * dense("up")
    else:
        hidden_BxLxF = jax.nn.relu(dense("up"))
    return x_BxLxD + jnp.einsum(
        "blf,fd->bld",
        hidden_BxLxF,
        constrain(layer["down"], "mlp", None),
        out_sharding=placement("batch", None, None),
        preferred_element_type=jnp.float32,
    )
