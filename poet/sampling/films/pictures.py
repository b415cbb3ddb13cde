"""The frames of a film, clip after clip: the conditioning codes of the next clip, and the frames that a clip adds.

c conditioning latent frames, t h w latents, n T frames, H W pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from poet.sampling.films.windows import Windows
from poet.tokenizers.video.streaming import StreamDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class PicturesEnd:
    """The state at the end of a film's frames.

    Attributes:
      frames: number of frames of the film so far.
      given: int32 [c, h, w], conditioning codes of the next clip; [0, h, w] of an empty film.
      first: int32 [1, h, w], the codes of the film's first frame by itself; [0, h, w] of an empty film.
      pixels: uint8 [n, H, W, 3], the frames of the film that `given` encodes.
      decoder: of the film's codes; None if each clip is decoded by itself.
    """

    frames: int
    given: np.ndarray
    first: np.ndarray
    pixels: np.ndarray
    decoder: StreamDecoder | None = None


class Added(NamedTuple):
    """New frames uint8 [n, H, W, 3], their codes int32 [t, h, w], and where the film ends with them."""

    frames: np.ndarray
    codes: np.ndarray
    end: PicturesEnd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """The continuation of the frames of films.

    Attributes:
      tokenizer: a `VideoTokenizer`, or that of an export.
      recode: all conditioning latent frames are encoded from the film's frames, and each clip is decoded by itself;
        else codes are carried over and the film is decoded as one stream.
      sink: the first conditioning latent frame encodes the film's first frame.
    """

    windows: Windows
    tokenizer: Any
    recode: bool = False
    sink: bool = False

    def stream(self) -> StreamDecoder | None:
        """A decoder at the start of a film; None if each clip is decoded by itself."""
        return None if self.recode else StreamDecoder(self.tokenizer)

    def begin(self, video_TxHxWx3: np.ndarray) -> Added:
        """A film that opens with these frames, of the model's size; there may be none."""
        given, frames = self.windows.given_of(len(video_TxHxWx3)), len(video_TxHxWx3)
        pixels = video_TxHxWx3[frames - self.windows.frames_of(given) :]
        codes, first = self._encode(pixels), self._encode(video_TxHxWx3[:1])
        decoder = self.stream()
        if decoder and given:
            _, decoder = decoder.push(codes)
        opening = np.concatenate([first, codes[1:]]) if self.sink else codes
        end = PicturesEnd(frames=frames, given=opening, first=first, pixels=pixels, decoder=decoder)
        return Added(video_TxHxWx3, codes, end)

    def add(self, end: PicturesEnd, codes_txhxw: np.ndarray) -> Added:
        """Adds a clip of codes, which opens with `end.given`."""
        given, windows, decoder = len(end.given), self.windows, end.decoder
        new = codes_txhxw[given:]
        if decoder is None:
            frames = self.tokenizer.decode(codes_txhxw[None])[0][windows.frames_of(given) :]
        else:
            frames, decoder = decoder.push(new)
        first = end.first if len(end.first) else codes_txhxw[:1]
        pixels = np.concatenate([end.pixels, frames])[-windows.frames_of(windows.context) :]
        return Added(
            frames,
            new,
            PicturesEnd(
                frames=end.frames + len(frames),
                given=self._given(codes_txhxw, pixels, first),
                first=first,
                pixels=pixels,
                decoder=decoder,
            ),
        )

    def _given(self, codes_txhxw: np.ndarray, pixels: np.ndarray, first: np.ndarray) -> np.ndarray:
        if self.recode:
            return self._encode(pixels)
        anchor = first if self.sink else self._encode(pixels[:1])
        return np.concatenate([anchor, codes_txhxw[self.windows.latents - self.windows.context + 1 :]])

    def _encode(self, frames_TxHxWx3: np.ndarray) -> np.ndarray:
        """int32 [t, h, w]; [0, h, w] of no frames."""
        if len(frames_TxHxWx3):
            return self.tokenizer.encode(frames_TxHxWx3[None])[0]
        _, h, w = self.tokenizer.spec.grid(1, *frames_TxHxWx3.shape[1:3])
        return np.zeros((0, h, w), np.int32)
