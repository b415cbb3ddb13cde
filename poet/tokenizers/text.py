"""Frozen text encoders behind one interface: captions in, one state per text piece out.

The rules are the same for every encoder:

*   Padding is on the right, and the states of padded positions are zeros.
*   A text without any piece of its own (the empty string, blanks alone) has length 0: it is no
    text at all, so every position is masked. Control pieces such as [CLS] are not left behind.
*   A text of more than `length` pieces keeps its first `length - 1` pieces and its closing piece,
    and is counted in `EncodedText.truncated`.
*   The states of a text depend on that text alone, not on the other texts of the batch.

B batch, L positions, D width of a state, b and l the bucket that B and L are computed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from poet.spec import TextSpec, UserError, near_names

# Name of an encoder -> the module that offers `load(spec: TextSpec, mesh: Mesh | None)`, which gives
# a TextEncoder, and `fingerprint_of(spec)`.  Modules are imported when asked for, so that one encoder's
# dependencies are not a need of the others.
ENCODERS: dict[str, str] = {"minilm": "poet.tokenizers.minilm", "t5": "poet.tokenizers.t5"}

# Sizes that batches are computed at: one compiled program for each pair in use. Short texts are
# then cheap, and neither a new batch size nor a new text length compiles anything.
BATCH_BUCKETS = (1, 8, 64)
SHORTEST_BUCKET = 16
# A vocabulary in the format of the package tokenizers, in the folder of an export.
PIECES_FILE = "text_pieces.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedText:
    """The states of a batch of texts.

    Attributes:
        states_BxLxD: float32, zeros from `lengths_B` on.
        lengths_B: int32 in [0, L], the pieces of each text, control pieces included; 0 is no text.
        truncated: number of texts that were cut to L pieces.
        dropped_B: int32, the pieces of each text that were cut off; None where that is not known.
    """

    states_BxLxD: np.ndarray
    lengths_B: np.ndarray
    truncated: int
    dropped_B: np.ndarray | None = None


class TextEncoder(Protocol):
    """A frozen network from texts to per-piece states.

    Attributes:
        name: its name in `ENCODERS`.
        length: positions in its output, which is also the longest text that is not cut.
        width: size of one state.
        fingerprint: 16 hex characters that identify architecture, weights and vocabulary.
    """

    name: str
    length: int
    width: int
    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> EncodedText:
        """Encodes texts, in their order; no texts give arrays of batch size 0."""


def load_text_encoder(spec: TextSpec, mesh: Mesh | None = None) -> TextEncoder:
    """Loads the encoder that `spec.encoder` names.

    Args:
        spec: which encoder, and from where.
        mesh: devices that hold a large encoder in parts (t5); a small one (minilm), or any without
            a mesh, runs on the default device.

    Raises:
        UserError: the name is unknown, the encoder cannot give the spec's length, width or dtype,
            or its weights are missing or are those of another network.
    """
    return _module(spec).load(spec, mesh)


def fingerprint_of(spec: TextSpec) -> str:
    """The fingerprint that the encoder of `spec` would have, without loading it onto devices.

    Raises:
        UserError: as `load_text_encoder`.
    """
    return _module(spec).fingerprint_of(spec)


def _module(spec: TextSpec) -> Any:
    if spec.encoder not in ENCODERS:
        raise UserError(f"unknown text encoder {spec.encoder!r}{near_names(spec.encoder, sorted(ENCODERS))}")
    return importlib.import_module(ENCODERS[spec.encoder])


def check_sizes(spec: TextSpec, *, width: int, max_length: int) -> None:
    """Refuses a spec that an encoder of this width and maximum length cannot serve (UserError)."""
    if spec.width != width:
        raise UserError(
            f"text encoder {spec.encoder!r} has states of width {width}, the spec asks for "
            f"{spec.width}: set width to {width}"
        )
    if not 3 <= spec.length <= max_length:
        raise UserError(
            f"text encoder {spec.encoder!r} has 3 to {max_length} positions, the spec asks for "
            f"{spec.length}: set length within them"
        )


def check_texts(texts: Sequence[str]) -> list[str]:
    """Returns `texts` as a list; UserError names the first that is not a valid Unicode string."""
    if isinstance(texts, str):
        raise UserError(f"expected a sequence of texts, got the single text {texts!r}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {index} is {type(text).__name__}, expected str: {text!r}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"text {index} is not valid Unicode: {text!r} ({error})") from None
    return list(texts)


def fingerprint(architecture: str, params: Mapping[str, np.ndarray], vocabulary: bytes) -> str:
    """Returns 16 hex characters of a SHA-256 over architecture, named weights and vocabulary."""
    digest = hashlib.sha256(architecture.encode())
    for name in sorted(params):
        value = np.ascontiguousarray(params[name])
        digest.update(f"\n{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.data)
    digest.update(b"\nvocabulary\n" + vocabulary)
    return digest.hexdigest()[:16]


def cut(pieces: Sequence[int], length: int) -> list[int]:
    """Cuts one text's pieces to `length`, keeping the closing piece."""
    if len(pieces) <= length:
        return list(pieces)
    return [*pieces[: length - 1], pieces[-1]]


