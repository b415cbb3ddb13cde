"""The sound of a clip, as codes of the audio tokenizer, level by level (VideoPoet §5.2: a little better than mixed)."""

from __future__ import annotations

import dataclasses
import fractions
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet.runs import networks
from poet.spec import AudioTokenizerSpec, ClipSpec, ConditioningSpec, UserError, VocabularySpec
from poet.spec.vocabulary import Range, Vocabulary
from poet.streams.base import Encoders, Format, Grid, Stream, StreamInfo, Target, Traced, checked, code_bits, reach

_LOG = logging.getLogger(__name__)

# Rotary row and column of sound, outside every picture; each level has the row before that of the previous level.
ROW, COLUMN = -2, -2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound(Stream):
    """Frames of codes; each level of the residual quantizer is a part."""

    network: str = networks.AUDIO
    section: str = "audio_tokenizer"
    medium: str = "audio"
    marks: str = "A"
    exports: bool = True
    flag: str = "sounding"
    stored: str | None = "audio"
    stage: str = "encode sound"
    colour: str = "#2a9d6f"
    formats: tuple[str, ...] = ("wav",)

    def ids(self, vocabulary: Vocabulary) -> tuple[Range, ...]:
        return tuple(map(vocabulary.audio, range(vocabulary.spec.audio_levels)))

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        return (fmt.audio_frames, 1, 1)

    def lacking(self, fmt: Format) -> str:
        return (
            ""
            if fmt.audio_frames
            else (
                "needs sound and this run has none: set AUDIO_TOKENIZER.path to the folder of a trained audio "
                "tokenizer, and make the token store with it"
            )
        )

    def time(self, fmt: Format) -> tuple[float, float]:
        return fmt.audio_time

    def places(self, segment: Any) -> np.ndarray:
        first, step = segment.time
        row = ROW - segment.part // segment.length
        return np.array([[first + step * i, row, COLUMN] for i in range(segment.length)])

    def known(self, fmt: Format, latents: int) -> int:
        return fmt.known_audio[latents] if latents else 0

    def load(self, spec: AudioTokenizerSpec, vocabulary: VocabularySpec, mesh: Any = None) -> Any:
        return reach("poet.tokenizers.audio.base:AudioTokenizer").of(spec, mesh=mesh)

    def detokenize(self, network: Any, codes_NxM: np.ndarray, fmt: Format) -> Any:
        codes_NxLxF = codes_NxM.reshape(len(codes_NxM), -1, fmt.audio_frames)
        return network.decode(codes_NxLxF, fmt.clip.samples)

    def read_file(self, path: str, clip: ClipSpec, frames: int = 0) -> np.ndarray:
        """int16 [samples]: from the first of `frames` on; or a file's sound, padded with silence."""
        if frames:
            sound = reach("poet.media:read_clip")(path, clip.replace(frames=frames)).audio
            if sound is None:
                raise reach("poet.media:MediaError")(path, "no sound to continue")
            return sound
        found = reach("poet.media:read_sound")(path, clip.sample_rate_hz, clip.samples / clip.sample_rate_hz)
        if found.notes:
            _LOG.info("%s: %s", path, ", ".join(found.notes))
        samples = found.samples[: clip.samples]
        return np.pad(samples, (0, clip.samples - len(samples)))

    def media_shape(self, network: Any, fmt: Format, latents: int | None = None) -> tuple[int, ...]:
        frames = self.grid(fmt)[0] if latents is None else self.known(fmt, latents)
        return (frames * network.spec.hop,)

    def encode(
        self, network: Any, media: np.ndarray, fmt: Format, parts: int, latents: int | None = None
    ) -> np.ndarray:
        (samples,) = shape = self.media_shape(network, fmt, latents)
        self.check_media(media, shape)
        codes_NxLxF = network.encode(media[:, : fmt.clip.samples], levels=parts)
        return codes_NxLxF[:, :, : samples // network.spec.hop].reshape(len(media), -1)

    def encoder(self, network: Any, fmt: Format, parts: int, latents: int | None = None) -> Traced:
        return Traced(*network.traced_encoder(parts), self.media_shape(network, fmt, latents), "int16")

    def decoder(self, network: Any, fmt: Format, parts: int) -> Traced:
        return Traced(*network.traced_decoder(fmt.clip.samples), (parts, fmt.audio_frames), "int32")

    def write(self, item: np.ndarray, target: Target) -> list[Path]:
        files = target.files(self.formats, self.formats)
        for file in files:
            reach("poet.media:write_wav")(file, item, target.clip.sample_rate_hz, target.comment)
        return files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audio(Sound):
    """All sound of a clip; a clip without sound is silence, with the flag `sounding` = 0 in stores."""

    def info(self, clip: ClipSpec, encoders: Encoders) -> StreamInfo:
        tokenizer, levels = encoders.networks[self.network], encoders.vocabulary.audio_levels
        spec = tokenizer.spec
        if not 1 <= levels <= spec.levels or clip.sample_rate_hz != spec.sample_rate_hz:
            raise UserError(
                f"{levels} levels of sound at {clip.sample_rate_hz} Hz were requested: the audio "
                f"tokenizer has 1..{spec.levels} levels at {spec.sample_rate_hz} Hz; set "
                "VOCABULARY.audio_levels and CLIP.sample_rate_hz"
            )
        return StreamInfo(
            grid=(levels, spec.frames(clip.samples), 1), bits=code_bits(spec.codes), fingerprint=tokenizer.fingerprint
        )

    def expected(
        self, fmt: Format, vocabulary: VocabularySpec, conditioning: ConditioningSpec, fingerprints: Mapping[str, str]
    ) -> dict[str, Any]:
        return {
            "fingerprint": fingerprints.get(self.network),
            "grid": [vocabulary.audio_levels, fmt.audio_frames, 1],
            "bits": code_bits(vocabulary.audio_codes),
        }

    def read(self, raw: Any, clip: ClipSpec, encoders: Encoders) -> np.ndarray:
        return raw.audio if self.has(raw) else np.zeros(clip.samples, np.int16)

    def has(self, raw: Any) -> bool:
        return raw.audio is not None

    def tokenize(self, items: Sequence[np.ndarray], info: StreamInfo, encoders: Encoders) -> np.ndarray:
        codes = encoders.networks[self.network].encode(np.stack(items), levels=info.grid[0])
        return checked(np.asarray(codes)[..., None], info)  # The network's codes have no third dim.


def time_of_frames(audio: AudioTokenizerSpec, clip: ClipSpec, factor: int) -> tuple[float, float]:
    """The times of audio frames on the axis of latent frames: the first one's middle, and the step.

    Latent frame k > 0 shows the k-th run of `factor` video frames after the first frame; its middle is k.
    """
    frames = audio.hop / audio.sample_rate_hz * clip.rate_hz
    return (frames / 2 - 1) / factor + 0.5, frames / factor


def frames_within(audio: AudioTokenizerSpec, clip: ClipSpec, video_frames: int) -> int:
    """Whole audio frames within the time of so many video frames: floor(n / rate * audio rate)."""
    hop_s = fractions.Fraction(audio.hop, audio.sample_rate_hz)
    whole = math.floor(video_frames / fractions.Fraction(clip.rate_hz) / hop_s)
    return min(whole, audio.frames(clip.samples))


STREAM = Audio(name="audio", title="sound", base=True, setting="AUDIO_TOKENIZER.path set", levels=True, identifies=True)
