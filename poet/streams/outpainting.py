"""A clip of which a region is given, the rest filled in (COMMIT)."""

from __future__ import annotations

from poet.streams.derived import Derived

STREAM = Derived(
    name="outpainting",
    title="part of a clip",
    stored="outpainting",
    rank=0,
    region_is="keeps",
    moving=False,
    recipe="poet.conditioning.recipes:outpainting",
    fields=("outpainting", "fill", "hide_cells", "seed"),
)
