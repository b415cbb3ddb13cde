"""The clip itself, as codes of the video tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from poet.runs import networks
from poet.spec import ClipSpec, Experiment
from poet.streams.base import Encoders, Format, Stream, StreamInfo, reach

COLOUR = "#2f7ebc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visual(Stream):
    """A grid of codes of the video tokenizer."""

    network: str = networks.VIDEO
    medium: str = "video"
    marks: str = "V"
    colour: str = COLOUR

    def known(self, fmt: Format, latents: int) -> int:
        _, height, width = fmt.video
        return latents * height * width

    def load(self, experiment: Experiment, mesh: Any = None) -> Any:
        load = reach("poet.tokenizers.video.base:load_video_tokenizer")
        return load(experiment.video_tokenizer, mesh=mesh)

    def info(self, clip: ClipSpec, encoders: Encoders) -> StreamInfo:
        tokenizer = encoders.networks[self.network]
        return StreamInfo(
            grid=tokenizer.spec.grid(clip.frames, clip.height, clip.width),
            bits=tokenizer.spec.bits,
            fingerprint=tokenizer.fingerprint,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video(Visual):
    """Every store holds it."""

    def expected(
        self, experiment: Experiment, fmt: Format, fingerprints: Mapping[str, str]
    ) -> dict[str, Any]:
        return {
            "fingerprint": fingerprints.get(self.network),
            "grid": list(fmt.video),
            "bits": experiment.vocabulary.visual_bits,
        }


STREAM = Video(name="video", title="video", stored="video", base=True, identifies=True)
