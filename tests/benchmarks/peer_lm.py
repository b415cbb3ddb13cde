"""This project's language model rebuilt in transformers; run by the peer's interpreter alone.

`Qwen3ForCausalLM` is Llama with a norm on queries and keys, which is this project's block: with its
weights copied, its rotary angles and a mask of the prefix both give the same loss.  Plain
`LlamaForCausalLM` lacks that norm, so it has the same shape and matrix products, not the same loss.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn


class Angles(nn.Module):
    """Cosines and sines that were made beforehand, in place of a rotary module."""

    def __init__(self, rotary_2xSxP: np.ndarray):
        super().__init__()
        doubled = torch.from_numpy(np.concatenate([rotary_2xSxP] * 2, axis=-1))
        self.register_buffer("table_2xSxH", doubled, persistent=False)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.table_2xSxH[0][position_ids], self.table_2xSxH[1][position_ids]


def build(name: str, spec: dict[str, int], vocabulary: int, length: int) -> nn.Module:
    """A model of a `ModelSpec`'s fields with random weights, float32; name 'qwen3' or 'llama'."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    kinds = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config, model = kinds[name]
    return model(
        config(
            vocab_size=vocabulary,
            hidden_size=spec["width"],
            intermediate_size=spec["mlp_width"],
            num_hidden_layers=spec["layers"],
            num_attention_heads=spec["heads"],
            num_key_value_heads=spec["kv_heads"],
            head_dim=spec["head_dim"],
            rms_norm_eps=1e-6,
            max_position_embeddings=length,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )


def copy_weights(model: nn.Module, file: pathlib.Path) -> None:
    """Those of this project's parameters, flattened to paths, into a 'qwen3'."""
    p = np.load(file)
    blocks = {key.removeprefix("blocks/"): p[key] for key in p.files if key.startswith("blocks/")}

    def put(target: nn.Module, value: np.ndarray) -> None:
        with torch.no_grad():
            target.weight.copy_(torch.from_numpy(np.ascontiguousarray(value)))

    put(model.model.embed_tokens, p["embed_rows"])
    put(model.lm_head, p["head_rows"])
    put(model.model.norm, p["head/norm/scale"])
    for i, layer in enumerate(model.model.layers):
        width = layer.self_attn.q_proj.weight.shape[1]
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            put(getattr(layer.self_attn, theirs), blocks[f"attention/{ours}"][i].reshape(width, -1).T)
        put(layer.self_attn.o_proj, blocks["attention/out"][i].reshape(-1, width).T)
        put(layer.self_attn.q_norm, blocks["attention/query_norm/scale"][i])
        put(layer.self_attn.k_norm, blocks["attention/key_norm/scale"][i])
        put(layer.input_layernorm, blocks["attention_norm/scale"][i])
        put(layer.post_attention_layernorm, blocks["mlp_norm/scale"][i])
        for part in ("gate", "up", "down"):
            put(getattr(layer.mlp, f"{part}_proj"), blocks[f"mlp/{part}"][i].T)
    model.model.rotary_emb = Angles(p["rotary"])


def optimizer(model: nn.Module, rate: float, b2: float, decay: float) -> torch.optim.Optimizer:
    """AdamW, fused; tables and norms do not decay, as here."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, b2), eps=1e-8, fused=True)
