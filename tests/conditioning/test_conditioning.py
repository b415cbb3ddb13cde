"""Conditions made from pixels: the regions of COMMIT by brute force, and structure from known motion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet import conditioning
from poet.conditioning import CONDITIONS, Choice, regions, structure
from poet.spec import ConditioningSpec, UserError

SPEC = ConditioningSpec()
FACTOR = (4, 8, 8)


def make(name: str, clip: np.ndarray, spec: ConditioningSpec = SPEC, **arguments) -> conditioning.Made:
    return conditioning.make(name, clip, spec, **({"factor": FACTOR} | arguments))


def compose(clip: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return structure.compose(clip, depth, SPEC, regions.latent_grid(clip.shape[:3], FACTOR))


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
        [[in_area(region, t, y, x, grid) for x in range(grid[2])] for y in range(grid[1])] for t in range(grid[0])
    ]
    np.testing.assert_array_equal(regions.area(region, grid), expected)


def test_the_edge_fills_a_hole_with_what_is_nearest():
    clip, hole = noise(t=2, h=9, w=11), np.zeros((2, 9, 11), bool)
    hole[0, 2:6, 3:9], hole[1] = True, True
    shown = regions.fill(clip, hole, "edge")
    places = np.argwhere(~hole[0])
    for y, x in np.argwhere(hole[0]):
        far = np.hypot(*(places - (y, x)).T)
        # OpenCV's distances are good to a few per cent: any of the nearest few will do.
        near = places[far <= far.min() * 1.1]
        assert any((shown[0, y, x] == clip[0, b, a]).all() for b, a in near)
    np.testing.assert_array_equal(shown[~hole], clip[~hole])
    assert (shown[1] == regions.GREY).all(), "nothing is kept of this frame"


@pytest.mark.parametrize("by, value", [("black", 0), ("grey", 128), ("mean", 30)])
def test_holes_are_filled_with_one_colour(by, value):
    clip = np.full((3, 8, 8, 3), 30, np.uint8)
    hole = regions.area("central", (3, 8, 8))
    shown = regions.fill(clip, hole, by)
    assert (shown[hole] == value).all() and (shown[~hole] == 30).all()


@given(data=st.data(), factor=st.sampled_from([(4, 8, 8), (2, 4, 2), (1, 3, 5)]))
@settings(deadline=None, max_examples=20)
def test_a_cell_is_given_if_nothing_of_it_is_filled(data, factor):
    t, h, w = (data.draw(st.integers(1, 3)) for _ in range(3))
    grid = (1 + (t - 1) * factor[0], h * factor[1], w * factor[2])
    seed, holes = data.draw(st.integers(0, 99)), data.draw(st.integers(0, 6))
    given_pixels, rng = np.ones(grid, bool), np.random.default_rng(seed)
    for _ in range(holes):
        given_pixels[tuple(rng.integers(0, grid))] = False
    expected = np.ones((t, h, w), bool)
    for frame, y, x in np.argwhere(~given_pixels):
        expected[-(-frame // factor[0]), y // factor[1], x // factor[2]] = False
    np.testing.assert_array_equal(regions.whole_cells(given_pixels, factor), expected)


@pytest.mark.parametrize("name", ["inpainting", "outpainting"])
def test_a_painted_clip_is_itself_where_its_cells_are_given(name):
    clip = noise(h=32, w=32)
    for key in range(8):
        made = make(name, clip, key=str(key))
        assert 0 < made.cells.sum() < made.cells.size
        for k, y, x in np.argwhere(made.cells):
            block = np.s_[max(4 * k - 3, 0) : 4 * k + 1, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            np.testing.assert_array_equal(made.video[block], clip[block])


def test_the_last_of_two_given_frames_fills_its_latent_frame():
    clip = noise(h=32, w=32)
    made = make("interpolation", clip)
    assert made.cells.all((1, 2)).tolist() == [True, False, False, False, True]
    np.testing.assert_array_equal(made.video[13:], clip[[16] * 4])
    np.testing.assert_array_equal(made.video[0], clip[0])
    more = make("interpolation", clip, chosen=Choice(frames=5)).cells.all((1, 2))
    assert more.tolist() == [True, True, False, True, True]


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
        made = make("prediction", clip, key=str(key))
        shown = made.video
        given_frames = 1 + max(t for t in range(16) if (shown[t] == clip[t]).all())
        assert (shown[given_frames:] == clip[given_frames - 1]).all()
        seen.add(given_frames)
        assert made.cells.all((1, 2)).sum() == made.cells.any((1, 2)).sum() == 1 + (given_frames - 1) // 4
    assert seen == {1, 5, 9}


@pytest.mark.parametrize("name", sorted(CONDITIONS))
def test_a_condition_is_a_clip_that_its_key_and_seed_determine(name):
    clip, depth = noise(h=32, w=32), noise(h=8, w=8)[..., 0]
    made = [make(name, clip, key=str(key), depth=depth).video for key in range(12)]
    again = make(name, clip.copy(), key="3", depth=depth).video
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
            "outpainting": ("central",),
            "inpainting": ("central",),
            "interpolation_frames": 2,
            "prediction_latents": 2,
            "flow_scale": 0.2,
            "depth": "flat",
            "seed": 1,
            "fill": "mean",
            "hide_cells": False,
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
    shown = compose(moving(dx, dy), np.zeros((5, 4, 4)))
    motion, _ = structure.read(shown, SPEC.flow_scale)
    inside = np.median(motion[1:, 8:-8, 8:-8].reshape(-1, 2), axis=0)
    np.testing.assert_allclose(inside, (dx, dy), atol=0.4)
    assert (shown[0] == shown[0, 0, 0]).all()  # nothing stands before the first frame


def test_motion_saturates_and_its_sign_is_kept():
    flow = np.zeros((1, 2, 40, 2), np.float32)
    flow[0, 0, :, 0], flow[0, 1, :, 1] = 100, -100
    channels = structure.motion_channels(flow, 0.1)
    assert (channels[1, 0, :, 0] == 1).all() and (channels[1, 1, :, 1] == -1).all()
    assert (channels[0] == 0).all()


@given(seed=st.integers(0, 99))
@settings(deadline=None, max_examples=10)
def test_lightness_and_hues_are_read_as_they_are_drawn(seed):
    rng = np.random.default_rng(seed)
    near, hues = rng.random((2, 4, 4)), rng.uniform(-1, 1, (2, 4, 4, 2))
    lightness = structure.FAR + (structure.NEAR - structure.FAR) * near
    motion, read = structure.read(structure.visualise(lightness, structure.HUE * hues), 0.1)
    np.testing.assert_allclose(read, near, atol=0.01)
    np.testing.assert_allclose(motion, np.sign(hues) * hues**2 * 0.4, atol=0.03)


@given(low=st.integers(0, 100), span=st.integers(1, 100))
@settings(deadline=None, max_examples=20)
def test_depth_is_bright_where_it_is_near_and_fills_the_range(low, span):
    depth = low + span * np.linspace(0, 1, 4 * 8 * 8).reshape(4, 8, 8)
    still = np.zeros((4, 64, 64, 3), np.uint8)
    shown = compose(still, depth)[..., 1]
    assert shown.shape == (4, 64, 64)
    assert shown[0, 0, 0] >= structure.NEAR - 5 and shown[-1, -1, -1] <= structure.FAR + 5
    assert (np.diff(shown[:, :, 32].mean(1)) < 0).all()
    flat = compose(still, np.full((4, 8, 8), low))
    assert (flat == (structure.FAR + structure.NEAR) / 2).all()


def test_clips_without_depth_are_refused_unless_the_user_goes_without():
    with pytest.raises(UserError, match="without depth.*CONDITIONING.depth.*'flat'"):
        make("structure", noise(), key="a")
    with pytest.raises(UserError, match="without depth"):
        conditioning.check("structure", SPEC, 17, has_depth=False)
    flat = make("structure", np.zeros((5, 16, 24, 3), np.uint8), SPEC.replace(depth="flat"), key="a").video
    assert (flat == 128).all()


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
