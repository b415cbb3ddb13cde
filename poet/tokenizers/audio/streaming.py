"""Sound in chunks as it comes: codes and samples equal those of the whole sound.

The network is causal, so a chunk needs only the last inputs of every layer.  A stream works in calls
of `chunk_frames` frames, one compiled program, and keeps what does not fill a call until `flush`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from poet.spec import AudioTokenizerSpec, UserError

Step = Callable[[np.ndarray, Any], tuple[Any, Any]]


class Steps(Protocol):
    """A tokenizer that works in chunks (`poet.tokenizers.audio.base.AudioTokenizer`)."""

    spec: AudioTokenizerSpec

    def stepper(self, part: str, levels: int) -> tuple[Step, Any]: ...


class _Stream(abc.ABC):
    """Runs a chunk function over buffered input, carrying what it hands on."""

    def __init__(self, tokenizer: Steps, part: str, levels: int, empty: np.ndarray) -> None:
        self._buffer = empty
        self._step, self._stored = tokenizer.stepper(part, levels)

    @abc.abstractmethod
    def _width(self, frames: int) -> int:
        """Length of what a call over so many frames takes in."""

    def _advance(self, chunk: np.ndarray, chunk_frames: int) -> list[np.ndarray]:
        """The outputs of all whole calls that the buffer and `chunk` give."""
        self._buffer = np.concatenate([self._buffer, chunk], axis=-1)
        outputs, width = [], self._width(chunk_frames)
        while self._buffer.shape[-1] >= width:
            part, self._buffer = self._buffer[..., :width], self._buffer[..., width:]
            output, self._stored = self._step(part[None], self._stored)
            outputs.append(np.asarray(output[0]))
        return outputs


class StreamEncoder(_Stream):
    """Samples in, codes out."""

    def __init__(self, tokenizer: Steps, levels: int = 0, chunk_frames: int = 1) -> None:
        """`levels` as in `AudioTokenizer.encode`; `chunk_frames` frames are coded at a time."""
        _check_chunk(chunk_frames)
        self._levels, self._frames = levels or tokenizer.spec.levels, chunk_frames
        self._hop = tokenizer.spec.hop
        super().__init__(tokenizer, "encoder", self._levels, np.empty(0, np.int16))

    def _width(self, frames: int) -> int:
        return frames * self._hop

    def push(self, samples_S: np.ndarray) -> np.ndarray:
        """int16 samples -> int32 ids (levels, F) of the calls that they complete."""
        if samples_S.ndim != 1 or samples_S.dtype != np.int16:
            raise UserError(f"a stream takes mono int16 samples (S,), got {samples_S.dtype} {samples_S.shape}")
        return self._joined(self._advance(samples_S, self._frames))

    def flush(self) -> np.ndarray:
        """The whole frames that are left; samples behind them are not heard."""
        return self._joined(self._advance(np.empty(0, np.int16), 1))

    def _joined(self, outputs: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.empty((self._levels, 0), np.int32), *outputs], axis=1)


class StreamDecoder(_Stream):
    """Codes in, samples out."""

    def __init__(self, tokenizer: Steps, levels: int = 0, chunk_frames: int = 1) -> None:
        """`levels` is how many the codes have, 0: all."""
        _check_chunk(chunk_frames)
        self._frames = chunk_frames
        levels = levels or tokenizer.spec.levels
        super().__init__(tokenizer, "decoder", levels, np.empty((levels, 0), np.int32))

    def _width(self, frames: int) -> int:
        return frames

    def push(self, ids_LxF: np.ndarray) -> np.ndarray:
        """Ids of new frames -> int16 samples (S,) of the calls that they complete."""
        if ids_LxF.ndim != 2 or ids_LxF.shape[0] != self._buffer.shape[0]:
            raise UserError(f"this stream takes codes ({self._buffer.shape[0]}, frames), got {ids_LxF.shape}")
        return self._joined(self._advance(ids_LxF.astype(np.int32), self._frames))

    def flush(self) -> np.ndarray:
        """The samples of the frames that are left."""
        return self._joined(self._advance(self._buffer[:, :0], 1))

    def _joined(self, outputs: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int16), *outputs])


def _check_chunk(chunk_frames: int) -> None:
    if chunk_frames < 1:
        raise UserError(f"chunk_frames = {chunk_frames}: a stream works in one frame or more")
