"""Text features: the mean state of MiniLM's pieces, of length 1, as sentence-transformers makes it.

D 384.
"""

from __future__ import annotations

import functools

import numpy as np

from poet.evaluation.features.base import Features, Network, register
from poet.spec import TextSpec
from poet.tokenizers import minilm
from poet.tokenizers.text import TextEncoder, load_text_encoder

NAME, LENGTH = "minilm", 128


def load() -> Features:
    """Raises UserError for a missing package or another file."""
    encoder = load_text_encoder(TextSpec(encoder="minilm", length=LENGTH, width=minilm.WIDTH))
    return Features(
        name=NAME,
        prefix="text",
        medium="text",
        width=minilm.WIDTH,
        fingerprint=encoder.fingerprint,
        reads={"pieces": LENGTH, "vector": "mean over pieces, of length 1"},
        run=functools.partial(run, encoder),
    )


def run(encoder: TextEncoder, text: str) -> np.ndarray:
    """float32 [1, D]; zeros of an empty text."""
    encoded = encoder([text])
    total_D = encoded.states_BxLxD[0].astype(np.float64).sum(axis=0)
    length = np.linalg.norm(total_D)
    return (total_D / length if length else total_D).astype(np.float32)[None]


register(Network(name=NAME, prefix="text", medium="text", package=minilm.PACKAGE, install=minilm.INSTALL, load=load))
