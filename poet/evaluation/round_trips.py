"""What becomes of clips that a tokenizer encodes and decodes again and again.

Long video is drawn piece by piece, each on the encoded end of the one before: what a round costs is paid at every
piece.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels; t h w latents.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from poet.evaluation.image_metrics import clip_psnr, mean_and_error

# Rounds after which clips are compared with the originals.
ROUNDS = (1, 2, 4, 8, 12)
ROUND_TRIP_NOTE = (
    "Round trip match is the share of codes that come back when what they decode to is encoded again; PSNR after K "
    "is that of K rounds of encoding and decoding, against the originals."
)


class Tokenizer(Protocol):
    """See `poet.tokenizers.video.base.VideoTokenizer`."""

    def encode(self, video_BxTxHxWx3: np.ndarray) -> np.ndarray: ...

    def decode(self, ids_Bxtxhxw: np.ndarray) -> np.ndarray: ...


def round_trips(
    tokenizer: Tokenizer, clips_NxTxHxWx3: np.ndarray, ids_Nxtxhxw: np.ndarray, rebuilt_NxTxHxWx3: np.ndarray
) -> dict[str, Any]:
    """A row of what rounds of encoding and decoding uint8 clips cost.

    `round_trip_match` is the share of codes that are the same when what they decode to is encoded, in 0..1;
    `psnr_after_K_db` compares the clips of K rounds with the originals.

    Args:
      ids_Nxtxhxw: codes of the clips.  rebuilt_NxTxHxWx3: what they decode to, uint8: the first round.
    """
    again = tokenizer.encode(rebuilt_NxTxHxWx3)
    same_N = (again == ids_Nxtxhxw).reshape(len(again), -1).mean(1)
    row = _with_error("round_trip_match", same_N)
    video = rebuilt_NxTxHxWx3
    for number in range(1, ROUNDS[-1] + 1):
        if number > 1:
            video = tokenizer.decode(again)
            again = tokenizer.encode(video)
        if number in ROUNDS:
            pairs = zip(clips_NxTxHxWx3, video, strict=True)
            row |= _with_error(f"psnr_after_{number}_db", np.array([clip_psnr(*pair) for pair in pairs]))
    return row


def _with_error(key: str, values_N: np.ndarray) -> dict[str, Any]:
    mean, error = mean_and_error(values_N)
    return {key: mean, f"{key}_error": error}
