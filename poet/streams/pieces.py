"""A generated caption: text tokens (pieces of a SentencePiece vocabulary, hence the name of the stream)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet.runs import networks
from poet.spec import ClipSpec, ConditioningSpec, TextSpec, UserError, VocabularySpec
from poet.spec.vocabulary import Range, Vocabulary
from poet.streams.base import Encoders, Format, Grid, Stream, StreamInfo, Target, checked, code_bits, reach


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces(Stream):
    """Text tokens in order, padded after the end of the text."""

    def ids(self, vocabulary: Vocabulary) -> tuple[Range, ...]:
        return (vocabulary.text,)

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        return (fmt.pieces_length, 1, 1)

    def lacking(self, fmt: Format) -> str:
        return (
            ""
            if fmt.pieces_length
            else (
                "writes text and this run has no vocabulary for it: set TEXT.pieces to a "
                "SentencePiece model such as data/pretrained/pieces_512/spiece.model, VOCABULARY."
                "text_pieces to its size, and make the token store with both"
            )
        )

    def places(self, segment: Any) -> None:
        return None

    def load(self, spec: TextSpec, vocabulary: VocabularySpec, mesh: Any = None) -> Any:
        pieces = reach("poet.tokenizers.pieces:load_pieces")(spec.pieces)
        if pieces.size > vocabulary.text_pieces:
            raise UserError(
                f"TEXT.pieces = {spec.pieces!r} has {pieces.size} text tokens, more than "
                f"VOCABULARY.text_pieces = {vocabulary.text_pieces}: set that to {pieces.size}"
            )
        return pieces

    def info(self, clip: ClipSpec, encoders: Encoders) -> StreamInfo:
        pieces = encoders.networks[self.network]
        return StreamInfo(
            grid=(encoders.networks[networks.TEXT].length, 1, 1),
            bits=code_bits(pieces.size),
            fingerprint=pieces.fingerprint,
        )

    def expected(
        self, fmt: Format, vocabulary: VocabularySpec, conditioning: ConditioningSpec, fingerprints: Mapping[str, str]
    ) -> dict[str, Any]:
        return {"fingerprint": fingerprints.get(self.network), "grid": [fmt.pieces_length, 1, 1]}

    def read(self, raw: Any, clip: ClipSpec, encoders: Encoders) -> str:
        return raw.caption

    def tokenize(self, items: Sequence[str], info: StreamInfo, encoders: Encoders) -> np.ndarray:
        ids_BxL, _, _ = encoders.networks[self.network].encode(list(items), info.length)
        return checked(ids_BxL.reshape(len(items), *info.grid), info)

    def detokenize(self, network: Any, codes_NxM: np.ndarray, fmt: Format) -> list[str]:
        return network.decode(np.minimum(codes_NxM, network.size - 1))

    def write(self, item: str, target: Target) -> list[Path]:
        files = target.files(self.formats, self.formats)
        for file in files:
            reach("poet.media:write_text")(file, item + "\n")
        return files

    def record(self, item: str) -> dict[str, Any]:
        return {"text": item}


STREAM = Pieces(
    name="pieces",
    title="caption",
    network=networks.PIECES,
    section="text",
    base=True,
    setting="TEXT.pieces set",
    stored="pieces",
    medium="text",
    stage="text",
    marks="T",
    colour="#8e6bbf",
    formats=("txt",),
)
