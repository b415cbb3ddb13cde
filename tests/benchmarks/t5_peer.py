"""Makes tests/fixtures/t5_states.npz: what transformers' T5 encoders do with random weights.

    PEER_PYTHON tests/benchmarks/t5_peer.py      (an interpreter with torch and transformers)

The same weights, drawn by tests/tokenizers/t5_weights_random.py, go through `poet.tokenizers.t5` in
tests/tokenizers/test_t5.py. Short texts keep all of their states, long ones every `STRIDE`-th
component, and every text the norms of its states. `buckets` is T5's bucket of the way from each of
300 positions to each other.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Attention

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "tokenizers"))

import t5_weights_random as weights  # noqa: E402

STRIDE = 8
SHORT = 16
MODELS = {"t5": transformers.T5EncoderModel, "umt5": transformers.UMT5EncoderModel}
CONFIGS = {"t5": transformers.T5Config, "umt5": transformers.UMT5Config}


def build(name: str) -> torch.nn.Module:
    fields = dict(weights.CONFIGS[name])
    kind = fields.pop("model_type")
    config = CONFIGS[kind](**fields)
    model = MODELS[kind](config).eval()
    tensors = weights.draw(weights.CONFIGS[name], weights.SEEDS[name])
    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}, (missing, unexpected)
    assert torch.equal(model.get_input_embeddings().weight, state["shared.weight"])
    return model


def main() -> None:
    torch.set_grad_enabled(False)
    way = torch.arange(300)[None] - torch.arange(300)[:, None]
    arrays = {"buckets": T5Attention._relative_position_bucket(way).numpy().astype(np.int8)}
    for name, config in weights.CONFIGS.items():
        model = build(name)
        texts = weights.draw_ids(config["vocab_size"], weights.SEEDS[name])
        for row, ids in enumerate(texts):
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
            step = 1 if len(ids) <= SHORT else STRIDE
            arrays[f"{name}_ids_{row}"] = np.array(ids, np.int32)
            arrays[f"{name}_states_{row}"] = states[:, ::step]
            arrays[f"{name}_norms_{row}"] = np.linalg.norm(states.astype(np.float64), axis=-1)
    file = TESTS / "fixtures" / "t5_states.npz"
    np.savez_compressed(file, **arrays)
    print(file, file.stat().st_size, transformers.__version__, torch.__version__)
    print({name: value.shape for name, value in arrays.items()})


if __name__ == "__main__":
    main()
