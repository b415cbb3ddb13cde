"""What survives of conditions, by tokenizers whose losses can be counted by hand."""

from __future__ import annotations

import types

import numpy as np
import pytest

from poet.conditioning import structure
from poet.evaluation import metric, metrics
from poet.evaluation.video_tokenizers import condition_rows
from poet.spec import ConditioningSpec

SPEC = ConditioningSpec()
FACTOR = (4, 8, 8)
CLIPS = np.random.default_rng(0).integers(0, 256, (4, 9, 32, 32, 3), np.uint8)
DEPTHS = list(np.random.default_rng(1).random((4, 9, 16, 16)))
PAINTED = ("outpainting", "inpainting")


class Blocks:
    """A code is the red of a block's last frame's corner: its cell alone; with `bleeds` the whole frame's sum."""

    def __init__(self, bleeds: bool) -> None:
        self.bleeds, self.spec = bleeds, types.SimpleNamespace(factor=FACTOR)

    def encode(self, video):
        corners = video[:, ::4, ::8, ::8, 0].astype(np.int32)
        whole = video[:, ::4].astype(np.int64).sum((2, 3, 4), keepdims=True)[..., 0]
        return corners + 256 * whole if self.bleeds else corners

    def decode(self, ids):
        frames = np.repeat(ids, 4, axis=1)[:, 3:]
        pixels = np.repeat(np.repeat(frames, 8, axis=2), 8, axis=3) % 256
        return np.repeat(pixels[..., None], 3, axis=-1).astype(np.uint8)


def rows(bleeds: bool, depths=DEPTHS, names=()):
    return {row["condition"]: row for row in condition_rows(Blocks(bleeds), CLIPS, SPEC, depths, names)}


def test_given_cells_keep_their_codes_unless_the_tokenizer_looks_into_the_hole():
    apart, together = rows(bleeds=False), rows(bleeds=True)
    for name in PAINTED:
        assert apart[name]["given_codes_kept"] == 1
        assert together[name]["given_codes_kept"] == 0
        assert 0 < apart[name]["given_cells"] < 1
    # First and last of three latent frames, which hold nothing but given frames.
    assert together["interpolation"]["given_cells"] == pytest.approx(2 / 3)
    assert together["interpolation"]["given_codes_kept"] == 1
    assert apart["structure"]["given_codes_kept"] is None


def test_structure_needs_the_depth_of_every_clip():
    assert set(rows(False)) == {*PAINTED, "interpolation", "prediction", "structure"}
    assert "structure" not in rows(False, depths=()) and "structure" not in rows(False, depths=[*DEPTHS[:3], None])
    assert set(rows(False, names=PAINTED)) == set(PAINTED)


def test_what_is_read_back_is_measured_against_what_was_drawn():
    rng = np.random.default_rng(2)
    lightness = rng.uniform(structure.FAR, structure.NEAR, (2, 3, 8, 8))
    hues = rng.uniform(-structure.HUE, structure.HUE, (2, 3, 8, 8, 2))
    drawn = np.stack([structure.visualise(*parts) for parts in zip(lightness, hues)])

    def structure_errors(drawn: np.ndarray, rebuilt: np.ndarray) -> tuple[float | None, float | None]:
        fields = {"truth": drawn, "other": rebuilt, "flow_scale": 0.1}
        row = metric.columns(metric.measure(fields, metrics.select("conditions", ["flow_error", "depth_error"])[0]))
        return row["flow_error"], row["depth_error"]

    assert structure_errors(drawn, drawn) == (0, 0)
    grey = np.repeat(drawn.mean(-1, keepdims=True), 3, axis=-1)
    flow, depth = structure_errors(drawn, grey)
    assert flow == pytest.approx(1) and depth == pytest.approx(0, abs=1e-9)
    flat = np.full_like(drawn, drawn.mean(), dtype=np.float64)
    assert structure_errors(drawn, flat) == pytest.approx((1, 1), rel=0.01)
    assert structure_errors(flat, flat) == (None, None)
