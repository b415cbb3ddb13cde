"""A condition that is derived from the pixels of a clip: a clip of the same shape, which the video tokenizer codes."""

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
    """It stands in layouts where the clip itself would.

    Attributes:
      recipe: makes it of `poet.conditioning.Shown` and a `ConditioningSpec`: `poet.conditioning.Made`, or uint8
        (T, H, W, 3) where all of it is given; a function, or 'module:function'.
      rank: its place among those that tokenizer training draws from: part of what a seed means.
      masks: whether some of it may not be given.
      fields: of `CONDITIONING` that it depends on.
      version: raised when its output changes.
      learned: a model knows only the rendering that it was trained with; of the others it is given a part
        of the clip itself, and any part will do.
      moving: whether it needs more frames than one.
      region_is: what is done to its region: 'fills' or 'keeps'; '' for one that knows no regions.
      of_frames: whether it is given by whole frames, of whose numbers (`frames`) a caller chooses one.
      ends: whether frames are given at both ends of the clip.
      takes_depth: whether it is made of distances, too.
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
        """The regions that it may keep or hide; () for one that knows none."""
        return getattr(spec, self.name) if self.region_is else ()

    def frames(self, spec: ConditioningSpec, frames: int, factor: int) -> tuple[int, ...]:
        """How many frames it may be given, of clips of `frames`; () where all are."""
        return ()

    def usual_frames(self, spec: ConditioningSpec) -> int:
        """Those of `frames` that are given where nobody chooses."""
        return 1

    def needs_depth(self, spec: ConditioningSpec) -> bool:
        """Whether a clip must come with distances."""
        return False

    def check_depth(self, spec: ConditioningSpec) -> None:
        """Raises UserError where a model of these settings makes nothing of distances."""

    def check_clips(self, spec: ConditioningSpec, frames: int, *, has_depth: bool) -> None:
        """Raises UserError where it cannot be made of clips of so many frames, with distances or without."""

    def check(self, clip: ClipSpec, encoders: Encoders, *, has_depth: bool) -> None:
        check = reach("poet.conditioning:check")
        check(self.name, encoders.conditioning, clip.frames, has_depth=has_depth)

    def fingerprint(self, spec: ConditioningSpec, tokenizer: str) -> str:
        """Of its codes: the tokenizer's fingerprint and what shapes the condition."""
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
