"""How a film is cut into clips of the model: each continues the last frames of the film so far.

A clip of t latent frames opens with c conditioning ones (1 + (c - 1) * factor frames) and adds t - c new ones, each
of `factor` frames.  VideoPoet's short clip at 8 Hz has 17 frames: 9 conditioning frames and 8 new ones.
"""

from __future__ import annotations

import dataclasses
import fractions
import math

from poet.spec import UserError
from poet.tasks.resolved import Resolved

# What a clip is given of the film before it: the last second (VideoPoet §3.4).
CONTEXT_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """The clips of a film.

    Attributes:
      latents: t, latent frames of a clip.
      context: c, conditioning latent frames of a clip.
      factor: frames of a latent frame but the first of a clip.
      rate_hz: frames a second.
      sample_rate_hz: of the sound.
      hop: samples of a frame of audio codes; 0 for a run without sound.
      audio_frames: frames of audio codes of a clip.
      known_audio: those within the time of 0, 1, 2, ... latent frames.
    """

    latents: int
    context: int
    factor: int
    rate_hz: float
    sample_rate_hz: int = 16000
    hop: int = 0
    audio_frames: int = 0
    known_audio: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.context < self.latents:
            raise UserError(
                f"context = {self.context} latent frames: a clip has {self.latents}, of which 1..{self.latents - 1} "
                "may be conditioning frames"
            )

    @classmethod
    def of(cls, resolved: Resolved, context: int = 0) -> Windows:
        """Those of a run.  `context` 0: those of the last second, with at least one new one in each clip."""
        fmt, clip = resolved.format, resolved.spec.clip
        factor = resolved.spec.video_tokenizer.factor[0]
        usual = min(1 + math.ceil(CONTEXT_S * clip.rate_hz / factor), fmt.video[0] - 1)
        return cls(
            latents=fmt.video[0],
            context=context or max(usual, 1),
            factor=factor,
            rate_hz=clip.rate_hz,
            sample_rate_hz=clip.sample_rate_hz,
            hop=resolved.spec.audio_tokenizer.hop if fmt.audio_frames else 0,
            audio_frames=fmt.audio_frames,
            known_audio=fmt.known_audio,
        )

    def frames_of(self, latents: int) -> int:
        """Frames of so many latent frames of a clip."""
        return 1 + (latents - 1) * self.factor if latents else 0

    def given_of(self, frames: int) -> int:
        """Conditioning latent frames of the clip after so many frames; 0 at the start."""
        return min(self.context, 1 + (frames - 1) // self.factor) if frames else 0

    @property
    def clip_frames(self) -> int:
        """Frames of a clip."""
        return self.frames_of(self.latents)

    def new_frames(self, given: int) -> int:
        """Frames that a clip with so many conditioning latent frames adds to the film."""
        return self.clip_frames - self.frames_of(given)

    def frames_in(self, seconds: float) -> int:
        """Frames of a film of so many seconds, at least one.

        Raises UserError unless the time is positive and finite.
        """
        if not 0 < seconds < math.inf:
            raise UserError(f"seconds = {seconds}: a film lasts a positive time")
        return max(round(fractions.Fraction(str(seconds)) * fractions.Fraction(self.rate_hz)), 1)

    def clips_for(self, frames: int, before: int = 0) -> int:
        """Clips that bring a film from `before` frames to at least `frames` of them."""
        count = 0
        while before < frames:
            before += self.new_frames(self.given_of(before))
            count += 1
        return count

    # ------------------------------------------------------------------------------------------ sound

    def sample_of(self, frame: int) -> int:
        """The sample at which a frame of the film begins."""
        return round(frame * fractions.Fraction(self.sample_rate_hz) / fractions.Fraction(self.rate_hz))

    @property
    def carries_sound(self) -> bool:
        """Whether a clip begins a whole number of frames of audio codes after the one before it."""
        shift = fractions.Fraction(self.new_frames(self.context)) / fractions.Fraction(self.rate_hz)
        return bool(self.hop) and (shift * self.sample_rate_hz / self.hop).denominator == 1
