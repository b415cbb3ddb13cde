"""The small clip inside the large one: exact, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet import media
from poet.sampling import projection

SIDES = st.integers(6, 40)


def _clip(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(70, 180, (2, height, width, 3)).astype(np.uint8)


@settings(deadline=None)
@given(SIDES, SIDES)
def test_the_reduction_is_the_filter_of_the_library(height, width):
    clip = _clip(0, 2 * height, 2 * width)
    vertical, horizontal = projection.reduction(2 * height, height), projection.reduction(2 * width, width)
    ours = np.einsum("ah,thwc,bw->tabc", vertical, clip.astype(float), horizontal)
    assert np.abs(ours - media.resize_video(clip, height, width)).max() <= 1.01  # It rounds after either side.


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(0, 9))
def test_the_result_is_the_small_clip_again(height, width, seed):
    made, small = _clip(seed, 2 * height, 2 * width), _clip(seed + 10, height, width)
    found = projection.projected(made, small)
    inside = ((found > 0) & (found < 255)).all()
    again = media.resize_video(found, height, width).astype(int)
    assert not inside or np.abs(again - small).max() <= 2


def test_a_clip_that_is_the_small_one_already_stays_as_it_is():
    made = _clip(1, 32, 48)
    small = media.resize_video(made, 16, 24)
    assert np.abs(projection.projected(made, small).astype(int) - made).max() <= 2


def test_no_other_clip_with_that_small_one_is_nearer():
    """Against moves that resizing does not see: the distance to `made` grows along each."""
    made, small = _clip(2, 16, 16), _clip(3, 8, 8)
    matrix = projection.reduction(16, 8)
    found = made + np.einsum(
        "ha,tabc,wb->thwc",
        projection.expansion(16, 8),
        small - np.einsum("ah,thwc,bw->tabc", matrix, made.astype(float), matrix),
        projection.expansion(16, 8),
    )
    _, _, rows = np.linalg.svd(matrix)
    unseen = rows[8:]  # Lines that the reduction takes to 0.
    for line in unseen:
        move = np.broadcast_to(line[:, None, None], (16, 16, 3))
        assert abs(((found - made) * move).sum()) < 1e-6 * np.abs(found - made).sum()


def test_no_detail_is_the_small_clip_resized():
    made, small = _clip(6, 24, 32), _clip(7, 12, 16)
    resized = media.resize_video(small, 24, 32).astype(int)
    assert np.abs(projection.projected(made, small, detail=0.0) - resized).max() <= 1
    half = projection.projected(made, small, detail=0.5).astype(float)
    whole = projection.projected(made, small).astype(float)
    inside = (whole > 0) & (whole < 255)
    assert np.abs(half - (whole + resized) / 2)[inside].max() <= 1


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_a_fraction_goes_part_of_the_way(fraction):
    made, small = _clip(4, 24, 24), _clip(5, 12, 12)
    whole = projection.projected(made, small).astype(float)
    part = projection.projected(made, small, fraction).astype(float)
    inside = (whole > 0) & (whole < 255)
    assert np.abs(part - ((1 - fraction) * made + fraction * whole))[inside].max() <= 1
