"""A condition derived from the pixels of a clip: a clip of the same shape, encoded by the video tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from poet.spec import ClipSpec, ConditioningSpec, VocabularySpec
from poet.streams.base import Encoders, Format, StreamInfo, reach
from poet.streams.video import Visual


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived(Visual):
    """It takes the place of the clip in layouts.

    Attributes:
      recipe: function, or 'module:function', of `poet.conditioning.Source` and a `ConditioningSpec`; returns
        `poet.conditioning.Made`, or uint8 (T, H, W, 3) if all of it is visible.
      rank: its position in the list from which tokenizer training samples; seeds depend on it.
      masks: whether parts of it may be hidden.
      fields: of `CONDITIONING` that it depends on.
      version: raised when its output changes.
      learned: whether a model accepts only the rendering that it was trained with; any part of the clip will do
        for the others.
      moving: whether it needs more than one frame.
      region_is: whether its task 'fills' or 'keeps' the region; '' if it has no regions.
      of_frames: whether it consists of whole frames, whose number (`frames`) the caller chooses.
      ends: whether it has frames at both ends of the clip.
      takes_depth: whether it uses depth.
    """

    slot: str = "video"
    recipe: str | Callable[[Any, ConditioningSpec], Any]
    rank: int = 100
    fields: tuple[str, ...]
    version: int = 1
    learned: bool = False
    masks: bool = True
    moving: bool = True
    region_is: str = ""
    of_frames: bool = False
    ends: bool = False
    takes_depth: bool = False

    def regions(self, spec: ConditioningSpec) -> tuple[str, ...]:
        """The regions that it may keep or hide; () if it has none."""
        return getattr(spec, self.name) if self.region_is else ()

    def frames(self, spec: ConditioningSpec, frames: int, factor: int) -> tuple[int, ...]:
        """The possible numbers of conditioning frames, for clips of `frames`; () if all are used."""
        return ()

    def usual_frames(self, spec: ConditioningSpec) -> int:
        """The default number of conditioning frames."""
        return 1

    def needs_depth(self, spec: ConditioningSpec) -> bool:
        """Whether a clip must have depth."""
        return False

    def check_depth(self, spec: ConditioningSpec) -> None:
        """Raises UserError if a model of these settings does not use depth."""

    def check_clips(self, spec: ConditioningSpec, frames: int, *, has_depth: bool) -> None:
        """Raises UserError if it cannot be made from clips of so many frames, with depth or without."""

    def check(self, clip: ClipSpec, encoders: Encoders, *, has_depth: bool) -> None:
        check = reach("poet.conditioning:check")
        check(self.name, encoders.conditioning, clip.frames, has_depth=has_depth)

    def fingerprint(self, spec: ConditioningSpec, tokenizer: str) -> str:
        """The fingerprint of its codes: of the tokenizer and the settings of the condition."""
        return reach("poet.conditioning:fingerprint")(self.name, spec, tokenizer)

    def info(self, clip: ClipSpec, encoders: Encoders) -> StreamInfo:
        info = super().info(clip, encoders)
        return info.replace(fingerprint=self.fingerprint(encoders.conditioning, info.fingerprint))

    def expected(
        self, fmt: Format, vocabulary: VocabularySpec, conditioning: ConditioningSpec, fingerprints: Mapping[str, str]
    ) -> dict[str, Any]:
        tokenizer = fingerprints.get(self.network)
        return {"fingerprint": tokenizer and self.fingerprint(conditioning, tokenizer)}

    def read(self, raw: Any, clip: ClipSpec, encoders: Encoders) -> Any:
        """`poet.conditioning.Made` of a clip."""
        return reach("poet.conditioning:make")(
            self.name,
            raw.video,
            encoders.conditioning,
            key=raw.key,
            depth=raw.depth,
            factor=encoders.networks[self.network].spec.factor,
        )

    def tokenize(self, items: Sequence[Any], info: StreamInfo, encoders: Encoders) -> np.ndarray:
        codes_BxN = super().tokenize([made.video for made in items], info, encoders)
        cells_BxN = np.stack([made.cells for made in items]).reshape(codes_BxN.shape)
        return reach("poet.conditioning:hide_codes")(codes_BxN, cells_BxN, encoders.conditioning)
