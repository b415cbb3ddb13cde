"""Masks of a user's own, and what is kept of the given clip."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from PIL import Image

from poet import conditioning, media
from poet.conditioning import regions
from poet.sampling.masks import read_masks
from poet.spec import ClipSpec, UserError

CLIP = ClipSpec(frames=5, height=16, width=16)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A clip of 32x24 pixels, of which fitting keeps the columns 4 to 28 in 2/3 of their size."""
    path = tmp_path_factory.mktemp("masks") / "wide.mp4"
    media.write_mp4(path, np.random.default_rng(0).integers(0, 256, (9, 24, 32, 3), np.uint8), 8)
    return str(path)


def test_a_box_lies_where_the_fitted_clip_shows_it(wide):
    mask = read_masks(["10,3,22,12"], [wide], CLIP)
    expected = np.zeros((5, 16, 16), bool)
    expected[:, 2:8, 4:12] = True
    np.testing.assert_array_equal(mask, expected[None])


def test_a_box_that_moves_is_at_both_its_places_and_between(wide):
    (mask,) = read_masks(["4,0,16,12:16,12,28,24"], [wide], CLIP)
    corners = [(np.flatnonzero(frame.any(1))[0], np.flatnonzero(frame.any(0))[0]) for frame in mask]
    assert corners == [(0, 0), (2, 2), (4, 4), (6, 6), (8, 8)]


def test_pictures_and_videos_mark_in_white_and_are_fitted_as_the_clip_is(wide, tmp_path):
    marked = np.zeros((24, 32, 3), np.uint8)
    marked[3:12, 10:22] = 255
    Image.fromarray(marked).save(tmp_path / "mask.png")
    media.write_mp4(tmp_path / "mask.mp4", np.stack([marked] * 3), 8)
    expected = read_masks(["10,3,22,12"], [wide], CLIP)
    for name in ("mask.png", "mask.mp4"):
        found = read_masks([str(tmp_path / name)], [wide], CLIP)
        assert found.shape == expected.shape and (found != expected).mean() < 0.03, name


@pytest.mark.parametrize(
    "mask, message",
    [
        ("0,0,33,9", "must lie in the clip's 32x24"),
        ("5,5,5,9", "x0 < x1"),
        ("0,0,3,24", "marks no pixel"),
        ("0,0,32,24", "marks everything"),
        ("nowhere.png", "no such file.*a box"),
    ],
)
def test_masks_that_leave_nothing_to_do_are_refused(wide, mask, message):
    with pytest.raises(UserError, match=message):
        read_masks([mask], [wide], CLIP)


@pytest.mark.parametrize("task", ["inpainting", "outpainting"])
def test_a_mask_makes_the_condition_that_its_region_makes(task):
    experiment = tiny.EXPERIMENT
    video = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), np.uint8)
    factor = experiment.video_tokenizer.factor
    mine = conditioning.Choice(mask=regions.area("top_left", video.shape[:3]))
    first, second = (
        conditioning.make(task, video, experiment.conditioning, factor=factor, chosen=chosen)
        for chosen in (mine, conditioning.Choice(region="top_left"))
    )
    np.testing.assert_array_equal(first.video, second.video)
    np.testing.assert_array_equal(first.cells, second.cells)
    assert first.cells.any() and not first.cells.all()


def test_given_pixels_are_kept_bit_by_bit_and_the_edge_has_no_step():
    given = np.full((2, 32, 32, 3), 200, np.uint8)
    sampled = np.full((2, 32, 32, 3), 100, np.uint8)
    hole = np.zeros((2, 32, 32), bool)
    hole[:, 8:24, 8:24] = True
    hidden = given.copy()
    hidden[hole] = 7
    out = regions.keep(sampled, hidden, hole)
    np.testing.assert_array_equal(out[~hole], given[~hole])
    assert (out[:, 14:18, 14:18] == 100).all(), "what is far inside is as it was sampled"
    row = out[0, 16, :, 0].astype(int)
    assert np.abs(np.diff(row)).max() <= 30 and 7 not in row
