"""A clip in chunks of latents as they come: frames equal those of the whole clip.

The network is causal, so a chunk needs only the last inputs of every layer.  A stream is a value: several may go on
from one.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from poet.models.declaration import Tree
from poet.spec import UserError, VideoTokenizerSpec
from poet.tokenizers.video import lfq, magvit
from poet.tokenizers.video.base import VideoTokenizer
from poet.tokenizers.video.magvit import Frames


@jax.jit(static_argnums=0)
def _decode(spec: VideoTokenizerSpec, params: Tree, ids_1xtxhxw: jax.Array, frames: Frames) -> tuple[jax.Array, Frames]:
    corners = lfq.ids_to_bits(ids_1xtxhxw, spec.bits)
    pixels, frames = magvit.decode_chunk(spec, params, corners, frames)
    return jnp.round(jnp.clip(pixels, 0.0, 1.0) * 255.0).astype(jnp.uint8), frames


@dataclasses.dataclass(frozen=True, eq=False)
class StreamDecoder:
    """Codes in, frames out; whole frames, without tiles.

    Attributes:
      tokenizer: its weights.
      weights: the same where they are used.
      frames: what the chunks before handed on; None in front of a clip.
    """

    tokenizer: VideoTokenizer
    weights: Tree
    frames: Frames = None

    @classmethod
    def of(cls, tokenizer: VideoTokenizer) -> StreamDecoder:
        """A stream that nothing was pushed to."""
        return cls(tokenizer, jax.device_put(tokenizer.params))

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
        video, frames = _decode(self.tokenizer.spec, self.weights, ids[None].astype(np.int32), self.frames)
        return np.asarray(video)[0], dataclasses.replace(self, frames=frames)
