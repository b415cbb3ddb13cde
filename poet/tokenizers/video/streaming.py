"""A clip in chunks of latents as they come: frames equal those of the whole clip.

The network is causal, so a chunk needs only the last inputs of every layer.  A stream is a value: several may go on
from one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from poet.spec import UserError


class Steps(Protocol):
    """A tokenizer that decodes in chunks (`poet.tokenizers.video.base.VideoTokenizer`)."""

    @property
    def codes(self) -> int: ...

    def decode_step(self, ids_1xtxhxw: np.ndarray, frames: Any) -> tuple[Any, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class StreamDecoder:
    """Codes in, frames out; whole frames, without tiles.

    Attributes:
      tokenizer: its weights.
      frames: what the chunks before handed on; None in front of a clip.
    """

    tokenizer: Steps
    frames: Any = None

    def push(self, ids_txhxw: np.ndarray) -> tuple[np.ndarray, StreamDecoder]:
        """Ids of new latent frames -> uint8 frames (T, H, W, 3), and the stream behind them.

        The first latent frame of a stream shows one frame, every other one as many as the temporal factor.

        Raises UserError on another rank, or ids outside the codebook.
        """
        ids = np.asarray(ids_txhxw)
        if ids.ndim != 3 or not ids.size or ids.min() < 0 or ids.max() >= self.tokenizer.codes:
            raise UserError(
                f"a stream takes codes (t, h, w) in 0..{self.tokenizer.codes - 1}, got shape {ids.shape}"
                + (f" with {ids.min()}..{ids.max()}" if ids.size else "")
            )
        video, frames = self.tokenizer.decode_step(ids[None].astype(np.int32), self.frames)
        return np.asarray(video)[0], dataclasses.replace(self, frames=frames)
