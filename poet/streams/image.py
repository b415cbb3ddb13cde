"""The first latent frame of a clip: a picture, whose codes open those of the clip."""

from __future__ import annotations

import dataclasses

import numpy as np

from poet.spec import ClipSpec
from poet.streams.base import Format, Grid
from poet.streams.video import Visual


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image(Visual):
    """As an output it has no closing token, so it is a literal prefix of video output (VideoPoet §3.2)."""

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        return (1, *fmt.video[1:])

    def read_file(self, path: str, clip: ClipSpec, frames: int = 0) -> np.ndarray:
        return super().read_file(path, clip, 1)


STREAM = Image(name="image", title="first frame", stored="video", closes=False, shows_latents=1)
