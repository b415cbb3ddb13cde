"""Conditions made from pixels: the regions of COMMIT by brute force, and structure from known motion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet import conditioning
from poet.conditioning import CONDITIONS, regions, structure
from poet.specs import ConditioningSpec, UserError

SPEC = ConditioningSpec()


def noise(t: int = 17, h: int = 16, w: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (t, h, w, 3), np.uint8)


def in_area(region: str, t: int, y: int, x: int, grid: tuple[int, int, int]) -> bool:
    """Spec §2.6, pixel by pixel."""
    frames, height, width = grid
    middle_y = height // 4 <= y < height * 3 // 4
    middle_x = width // 4 <= x < width * 3 // 4
    start = round(width // 2 * t / max(frames - 1, 1))
    moving = start <= x < start + width // 2
    return {
        "horizontal": middle_y,
        "vertical": middle_x,
        "central": middle_y and middle_x,
        "top_left": y < height // 2 and x < width // 2,
        "dynamic_vertical": moving,
        "dynamic_central": moving and middle_y,
    }[region]


@pytest.mark.parametrize("region", sorted({*SPEC.outpainting, *SPEC.inpainting}))
@pytest.mark.parametrize("grid", [(17, 16, 24), (5, 16, 16), (5, 28, 16)])
def test_areas_are_those_of_the_paper_on_pixels_and_on_latents(region, grid):
    expected = [
        [[in_area(region, t, y, x, grid) for x in range(grid[2])] for y in range(grid[1])]
        for t in range(grid[0])
    ]
    np.testing.assert_array_equal(regions.area(region, grid), expected)


@pytest.mark.parametrize("region", SPEC.outpainting)
def test_outpainting_keeps_its_area_and_repeats_the_edge_around_it(region):
    clip = noise()
    kept, shown = regions.area(region, clip.shape[:3]), regions.outpaint(clip, region)
    np.testing.assert_array_equal(shown[kept], clip[kept])
    if region.startswith("dynamic"):
        assert not shown[~kept].any()
        return
    frame = kept[0]
    places = np.argwhere(frame)
    for y, x in np.argwhere(~frame):
        nearest = places[np.abs(places - (y, x)).sum(1).argmin()]
        np.testing.assert_array_equal(shown[:, y, x], clip[:, nearest[0], nearest[1]])


@pytest.mark.parametrize("region", SPEC.inpainting)
def test_inpainting_hides_its_area_alone(region):
    clip = noise() // 2 + 1
    hidden, shown = regions.area(region, clip.shape[:3]), regions.inpaint(clip, region)
    assert hidden.any() and not shown[hidden].any()
    np.testing.assert_array_equal(shown[~hidden], clip[~hidden])
    np.testing.assert_array_equal(regions.hide(clip, hidden), shown)


@given(frames=st.integers(1, 8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_interpolation_keeps_both_ends_and_blends_between_them(frames, seed):
    clip = noise(seed=seed)
    shown = regions.interpolate(clip, frames).astype(np.float64)
    np.testing.assert_array_equal(shown[:frames], clip[:frames])
    np.testing.assert_array_equal(shown[-frames:], clip[-frames:])
    inner = shown[frames - 1 : len(clip) - frames + 1]
    steps = np.diff(inner, axis=0)
    mean = (inner[-1] - inner[0]) / len(steps)
    assert np.abs(steps - mean).max() <= 1  # equal steps, but for rounding


def test_prediction_holds_the_last_given_frame_and_gives_whole_latents():
    clip, seen = noise(), set()
    for key in range(40):
        shown = conditioning.make("prediction", clip, SPEC, key=str(key))
        given_frames = 1 + max(t for t in range(16) if (shown[t] == clip[t]).all())
        assert (shown[given_frames:] == clip[given_frames - 1]).all()
        seen.add(given_frames)
    assert seen == {1, 5, 9}


@pytest.mark.parametrize("name", sorted(CONDITIONS))
def test_a_condition_is_a_clip_that_its_key_and_seed_determine(name):
    clip, depth = noise(h=32, w=32), noise(h=8, w=8)[..., 0]
    made = [
        conditioning.make(name, clip, SPEC, key=str(key), depth=depth) for key in range(12)
    ]
    again = conditioning.make(name, clip.copy(), SPEC, key="3", depth=depth)
    np.testing.assert_array_equal(made[3], again)
    assert all(m.dtype == np.uint8 and m.shape == clip.shape for m in made)
    assert not (made[0] == clip).all()
    draws = len({m.tobytes() for m in made})
    expected = {"outpainting": 5, "inpainting": 3, "prediction": 3}.get(name, 1)
    assert draws == expected


def test_a_stream_is_named_after_all_that_shapes_it_and_nothing_else():
    for name, condition in CONDITIONS.items():
        base = conditioning.fingerprint(name, SPEC, "tokenizer")
        assert base != conditioning.fingerprint(name, SPEC, "another")
        changed = {
            "outpainting": ("central",), "inpainting": ("central",), "interpolation_frames": 2,
            "prediction_latents": 2, "flow_scale": 0.2, "depth": "flat", "seed": 1,
        }
        for field, value in changed.items():
            other = conditioning.fingerprint(name, SPEC.replace(**{field: value}), "tokenizer")
            assert (other != base) == (field in condition.fields)


# ------------------------------------------------------------------------------------- structure


def moving(dx: int, dy: int) -> np.ndarray:
    """A soft random texture that moves by (dx, dy) pixels a frame."""
    import cv2

    texture = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(texture, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    frames = [np.roll(texture, (dy * t, dx * t), (0, 1))[32:96, 32:96] for t in range(5)]
    return np.repeat(np.stack(frames)[..., None], 3, -1)


@pytest.mark.parametrize("dx, dy", [(2, 0), (0, -3), (-1, 2)])
def test_the_flow_of_a_moving_texture_is_its_motion(dx, dy):
    shown = structure.compose(moving(dx, dy), np.zeros((5, 4, 4)), SPEC)
    inside = np.median(shown[1:, 8:-8, 8:-8].reshape(-1, 3), axis=0)
    expected = [128 + 127 * d / (0.1 * 64) for d in (dx, dy)]
    np.testing.assert_allclose(inside[:2], expected, atol=6)
    assert (shown[0, ..., :2] == 128).all()  # nothing stands before the first frame


def test_motion_saturates_and_its_sign_is_kept():
    flow = np.zeros((1, 2, 40, 2), np.float32)
    flow[0, 0, :, 0], flow[0, 1, :, 1] = 100, -100
    channels = structure.motion_channels(flow, 0.1)
    assert (channels[1, 0, :, 0] == 255).all() and (channels[1, 1, :, 1] == 1).all()
    assert (channels[0] == 128).all()


@given(low=st.integers(0, 100), span=st.integers(1, 100))
@settings(deadline=None, max_examples=20)
def test_depth_is_bright_where_it_is_near_and_fills_the_range(low, span):
    depth = low + span * np.linspace(0, 1, 4 * 8 * 8).reshape(4, 8, 8)
    shown = structure.compose(noise(t=4, h=32, w=32), depth, SPEC)[..., 2]
    assert shown.shape == (4, 32, 32) and shown[0, 0, 0] == 255 and shown[-1, -1, -1] == 0
    assert (np.diff(shown[:, ::4, ::4].reshape(-1).astype(int)) <= 0).all()
    flat = structure.compose(noise(t=4, h=32, w=32), np.full((4, 8, 8), low), SPEC)[..., 2]
    assert (flat == 128).all()


def test_clips_without_depth_are_refused_unless_the_user_goes_without():
    with pytest.raises(UserError, match="without depth.*CONDITIONING.depth.*'flat'"):
        conditioning.make("structure", noise(), SPEC, key="a")
    with pytest.raises(UserError, match="without depth"):
        conditioning.check("structure", SPEC, 17, has_depth=False)
    flat = conditioning.make("structure", noise(), SPEC.replace(depth="flat"), key="a")
    assert (flat[..., 2] == 128).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"outpainting": ("centre",)}, "outpainting.*central"),
        ({"inpainting": ()}, "inpainting"),
        ({"inpainting": ("horizontal",)}, "inpainting.*dynamic_central"),
        ({"flow": ""}, "flow.*'dis' or an ONNX file"),
        ({"depth": "dis"}, "depth.*'dataset'"),
        ({"interpolation_frames": 0}, "interpolation_frames"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        SPEC.replace(**changes)


def test_requests_that_cannot_be_met_are_refused_before_a_clip_is_read(tmp_path):
    with pytest.raises(UserError, match="unknown condition 'inpaintin'.*inpainting"):
        conditioning.check("inpaintin", SPEC, 17, has_depth=True)
    with pytest.raises(UserError, match="interpolation_frames = 3.*5 frames"):
        conditioning.check("interpolation", SPEC.replace(interpolation_frames=3), 5, has_depth=True)
    missing = SPEC.replace(depth=str(tmp_path / "midas.onnx"))
    with pytest.raises(UserError, match="midas.onnx cannot be read"):
        conditioning.check("structure", missing, 17, has_depth=False)
