"""The clip itself, as codes of the video tokenizer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from poet.runs import networks
from poet.spec import ClipSpec, ConditioningSpec, VideoTokenizerSpec, VocabularySpec
from poet.streams.base import Encoders, Format, Stream, StreamInfo, Traced, reach

_LOG = logging.getLogger(__name__)

COLOUR = "#2f7ebc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visual(Stream):
    """A grid of codes of the video tokenizer."""

    network: str = networks.VIDEO
    section: str = "video_tokenizer"
    medium: str = "video"
    marks: str = "V"
    exports: bool = True
    colour: str = COLOUR

    def known(self, fmt: Format, latents: int) -> int:
        _, height, width = fmt.video
        return latents * height * width

    def load(self, spec: VideoTokenizerSpec, vocabulary: VocabularySpec, mesh: Any = None) -> Any:
        return reach("poet.tokenizers.video.base:load_video_tokenizer")(spec, mesh=mesh)

    def info(self, clip: ClipSpec, encoders: Encoders) -> StreamInfo:
        tokenizer = encoders.networks[self.network]
        return StreamInfo(
            grid=tokenizer.spec.grid(clip.frames, clip.height, clip.width),
            bits=tokenizer.spec.bits,
            fingerprint=tokenizer.fingerprint,
        )

    def read_file(self, path: str, clip: ClipSpec, frames: int = 0) -> np.ndarray:
        wanted = clip.replace(frames=frames or clip.frames)
        found = reach("poet.media:read_clip")(path, wanted, hold=not frames)
        if found.fitted:
            _LOG.info("%s: %s", path, found.fitted)
        return found.video

    def media_shape(self, network: Any, fmt: Format, latents: int | None = None) -> tuple[int, ...]:
        latents = self.grid(fmt)[0] if latents is None else latents
        return (1 + (latents - 1) * network.spec.factor[0], fmt.clip.height, fmt.clip.width, 3)

    def encoder(self, network: Any, fmt: Format, parts: int, batch: int, latents: int | None = None) -> Traced:
        return Traced(*network.traced("encoder"), self.media_shape(network, fmt, latents), "uint8")

    def decoder(self, network: Any, fmt: Format, parts: int, batch: int) -> Traced:
        return Traced(*network.traced("decoder"), self.grid(fmt), "int32")

    def write(self, item: np.ndarray, stem: Path, clip: ClipSpec, sample: Mapping[str, Any]) -> list[Path]:
        """An mp4 with the sample's sound, a gif and a strip of PNG; of an image the PNG alone."""
        strip, gif, mp4 = (stem.with_suffix(suffix) for suffix in (".png", ".gif", ".mp4"))
        reach("poet.media:write_png_strip")(strip, item)
        if len(item) == 1:
            return [strip]
        reach("poet.media:write_gif")(gif, item, clip.rate_hz)
        if item.shape[1] % 2 or item.shape[2] % 2:  # H.264 takes even sides only.
            return [gif, strip]
        reach("poet.media:write_mp4")(mp4, item, clip.rate_hz, sample.get("audio"), clip.sample_rate_hz)
        return [mp4, gif, strip]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video(Visual):
    """Every store holds it."""

    def expected(
        self, fmt: Format, vocabulary: VocabularySpec, conditioning: ConditioningSpec, fingerprints: Mapping[str, str]
    ) -> dict[str, Any]:
        return {
            "fingerprint": fingerprints.get(self.network),
            "grid": list(fmt.video),
            "bits": vocabulary.visual_bits,
        }


STREAM = Video(name="video", title="video", stored="video", base=True, identifies=True)
