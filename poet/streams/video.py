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
from poet.streams.base import Encoders, Format, Stream, StreamInfo, Target, Traced, reach

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
    formats: tuple[str, ...] = ("mp4", "webm", "gif", "apng", "png")

    def known(self, fmt: Format, latents: int) -> int:
        _, height, width = fmt.video
        return latents * height * width

    def load(self, spec: VideoTokenizerSpec, vocabulary: VocabularySpec, mesh: Any = None) -> Any:
        return reach("poet.tokenizers.video.base:VideoTokenizer").of(spec, mesh=mesh)

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
        every, rows, columns = self.grid(fmt)
        time, height, width = network.spec.factor
        return (1 + ((latents or every) - 1) * time, rows * height, columns * width, 3)

    def encoder(self, network: Any, fmt: Format, parts: int, latents: int | None = None) -> Traced:
        return Traced(*network.traced("encoder"), self.media_shape(network, fmt, latents), "uint8")

    def decoder(self, network: Any, fmt: Format, parts: int) -> Traced:
        return Traced(*network.traced("decoder"), self.grid(fmt), "int32")

    def write(self, item: np.ndarray, target: Target) -> list[Path]:
        """By default an mp4 with the sample's sound, a gif and a PNG strip; for an image only the PNG.

        H.264 and VP9 take even sides only.  The frames of `Target.original` are copied as they are coded.
        """
        usual = self.formats[-1:] if len(item) == 1 else ("mp4", "gif", "png")
        if (item.shape[1] % 2 or item.shape[2] % 2) and not target.original:
            usual = tuple(name for name in usual if name != "mp4")
        return [self._write(file, item, target) for file in target.files(self.formats, usual)]

    def _write(self, file: Path, item: np.ndarray, target: Target) -> Path:
        rate_hz, comment = target.clip.rate_hz, {"comment": target.comment}
        sound = target.sample.get("audio"), target.clip.sample_rate_hz
        if file.suffix == ".mp4" and target.original and sound[0] is not None:
            return reach("poet.media:dub")(target.original, file, item, rate_hz, *sound, **comment)
        if file.suffix in (".mp4", ".webm"):
            reach(f"poet.media:write_{file.suffix[1:]}")(file, item, rate_hz, *sound, **comment)
        elif file.suffix in (".gif", ".apng"):
            reach(f"poet.media:write_{file.suffix[1:]}")(file, item, rate_hz, **comment)
        else:
            reach("poet.media:write_png_strip")(file, item, **comment)
        return file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video(Visual):
    """Every store holds it."""

    def expected(
        self, fmt: Format, vocabulary: VocabularySpec, conditioning: ConditioningSpec, fingerprints: Mapping[str, str]
    ) -> dict[str, Any]:
        return {"fingerprint": fingerprints.get(self.network), "grid": list(fmt.video), "bits": vocabulary.visual_bits}


STREAM = Video(name="video", title="video", stored="video", base=True, identifies=True)
