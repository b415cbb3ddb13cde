"""Conditioning sound that opens the output, repeated in the prefix."""

from __future__ import annotations

import dataclasses

from poet.streams.audio import Sound
from poet.streams.base import Format, Grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpeningAudio(Sound):
    """Its length is the most conditioning sound of its task; codes beyond that of an example are hidden."""

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        return (self.known(fmt, min(known, fmt.video[0] - 1)), 1, 1)

    def known(self, fmt: Format, latents: int) -> int:
        return fmt.known_audio[latents] if fmt.opening_audio and latents else 0


STREAM = OpeningAudio(name="opening_audio", title="opening sound", opens="audio")
