"""The first frames of a clip, the last of them repeated (COMMIT)."""

from __future__ import annotations

import dataclasses

from poet.spec import ConditioningSpec
from poet.streams.derived import Derived


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction(Derived):
    """Its frames fill whole latent frames, at least one."""

    def frames(self, spec: ConditioningSpec, frames: int, factor: int) -> tuple[int, ...]:
        latents = max(min(spec.prediction_latents, (frames - 1) // factor), 1)
        return tuple(1 + n * factor for n in range(latents))


STREAM = Prediction(
    name="prediction",
    title="first frames",
    stored="prediction",
    rank=3,
    version=2,
    shows_latents=1,
    of_frames=True,
    recipe="poet.conditioning.recipes:prediction",
    fields=("prediction_latents", "hide_cells", "seed"),
)
