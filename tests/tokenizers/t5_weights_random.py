"""T5 encoders of random weights, by the names of transformers: numpy alone, for tests and peer.

`draw` gives the same weights wherever it runs, so that a fixture needs to hold only inputs and
outputs.
"""

from __future__ import annotations

import numpy as np

# transformers.T5Config fields: the released small shapes (6 layers and 8 heads in v1.0) with a table
# of few pieces, and a UMT5, which has relative positions of its own in every layer.
CONFIGS = {
    "v1_1": dict(
        model_type="t5",
        vocab_size=512,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
    ),
    "v1_0": dict(
        model_type="t5",
        vocab_size=512,
        d_model=512,
        d_kv=64,
        d_ff=2048,
        num_layers=6,
        num_heads=8,
        feed_forward_proj="relu",
    ),
    "umt5": dict(
        model_type="umt5",
        vocab_size=512,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    ),
}
BUCKETS = 32
SEEDS = {"v1_1": 11, "v1_0": 10, "umt5": 12}
# Pieces of each text of the fixture, </s> included; the last reaches beyond the farthest bucket.
LENGTHS = (2, 9, 64, 150)


def draw(config: dict, seed: int) -> dict[str, np.ndarray]:
    """Name -> float32 of every tensor of transformers' T5EncoderModel.

    Scales are such that attention is neither flat nor of one key, and positions matter.
    """
    rng = np.random.default_rng(seed)

    def normal(*dims: int, scale: float) -> np.ndarray:
        return (scale * rng.standard_normal(dims)).astype(np.float32)

    def norm(width: int) -> np.ndarray:
        return 1 + normal(width, scale=0.2)

    width, hidden, inner = config["d_model"], config["d_ff"], config["d_kv"] * config["num_heads"]
    tensors = {"shared.weight": normal(config["vocab_size"], width, scale=1)}
    for layer in range(config["num_layers"]):
        block = f"encoder.block.{layer}"
        attention, dense = f"{block}.layer.0.SelfAttention", f"{block}.layer.1.DenseReluDense"
        tensors[f"{attention}.q.weight"] = normal(inner, width, scale=(width * config["d_kv"]) ** -0.5)
        tensors[f"{attention}.k.weight"] = normal(inner, width, scale=width**-0.5)
        tensors[f"{attention}.v.weight"] = normal(inner, width, scale=width**-0.5)
        tensors[f"{attention}.o.weight"] = normal(width, inner, scale=inner**-0.5)
        if layer == 0 or config["model_type"] == "umt5":
            tensors[f"{attention}.relative_attention_bias.weight"] = normal(BUCKETS, config["num_heads"], scale=1)
        tensors[f"{block}.layer.0.layer_norm.weight"] = norm(width)
        gated = config["feed_forward_proj"] == "gated-gelu"
        for name in ("wi_0", "wi_1") if gated else ("wi",):
            tensors[f"{dense}.{name}.weight"] = normal(hidden, width, scale=width**-0.5)
        tensors[f"{dense}.wo.weight"] = normal(width, hidden, scale=hidden**-0.5)
        tensors[f"{block}.layer.1.layer_norm.weight"] = norm(width)
    tensors["encoder.final_layer_norm.weight"] = norm(width)
    return tensors


def draw_ids(pieces: int, seed: int) -> list[list[int]]:
    """A text of each of `LENGTHS`: ids from 3 on, then </s>."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(3, pieces, length - 1).tolist(), 1] for length in LENGTHS]
