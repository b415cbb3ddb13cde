"""The motion and depth of a clip, visualised as a clip."""

from __future__ import annotations

import dataclasses

from poet.spec import ConditioningSpec, UserError
from poet.streams.derived import Derived

# What a clip lacks, and what else may be done; the sentence begins with who comes without it.
NO_DEPTH = (
    "without depth, which stylization takes: set CONDITIONING.depth to the ONNX file "
    "of a depth network (MiDaS, Depth-Anything), or to 'flat' to go without"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure(Derived):
    """It may need distances, which not every source has."""

    def needs_depth(self, spec: ConditioningSpec) -> bool:
        return spec.depth == "dataset"

    def check_depth(self, spec: ConditioningSpec) -> None:
        if spec.depth == "flat":
            raise UserError(
                "the model uses no depth: CONDITIONING.depth is 'flat'; drop the depth, or use a model "
                "that was trained with it"
            )

    def check_clips(self, spec: ConditioningSpec, frames: int, *, has_depth: bool) -> None:
        if self.needs_depth(spec) and not has_depth:
            raise UserError(f"the source's clips come {NO_DEPTH}")


STREAM = Structure(
    name="structure",
    title="flow and depth",
    stored="structure",
    rank=4,
    version=2,
    learned=True,
    masks=False,
    takes_depth=True,
    recipe="poet.conditioning.recipes:structure",
    fields=("flow", "flow_scale", "depth"),
)
