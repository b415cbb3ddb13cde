"""The sound of a film, clip after clip: the conditioning codes of the next clip, and the samples that a clip adds.

Samples are emitted when no later clip can change them.  Where codes are carried over they are decoded as one stream,
whose samples are final; else each clip is decoded by itself, and the last `FADE_S` before its new samples are blended.

L levels, F frames of audio codes, S samples.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from poet.media import to_int16
from poet.sampling.films.windows import Windows
from poet.tokenizers.audio.streaming import StreamDecoder

FADE_S = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundEnd:
    """The state at the end of a film's sound.

    Attributes:
      start: the sample of the film with which the next clip begins.
      samples: int16 [S], all samples from there on.
      emitted: number of samples of the film that are final.
      given: int32 [L, F], conditioning codes of the next clip.
      decoder: of the film's codes; None if each clip is decoded by itself.
    """

    start: int
    samples: np.ndarray
    emitted: int
    given: np.ndarray
    decoder: StreamDecoder | None = None

    @property
    def held(self) -> np.ndarray:
        """int16 [S]: samples that are not final."""
        return self.samples[self.emitted - self.start :]


class Added(NamedTuple):
    """Samples int16 [S] that became final, new codes int32 [L, F], and where the sound ends with them."""

    samples: np.ndarray
    codes: np.ndarray
    end: SoundEnd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sounds:
    """The continuation of the sound of films.

    Attributes:
      tokenizer: an `AudioTokenizer`, or that of an export.
      levels: number of levels of the codes.
      clip_samples: samples of a clip.
      recode: codes are encoded anew from samples, and each clip is decoded by itself; also if the step between
        clips is not a whole number of frames of codes.
    """

    windows: Windows
    tokenizer: Any
    levels: int
    clip_samples: int
    recode: bool = False

    @property
    def carries(self) -> bool:
        """Whether codes are carried over."""
        return self.windows.carries_sound and not self.recode

    @property
    def _fade(self) -> int:
        return round(FADE_S * self.windows.sample_rate_hz)

    def stream(self) -> StreamDecoder | None:
        """A decoder at the start of a film; None if each clip is decoded by itself."""
        return StreamDecoder(self.tokenizer, self.levels) if self.carries else None

    def begin(self, sound_S: np.ndarray | None, frames: int) -> Added:
        """A film that opens with so many frames and their sound, int16 or floats; None is silence."""
        windows, given = self.windows, self.windows.given_of(frames)
        whole = fitted(np.zeros(0, np.int16) if sound_S is None else to_int16(sound_S), windows.sample_of(frames))
        start, known = windows.sample_of(frames - windows.frames_of(given)), windows.known_audio[given]
        samples, place, decoder = whole[start:].copy(), known * windows.hop, self.stream()
        codes = self._encode(samples, known)
        fade = min(self._fade, place)
        if decoder and known:
            heard = decoder.push(codes)
            samples = samples[:place]
            samples[place - fade :] = _blended(samples[place - fade :], heard[place - fade : place])
        emitted = start + (place if self.carries else place - fade)
        final = np.concatenate([whole[:start], samples])[:emitted]
        return Added(
            final, codes, SoundEnd(start=start, samples=samples, emitted=emitted, given=codes, decoder=decoder)
        )

    def add(self, end: SoundEnd, codes_LxF: np.ndarray, frames: int) -> Added:
        """Adds a clip of codes, which opens with `end.given`; `frames`: of the film after it."""
        windows, known, decoder = self.windows, end.given.shape[1], copy.copy(end.decoder)
        new = codes_LxF[:, known:]
        if decoder is None:
            heard = self.tokenizer.decode(codes_LxF[None], self.clip_samples)[0][end.emitted - end.start :]
        else:
            heard = decoder.push(new)
        fade = min(self._fade, len(end.held))
        heard[:fade] = _blended(end.held[:fade], heard[:fade])
        start = windows.sample_of(frames - windows.frames_of(windows.context))
        samples = np.concatenate([end.samples[: end.emitted - end.start], heard])[start - end.start :]
        place = windows.known_audio[windows.context]
        if self.carries:
            shift = codes_LxF.shape[1] - place
            given = codes_LxF[:, shift:]
            emitted = end.emitted + len(heard)
        else:
            given = self._encode(samples, place)
            emitted = start + max(place * windows.hop - self._fade, 0)
        after = SoundEnd(start=start, samples=samples, emitted=emitted, given=given, decoder=decoder)
        return Added(heard[: emitted - end.emitted], new, after)

    def rest(self, end: SoundEnd, frames: int) -> np.ndarray:
        """int16 [S]: the samples that complete a film that ends here, after so many frames."""
        samples, decoder = end.held, copy.copy(end.decoder)
        if decoder and end.given.shape[1]:
            samples = decoder.push(end.given[:, -1:])
        return fitted(samples, max(self.windows.sample_of(frames) - end.emitted, 0))

    def _encode(self, samples: np.ndarray, known: int) -> np.ndarray:
        if not known:
            return np.zeros((self.levels, 0), np.int32)
        return self.tokenizer.encode(samples[None, : known * self.windows.hop], levels=self.levels)[0]


def fitted(samples_S: np.ndarray, count: int) -> np.ndarray:
    """[count]: cut, or padded with silence."""
    return np.pad(samples_S[:count], (0, max(count - len(samples_S), 0)))


def _blended(before_S: np.ndarray, after_S: np.ndarray) -> np.ndarray:
    """int16 [S]: a cross-fade between two sounds of the same time."""
    part = (np.arange(len(before_S)) + 0.5) / max(len(before_S), 1)
    return np.round(before_S * (1 - part) + after_S * part).astype(np.int16)
