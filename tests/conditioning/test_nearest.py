"""The nearest kept pixels without OpenCV are those with it, and what needs it says so."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from poet import conditioning
from poet.conditioning import nearest as module
from poet.conditioning import regions
from poet.conditioning.nearest import nearest
from poet.spec import ConditioningSpec, UserError

MASKS = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=17).flatmap(
    lambda shape: arrays.arrays(bool, shape, elements=st.sampled_from([True, True, True, False]))
)


@pytest.fixture
def without_opencv(monkeypatch):
    imported = builtins.__import__

    def refuse(name, *others):
        if name == "cv2":
            raise ImportError(name)
        return imported(name, *others)

    return lambda: monkeypatch.setattr(builtins, "__import__", refuse)


@given(MASKS)
@settings(max_examples=60, deadline=None)
def test_any_mask_has_the_same_nearest_pixels(covered):
    assume(not covered.all())
    alone = np.reshape(module._by_two_passes(covered.tobytes(), covered.shape), covered.shape)
    np.testing.assert_array_equal(alone, nearest(covered))


def test_holes_are_filled_the_same_without_opencv(without_opencv):
    video = np.random.default_rng(0).integers(0, 256, (3, 24, 20, 3), np.uint8)
    hole = regions.area("dynamic_central", video.shape[:3])
    with_it = regions.fill(video, hole, "edge")
    without_opencv()
    np.testing.assert_array_equal(regions.fill(video, hole, "edge"), with_it)
    assert (with_it[~hole] == video[~hole]).all() and (with_it != video).any()


def test_flow_needs_opencv_and_says_so_before_any_clip_is_read(without_opencv):
    without_opencv()
    with pytest.raises(UserError, match="the flow of a clip needs OpenCV: pip install opencv-python-headless"):
        conditioning.check("structure", ConditioningSpec(depth="flat"), 5, has_depth=False)
    conditioning.check("inpainting", ConditioningSpec(), 5, has_depth=False)
