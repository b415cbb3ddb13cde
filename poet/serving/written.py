"""The vocabulary of written texts without the package sentencepiece: a table of pieces, from which ids become text."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

# What stands for a blank within a piece, and for a byte that is not of UTF-8.
BLANK, REPLACEMENT = "▁", "�"
NORMAL, UNKNOWN, CONTROL, BYTE = "normal", "unknown", "control", "byte"


def describe(processor: Any) -> dict[str, Any]:
    """The record of a `sentencepiece.SentencePieceProcessor`."""
    kinds = ((processor.IsUnknown, UNKNOWN), (processor.IsControl, CONTROL), (processor.IsByte, BYTE))
    ids = range(processor.get_piece_size())
    return {
        "pieces": [processor.id_to_piece(i) for i in ids],
        "kinds": [next((kind for test, kind in kinds if test(i)), NORMAL) for i in ids],
        "unknown": processor.decode([processor.unk_id()]),
    }


@dataclasses.dataclass(frozen=True)
class PieceTable:
    """Decodes ids as SentencePiece does.

    Attributes:
      pieces, kinds: of every id.
      unknown: what an unknown piece reads as.
    """

    pieces: Sequence[str]
    kinds: Sequence[str]
    unknown: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> PieceTable:
        return cls(record["pieces"], record["kinds"], record["unknown"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; the blank before its first word goes."""
        text = ""
        for kind, run in itertools.groupby(ids, self.kinds.__getitem__):
            if kind == BYTE:
                text += _characters(bytes(int(self.pieces[i][3:5], 16) for i in run))
            elif kind == UNKNOWN:
                text += self.unknown * len(list(run))
            elif kind == NORMAL:
                for piece in map(self.pieces.__getitem__, run):
                    text += (piece if text else piece.removeprefix(BLANK)).replace(BLANK, " ")
        return text


def _characters(data: bytes) -> str:
    """UTF-8 as text; each byte that is of no character is replaced by itself."""
    found = ""
    while data:
        size = next((n for n in range(1, 5) if _is_character(data[:n])), 0)
        found += data[:size].decode() if size else REPLACEMENT
        data = data[max(size, 1) :]
    return found


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False
