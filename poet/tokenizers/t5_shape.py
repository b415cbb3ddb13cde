"""The shape of a T5 encoder: from `config.json`, or from the arrays of a T5X checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping

from poet.spec import UserError, limited
from poet.tokenizers.t5_files import CONFIG, PIECES, Tensors

_LOG = logging.getLogger(__name__)

POSITIONS = "layer.0.SelfAttention.relative_attention_bias.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Shape:
    """Sizes of an encoder.

    Attributes:
        gated: v1.1's gelu(x gate) * (x up); else v1.0's relu(x up).
        buckets, max_distance: of relative positions, over both directions; farther ones share one.
        positions_per_layer: every layer has a table of relative positions (UMT5), else all share
            that of the first.
        epsilon: of the norms.
    """

    pieces: int
    width: int
    hidden: int
    layers: int
    heads: int
    head_width: int
    gated: bool
    buckets: int = 32
    max_distance: int = 128
    positions_per_layer: bool = False
    epsilon: float = 1e-6


def _published(gated: bool, rows: Mapping[str, tuple[int, int, int, int, int]]) -> dict[str, T5Shape]:
    names = ("width", "hidden", "layers", "heads", "head_width")
    return {size: T5Shape(pieces=32_128, gated=gated, **dict(zip(names, row))) for size, row in rows.items()}


# The released encoders: t5x/examples/t5/t5_1_0/*.gin and t5_1_1/*.gin (Raffel et al. 2020, §3.7).
# Any other shape loads just as well.
V1_0 = _published(
    False,
    {
        "small": (512, 2048, 6, 8, 64),
        "base": (768, 3072, 12, 12, 64),
        "large": (1024, 4096, 24, 16, 64),
        "3B": (1024, 16_384, 24, 32, 128),
        "11B": (1024, 65_536, 24, 128, 128),
    },
)
V1_1 = _published(
    True,
    {
        "small": (512, 1024, 8, 6, 64),
        "base": (768, 2048, 12, 12, 64),
        "large": (1024, 2816, 24, 16, 64),
        "xl": (2048, 5120, 24, 32, 64),
        "xxl": (4096, 10_240, 24, 64, 64),
    },
)


def read_shape(tensors: Tensors) -> T5Shape:
    """The shape in `config.json`, or for a T5X checkpoint without one, the shape of its arrays.

    Raises:
        UserError: not T5's config.json, or arrays without a shape of T5.
    """
    if (tensors.folder / CONFIG).is_file():
        return _configured(tensors)
    shape = _derived(tensors)
    near = [
        f"T5 {version} {size}"
        for version, table in (("v1.0", V1_0), ("v1.1", V1_1))
        for size, published in table.items()
        if published == dataclasses.replace(shape, pieces=published.pieces)
    ]
    _LOG.info(
        "%s has no %s: the arrays are those of %s; assumed: max_distance %d, epsilon %g",
        tensors.folder,
        CONFIG,
        near[0] if near else shape,
        shape.max_distance,
        shape.epsilon,
    )
    return shape


def _configured(tensors: Tensors) -> T5Shape:
    """`transformers.T5Config`; MT5 and UMT5 have the same fields."""
    file = tensors.folder / CONFIG
    try:
        config = json.loads(limited(file).read_text())
        for field in ("vocab_size", "d_model", "d_ff", "num_layers", "num_heads", "d_kv"):
            if type(config[field]) is not int or config[field] < 1:
                raise ValueError(f"{field} = {config[field]!r} is no positive integer")
        kind = config.get("model_type", "t5")
        activation = config.get("feed_forward_proj", "relu")
        shape = T5Shape(
            pieces=config["vocab_size"],
            width=config["d_model"],
            hidden=config["d_ff"],
            layers=config["num_layers"],
            heads=config["num_heads"],
            head_width=config["d_kv"],
            gated=activation == "gated-gelu",
            buckets=config.get("relative_attention_num_buckets", 32),
            max_distance=config.get("relative_attention_max_distance", 128),
            positions_per_layer=kind == "umt5",
            epsilon=config.get("layer_norm_epsilon", 1e-6),
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is no T5Config: {error!r}; restore the model's own file") from error
    if kind not in ("t5", "mt5", "umt5"):
        raise UserError(f"{file} describes a {kind!r} model: give the folder of t5, mt5 or umt5")
    if activation not in ("gated-gelu", "relu"):
        raise UserError(
            f"{file} has feed_forward_proj = {activation!r}: gated-gelu (T5 v1.1) and relu (v1.0) are known"
        )
    return shape


def _derived(tensors: Tensors) -> T5Shape:
    names = set(tensors.names())
    block = "encoder.block.0."
    gated = f"{block}layer.1.DenseReluDense.wi_0.weight" in names
    up = "wi_0" if gated else "wi"
    try:
        pieces, width = tensors.shape(PIECES)
        buckets, heads = tensors.shape(block + POSITIONS)
        inner, _ = tensors.shape(f"{block}layer.0.SelfAttention.q.weight")
        hidden, _ = tensors.shape(f"{block}layer.1.DenseReluDense.{up}.weight")
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{tensors.folder} has no {CONFIG}, and its arrays do not have a T5 encoder's shape "
            f"({error!r}): put the model's {CONFIG} beside them"
        ) from error
    return T5Shape(
        pieces=pieces,
        width=width,
        hidden=hidden,
        layers=1 + max(int(name.split(".")[2]) for name in names if name.startswith("encoder.block.")),
        heads=heads,
        head_width=inner // heads,
        gated=gated,
        buckets=buckets,
        positions_per_layer=f"encoder.block.1.{POSITIONS}" in names,
    )
