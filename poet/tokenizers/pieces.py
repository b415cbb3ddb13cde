"""The text output vocabulary: a SentencePiece model, from texts to piece ids and back.

Ids are T5's: 0 pads on the right, 1 closes every text, 2 stands for what cannot be written.

B batch, L positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet.runs import assets, manifest
from poet.spec import UserError, limited
from poet.tokenizers import text as text_lib

PAD, EOS, UNKNOWN = 0, 1, 2
MODEL = "spiece.model"
TRAIN = (
    "spm_train --input=TEXTS --model_prefix=spiece --vocab_size=N --pad_id=0 --eos_id=1 --unk_id=2 "
    "--bos_id=-1 --byte_fallback"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces:
    """A vocabulary of pieces.

    Attributes:
        size: ids lie in [0, size).
        fingerprint: 16 hex characters that identify the model file.
    """

    size: int
    fingerprint: str
    processor: Any = dataclasses.field(repr=False)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids, uncut, with the closing 1; an empty text is [1].

        Raises:
            UserError: not a list of texts.
        """
        return self.processor.encode(text_lib.check_texts(texts), add_eos=True)

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Texts as rows of ids.

        Args:
            texts: any number of them.
            length: L; a longer text keeps its first L - 1 pieces and the closing one.

        Returns:
            ids, int32 [B, L], 0 past each text's length; lengths, int32 [B] in 1..L, the closing
            piece included; how many texts were cut.

        Raises:
            UserError: not a list of texts, or no room for a closing piece.
        """
        if length < 1:
            raise UserError(f"length = {length}: the closing piece alone needs 1 position")
        uncut = self.ids(texts)
        ids_BxL = np.full((len(uncut), length), PAD, np.int32)
        for row, pieces in zip(ids_BxL, uncut, strict=True):
            kept = text_lib.cut(pieces, length)
            row[: len(kept)] = kept
        lengths_B = np.array([min(len(pieces), length) for pieces in uncut], np.int32)
        return ids_BxL, lengths_B, sum(len(pieces) > length for pieces in uncut)

    def decode(self, ids_BxL: np.ndarray) -> list[str]:
        """The text of each row up to its first closing token; padding is dropped.

        Bytes that are not UTF-8, and id 2, read as U+FFFD and U+2047.

        Args:
            ids_BxL: integers in [0, size), of any length.

        Raises:
            UserError: another shape or type, or ids outside the vocabulary.
        """
        ids_BxL = np.asarray(ids_BxL)
        if ids_BxL.ndim != 2 or not np.issubdtype(ids_BxL.dtype, np.integer):
            raise UserError(f"piece ids are {ids_BxL.dtype} {ids_BxL.shape}: integers [batch, length] are needed")
        if ids_BxL.size and not 0 <= ids_BxL.min() <= ids_BxL.max() < self.size:
            raise UserError(
                f"piece ids lie in {ids_BxL.min()}..{ids_BxL.max()}, the vocabulary's in "
                f"0..{self.size - 1}: subtract the offset of the text range"
            )
        return [self.processor.decode(_content(row)) for row in ids_BxL.tolist()]


def load_pieces(path: str | Path) -> Pieces:
    """Reads a SentencePiece model: the file, or a folder that holds it as `spiece.model`.

    A path that is not there is looked for among the shipped files.

    Raises:
        UserError: it is missing, is no SentencePiece model, is not as the manifest of its folder says, or
            has other control ids.
    """
    import sentencepiece

    file = Path(path).expanduser()
    file = file if file.exists() else assets.root() / file
    file = file / MODEL if file.is_dir() else file
    if (file.parent / manifest.NAME).is_file():
        manifest.check_listed(file.parent)
    try:
        content = limited(file).read_bytes()
        if not content:
            raise OSError("it is empty")
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot read the SentencePiece model {file}: {error}; train one with: {TRAIN}") from error
    given = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if given != (PAD, EOS, UNKNOWN):
        raise UserError(
            f"{file} has pad, eos and unk ids {given}, but {(PAD, EOS, UNKNOWN)} are needed: train it with: {TRAIN}"
        )
    return Pieces(
        size=processor.get_piece_size(),
        fingerprint=text_lib.fingerprint("sentencepiece", {}, content),
        processor=processor,
    )


def _content(ids: list[int]) -> list[int]:
    end = ids.index(EOS) if EOS in ids else len(ids)
    return [piece for piece in ids[:end] if piece != PAD]
