"""A clip with a hole, filled in (COMMIT)."""

from __future__ import annotations

from poet.streams.derived import Derived

STREAM = Derived(
    name="inpainting",
    title="clip with a hole",
    stored="inpainting",
    rank=1,
    region_is="fills",
    moving=False,
    recipe="poet.conditioning.recipes:inpainting",
    fields=("inpainting", "fill", "hide_cells", "seed"),
)
