"""A text encoder for the tiny run: the states of a text are made of its letters' code points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from poet.tokenizers.text import EncodedText

NAME = "letters"


def fingerprint_of(spec: Any) -> str:
    return "letters-1"


def load(spec: Any, mesh: Any = None) -> Any:
    """What `poet.tokenizers.text.load_text_encoder` gives for TEXT.encoder = 'letters'."""

    def encode(texts: Sequence[str]) -> EncodedText:
        lengths = np.array([min(len(t), spec.length) for t in texts], np.int32)
        states = np.zeros((len(texts), spec.length, spec.width), np.float32)
        for row, letters in enumerate(texts):
            codes = np.array([ord(c) / 128 for c in letters[: spec.length]])
            states[row, : len(codes)] = codes[:, None] * (1 + np.arange(spec.width) % 7) / 4
        return EncodedText(states_BxLxD=states, lengths_B=lengths, truncated=0)

    for name, value in {
        "name": NAME,
        "length": spec.length,
        "width": spec.width,
        "fingerprint": fingerprint_of(spec),
    }.items():
        setattr(encode, name, value)
    return encode