def encode_pieces(
    pieces: Sequence[Sequence[int]], network: Callable[[np.ndarray, np.ndarray], np.ndarray], *, length: int, width: int
) -> EncodedText:
    """Runs a network over texts of pieces in batches of bucketed sizes.

    Args:
        pieces: the piece ids of each text, of any length; an empty list is no text.
        network: maps (ids_bxl, lengths_b), both int32, to states_bxlxD. Called with b in
            `BATCH_BUCKETS` and l among the length buckets only; rows that fill a bucket up have
            length 0, and ids past a row's length are 0.
        length: L of the result.
        width: D of the result.
    """
    kept = [cut(text, length) for text in pieces]
    lengths_B = np.array([len(text) for text in kept], np.int32)
    states_BxLxD = np.zeros((len(kept), length, width), np.float32)
    for rows, bucket in _batches(lengths_B, length):
        ids_bxl, lengths_b = _fill_bucket([kept[row] for row in rows], bucket)
        states_bxlxD = np.asarray(network(ids_bxl, lengths_b))[: len(rows)]
        real_bxl = np.arange(bucket) < lengths_b[: len(rows), None]
        states_BxLxD[rows, :bucket] = np.where(real_bxl[..., None], states_bxlxD, 0)
    check_finite(states_BxLxD)
    dropped_B = np.array([len(text) for text in pieces], np.int32) - lengths_B
    return EncodedText(
        states_BxLxD=states_BxLxD, lengths_B=lengths_B, truncated=int(np.count_nonzero(dropped_B)), dropped_B=dropped_B
    )


def check_finite(states: np.ndarray) -> None:
    """Raises UserError where states of a text encoder are NaN or infinite."""
    if not np.isfinite(states).all():
        raise UserError(
            "the states of the text encoder are NaN or infinite: its weights are damaged; restore "
            "them, or set TEXT.path to others"
        )


def length_buckets(length: int) -> list[int]:
    """Returns the lengths that texts are computed at: 16, 32, ... below `length`, and `length`."""
    buckets = []
    bucket = SHORTEST_BUCKET
    while bucket < length:
        buckets.append(bucket)
        bucket *= 2
    return [*buckets, length]


def _batches(lengths_B: np.ndarray, length: int) -> list[tuple[np.ndarray, int]]:
    """Returns (rows, length bucket) of each batch to compute; rows of length 0 are in none."""
    batches = []
    shortest = 1
    for bucket in length_buckets(length):
        rows_N = np.flatnonzero((shortest <= lengths_B) & (lengths_B <= bucket))
        step = BATCH_BUCKETS[-1]
        batches += [(rows_N[start : start + step], bucket) for start in range(0, len(rows_N), step)]
        shortest = bucket + 1
    return batches


def _fill_bucket(texts: Sequence[Sequence[int]], bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids_bxl, lengths_b) with b the smallest batch bucket that holds the texts."""
    batch_size = next(size for size in BATCH_BUCKETS if size >= len(texts))
    ids_bxl = np.zeros((batch_size, bucket), np.int32)
    lengths_b = np.zeros(batch_size, np.int32)
    for row, text in enumerate(texts):
        ids_bxl[row, : len(text)] = text
        lengths_b[row] = len(text)
    return ids_bxl, lengths_b
