"""Writes T5 folders as Hugging Face and T5X lay them out, and vocabularies for them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import flax.serialization
import numpy as np
import safetensors.numpy
import sentencepiece
import tensorstore

WORDS = (
    "a the dog cat man woman robot bird walks runs jumps sleeps sings over under near red green "
    "blue small large house tree river street quickly slowly and while it rains snows"
).split()


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(count)]


def train_pieces(size: int, **options: object) -> bytes:
    """A SentencePiece model of `size` pieces with T5's control ids, as the bytes of its file."""
    model = io.BytesIO()
    settings = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2) | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(600)), model_writer=model, vocab_size=size, **settings
    )
    return model.getvalue()


def write_beside(folder: Path, config: dict | None, vocabulary: bytes) -> Path:
    """`config.json` (but for None) and `spiece.model`."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "spiece.model").write_bytes(vocabulary)
    return folder


def write_single(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    decoder = {"decoder.final_layer_norm.weight": np.ones(4, np.float32)}
    safetensors.numpy.save_file(tensors | decoder, folder / "model.safetensors")


def write_shards(folder: Path, tensors: dict[str, np.ndarray], count: int = 3) -> None:
    names = sorted(tensors)
    weight_map = {}
    for shard in range(count):
        file = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::count]}
        safetensors.numpy.save_file(part, folder / file)
        weight_map.update({name: file for name in part})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# Hugging Face -> T5X, by the names in transformers' convert_t5x_checkpoint_to_pytorch.py.
T5X_NAMES = {
    r"shared\.weight": "token_embedder.embedding",
    r"encoder\.final_layer_norm\.weight": "encoder.encoder_norm.scale",
    r"(.*)layer\.0\.layer_norm\.weight": r"\1pre_attention_layer_norm.scale",
    r"(.*)layer\.1\.layer_norm\.weight": r"\1pre_mlp_layer_norm.scale",
    r"(.*)SelfAttention\.q\.weight": r"\1attention.query.kernel",
    r"(.*)SelfAttention\.k\.weight": r"\1attention.key.kernel",
    r"(.*)SelfAttention\.v\.weight": r"\1attention.value.kernel",
    r"(.*)SelfAttention\.o\.weight": r"\1attention.out.kernel",
    r"(.*)SelfAttention\.relative_attention_bias\.weight": r"\1relpos_bias.rel_embedding",
    r"(.*)DenseReluDense\.(\w+)\.weight": r"\1mlp.\2.kernel",
}


def t5x_arrays(tensors: dict[str, np.ndarray], heads: int, stacked: bool) -> dict[str, np.ndarray]:
    """Dotted T5X name -> array; `stacked` puts layers on dim 1 and gives heads a dim of their own."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        pattern = next(p for p in T5X_NAMES if re.fullmatch(p, name))
        new = re.sub(pattern, T5X_NAMES[pattern], name).replace("layer.0.", "").replace("layer.1.", "")
        new = re.sub(r"encoder\.block\.(\d+)\.", r"encoder.layers_\1.", new)
        arrays[new] = value if name == "shared.weight" else np.ascontiguousarray(value.T)
    per_layer = "encoder.layers_1.relpos_bias.rel_embedding" in arrays
    if not per_layer:
        first = "encoder.layers_0.relpos_bias.rel_embedding"
        arrays["encoder.relpos_bias.rel_embedding"] = arrays.pop(first)
    return _stacked(arrays, heads) if stacked else arrays


def _stacked(arrays: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    layers: dict[str, list[np.ndarray]] = {}
    rest = {}
    for name, value in arrays.items():
        match = re.fullmatch(r"encoder\.layers_\d+\.(.*)", name)
        if not match:
            rest[name] = value
            continue
        if re.search(r"attention\.(query|key|value)\.kernel", name):
            value = value.reshape(value.shape[0], heads, -1)
        elif name.endswith("attention.out.kernel"):
            value = value.reshape(heads, -1, value.shape[1])
        layers.setdefault(match[1], []).append(value)
    return rest | {f"encoder.encoder.{name}": np.stack(v, axis=1) for name, v in layers.items()}


def write_t5x(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """`checkpoint` and zarr folders; the final norm stands in the msgpack, as unpartitioned ones do."""
    target: dict = {"decoder": {"decoder_norm": {"scale": np.ones(4, np.float32)}}}
    for name, value in arrays.items():
        *outer, last = name.split(".")
        node = target
        for key in outer:
            node = node.setdefault(key, {})
        inline = name == "encoder.encoder_norm.scale"
        node[last] = value if inline else _write_zarr(folder, f"target.{name}", value)
    content = {"version": 3, "optimizer": {"target": target, "state": {"step": np.int32(7)}}}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(content))


def _write_zarr(folder: Path, name: str, value: np.ndarray) -> dict:
    chunks = [max(1, dim // 2) for dim in value.shape]
    spec = {
        "driver": "zarr",
        "dtype": value.dtype.name,
        "kvstore": {"driver": "file", "path": name},
        "metadata": {"chunks": chunks, "compressor": {"id": "gzip"}, "shape": list(value.shape)},
    }
    absolute = spec | {"kvstore": {"driver": "file", "path": str(folder / name)}}
    tensorstore.open(absolute, create=True, open=True).result().write(value).result()
    return spec
