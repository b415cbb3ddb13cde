"""Metrics of clips that a tokenizer encodes and decodes repeatedly.

Long video is generated clip by clip, each conditioned on the encoded end of the one before, so every clip costs a
round.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels; t h w latents.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from poet.evaluation.metric import Batch, Metric, Values, register
from poet.evaluation.metrics.pixels import by_pair, clip_psnr

# Rounds after which clips are compared with the originals.
ROUNDS = (1, 2, 4, 8, 12)
NOTE = (
    "Round trip match is the fraction of codes that survive decoding and encoding; PSNR after K "
    "is that of K rounds of encoding and decoding, against the originals."
)


class Tokenizer(Protocol):
    """See `poet.tokenizers.video.base.VideoTokenizer`."""

    def encode(self, video_BxTxHxWx3: np.ndarray) -> np.ndarray: ...

    def decode(self, ids_Bxtxhxw: np.ndarray) -> np.ndarray: ...


def round_trips(
    tokenizer: Tokenizer, clips_NxTxHxWx3: np.ndarray, ids_Nxtxhxw: np.ndarray, rebuilt_NxTxHxWx3: np.ndarray
) -> Batch:
    """Fields: `truth`, `ids`, `ids_again` (of what `ids` decode to), and `after_K`, the clips of K rounds.

    Args:
      clips_NxTxHxWx3: uint8.  ids_Nxtxhxw: their codes.
      rebuilt_NxTxHxWx3: what they decode to, uint8: the first round.
    """
    video, again = rebuilt_NxTxHxWx3, tokenizer.encode(rebuilt_NxTxHxWx3)
    fields = {"truth": clips_NxTxHxWx3, "ids": ids_Nxtxhxw, "ids_again": again, "after_1": video}
    for number in range(2, ROUNDS[-1] + 1):
        video = tokenizer.decode(again)
        again = tokenizer.encode(video)
        fields |= {f"after_{number}": video} if number in ROUNDS else {}
    return fields


def _match(batch: Batch) -> Values:
    same = batch["ids_again"] == batch["ids"]
    return Values.of(batch, same.reshape(len(same), -1).mean(1))


register(
    Metric(
        name="round_trip_match",
        better="more",
        tables=("round_trips",),
        needs=("ids", "ids_again"),
        measure=_match,
        note=NOTE,
    )
)
for _number in ROUNDS:
    register(
        Metric(
            name=f"psnr_after_{_number}_db",
            better="more",
            tables=("round_trips",),
            needs=("truth", f"after_{_number}"),
            measure=by_pair(clip_psnr, f"after_{_number}"),
            note=NOTE,
        )
    )
