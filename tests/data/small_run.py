"""A small run for tests of the command line: a store of codes, a tokenizer of random weights, and their gin file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import token_stores

from poet.spec import VideoTokenizerSpec, to_dict
from poet.tokenizers.video import magvit
from poet.tokenizers.video.base import VideoTokenizer

TOKENIZER = VideoTokenizerSpec(
    base_channels=8,
    multipliers=(1, 1),
    blocks=1,
    temporal_downsample=(True,),
    stem=(2, 4, 4),
    norm_groups=4,
    bits=token_stores.BITS,
)
SETTINGS: dict[str, Any] = {
    "VOCABULARY.visual_bits": token_stores.BITS,
    "VOCABULARY.audio_codes": 16,
    "VOCABULARY.text_pieces": 64,
    "MODEL.layers": 1,
    "MODEL.width": 32,
    "MODEL.heads": 4,
    "MODEL.kv_heads": 2,
    "MODEL.head_dim": 8,
    "MODEL.mlp_width": 64,
    "MODEL.dtype": "float32",
    "DATA.mixture_rates": {"text_to_video": 1.0},
    "DATA.batch": 8,
}


def write(folder: Path, own: Mapping[str, Any]) -> Path:
    """Writes all of it below a folder; the gin file, with settings of the caller's own."""
    shapes, rng = jax.eval_shape(lambda: magvit.init(TOKENIZER, jax.random.key(0))), np.random.default_rng(0)
    weights = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    tokenizer = VideoTokenizer.from_params(TOKENIZER, weights)
    tokenizer.save(folder / "tokenizer")
    store = token_stores.write_store(folder / "store", fingerprint=tokenizer.fingerprint)
    specs = {"VIDEO_TOKENIZER": TOKENIZER, "CLIP": token_stores.CLIP, "TEXT": token_stores.TEXT}
    settings = {f"{name}.{k}": v for name, spec in specs.items() for k, v in to_dict(spec).items()}
    settings |= SETTINGS | {"VIDEO_TOKENIZER.path": str(folder / "tokenizer"), "DATA.store": store.path} | dict(own)
    file = folder / "run.gin"
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    return file
