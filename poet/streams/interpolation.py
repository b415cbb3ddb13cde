"""The first and the last frames of a clip, with a linear blend between them (COMMIT)."""

from __future__ import annotations

import dataclasses

from poet.spec import ConditioningSpec, UserError
from poet.streams.derived import Derived


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolation(Derived):
    """It has frames at each end, with at least one frame between them."""

    def frames(self, spec: ConditioningSpec, frames: int, factor: int) -> tuple[int, ...]:
        return tuple(range(1, (frames - 1) // 2 + 1))

    def usual_frames(self, spec: ConditioningSpec) -> int:
        return spec.interpolation_frames

    def check_clips(self, spec: ConditioningSpec, frames: int, *, has_depth: bool) -> None:
        if not 2 * spec.interpolation_frames < frames:
            raise UserError(
                f"CONDITIONING.interpolation_frames = {spec.interpolation_frames} at both ends leave "
                f"nothing between them in clips of {frames} frames"
            )


STREAM = Interpolation(
    name="interpolation",
    title="both ends",
    stored="interpolation",
    rank=2,
    version=2,
    of_frames=True,
    ends=True,
    recipe="poet.conditioning.recipes:interpolation",
    fields=("interpolation_frames", "hide_cells"),
)
