"""The clip at half its height and width, as codes of the video tokenizer: the condition of super-resolution."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from poet.spec import ClipSpec, ConditioningSpec, UserError, VocabularySpec
from poet.streams.base import Encoders, Format, Grid, StreamInfo, reach
from poet.streams.video import Visual

# Rows and columns that are one in the low resolution.
SCALE = 2
# Of the resizing: bicubic with antialiasing, as `poet.media.resize_video` does it.
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowResolution(Visual):
    """Its cells have the rotary positions of the high-resolution cells that they cover."""

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        t, h, w = fmt.video
        return t, h // SCALE, w // SCALE

    def lacking(self, fmt: Format) -> str:
        if any(side % SCALE for side in fmt.video[1:]):
            return (
                f"needs latents that halve, and these clips have {fmt.video[1]}x{fmt.video[2]}: set CLIP.height and "
                f"CLIP.width so that they have an even number of rows and columns"
            )
        return ""

    def places(self, segment: Any) -> np.ndarray:
        cells = np.indices(segment.grid).reshape(3, -1).T
        return cells * (1, SCALE, SCALE) + (0, (SCALE - 1) / 2, (SCALE - 1) / 2)

    def fingerprint(self, tokenizer: str) -> str:
        """The fingerprint of its codes: of the tokenizer and the downscaling of clips."""
        return hashlib.sha256(f"{tokenizer}/{self.name}/{SCALE}/{VERSION}".encode()).hexdigest()[:16]

    def info(self, clip: ClipSpec, encoders: Encoders) -> StreamInfo:
        if clip.height % SCALE or clip.width % SCALE:
            raise UserError(
                f"clips of {clip.height}x{clip.width} pixels have no half: set CLIP.height and "
                "CLIP.width to even numbers"
            )
        small = clip.replace(height=clip.height // SCALE, width=clip.width // SCALE)
        info = super().info(small, encoders)
        return info.replace(fingerprint=self.fingerprint(info.fingerprint))

    def expected(
        self, fmt: Format, vocabulary: VocabularySpec, conditioning: ConditioningSpec, fingerprints: Mapping[str, str]
    ) -> dict[str, Any]:
        tokenizer = fingerprints.get(self.network)
        return {"fingerprint": tokenizer and self.fingerprint(tokenizer), "grid": list(self.grid(fmt))}

    def read(self, raw: Any, clip: ClipSpec, encoders: Encoders) -> np.ndarray:
        return reach("poet.media:resize_video")(raw.video, clip.height // SCALE, clip.width // SCALE)


STREAM = LowResolution(name="low_resolution", title="the clip at half its size", stored="low_resolution")
