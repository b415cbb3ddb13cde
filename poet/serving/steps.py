"""The tokenizers of an export, as films use them: clips of any length and sounds, coded chunk by chunk.

T frames, t h w latents, S samples, L levels, F frames of audio codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from poet.serving.loaded import Program
from poet.spec import AudioTokenizerSpec, VideoTokenizerSpec


@dataclasses.dataclass(frozen=True)
class Steps:
    """The programs of one direction: of the first chunk, and of every other."""

    first: Program
    following: Program

    def __call__(self, chunk: np.ndarray, state: Sequence[Any] | None) -> tuple[np.ndarray, tuple[Any, ...]]:
        """The output of a chunk and the state behind it; `state` None: the first chunk."""
        output, *after = self.first(chunk) if state is None else self.following(chunk, *state)
        return np.asarray(output), tuple(after)

    def all(self, chunks: Sequence[np.ndarray], state: Any = None) -> tuple[list[np.ndarray], Any]:
        """The outputs of several chunks, and the state behind the last."""
        outputs = []
        for chunk in chunks:
            output, state = self(chunk, state)
            outputs.append(output)
        return outputs, state


@dataclasses.dataclass(frozen=True)
class ExportedVideo:
    """Codes and decodes clips of the size of the export, one at a time; see `poet.tokenizers.video.base`."""

    spec: VideoTokenizerSpec
    fingerprint: str
    encoder: Steps
    decoder: Steps

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return 1 << self.spec.bits

    def encode(self, video_1xTxHxWx3: np.ndarray) -> np.ndarray:
        """uint8 frames -> int32 codes (1, t, h, w)."""
        video, factor = video_1xTxHxWx3, self.spec.factor[0]
        starts = range(1, video.shape[1], factor)
        codes, _ = self.encoder.all([video[:, :1], *(video[:, start : start + factor] for start in starts)])
        return np.concatenate(codes, axis=1).astype(np.int32)

    def decode(self, ids_1xtxhxw: np.ndarray) -> np.ndarray:
        """Codes -> uint8 frames (1, T, H, W, 3)."""
        return self.decode_step(ids_1xtxhxw.astype(np.int32), None)[0]

    def decode_step(self, ids_1xtxhxw: np.ndarray, frames: Any) -> tuple[np.ndarray, Any]:
        """New latents -> (uint8 frames, what the next chunk needs); `frames` None: the first of a clip."""
        latents = [ids_1xtxhxw[:, number : number + 1] for number in range(ids_1xtxhxw.shape[1])]
        outputs, frames = self.decoder.all(latents, frames)
        return np.concatenate(outputs, axis=1), frames


@dataclasses.dataclass(frozen=True)
class ExportedAudio:
    """Codes and decodes sounds, one at a time; see `poet.tokenizers.audio.base`."""

    spec: AudioTokenizerSpec
    fingerprint: str
    encoder: Steps
    decoder: Steps

    def encode(self, audio_1xS: np.ndarray, levels: int) -> np.ndarray:
        """int16 samples of whole frames -> int32 codes (1, L, F); `levels` is L of the export."""
        hop = self.spec.hop
        frames = [audio_1xS[:, start : start + hop] for start in range(0, audio_1xS.shape[1], hop)]
        codes, _ = self.encoder.all(frames)
        return np.concatenate(codes, axis=2).astype(np.int32)

    def decode(self, ids_1xLxF: np.ndarray, samples: int) -> np.ndarray:
        """Codes -> int16 (1, samples); beyond their frames the last one sounds again."""
        ids = ids_1xLxF.astype(np.int32)
        if samples > ids.shape[2] * self.spec.hop:
            ids = np.concatenate([ids, ids[:, :, -1:]], axis=2)
        frames = [ids[:, :, number : number + 1] for number in range(ids.shape[2])]
        return np.concatenate(self.decoder.all(frames)[0], axis=1)[:, :samples]

    def stepper(self, part: str, levels: int) -> tuple[Steps, None]:
        """'encoder' or 'decoder', frame by frame, and its start."""
        return {"encoder": self.encoder, "decoder": self.decoder}[part], None
