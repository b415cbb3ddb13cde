"""Frames mixed along the motion of the small clip: less noise where it is known, nothing where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from poet import media
from poet.sampling import projection, steadying

FRAMES, SIDE = 12, 64


def scene(step: int, seed: int = 0) -> np.ndarray:
    """uint8 [T, 64, 64, 3]: a smooth texture that moves by `step` pixels a frame."""
    wide = SIDE + FRAMES * step
    noise = np.random.default_rng(seed).integers(0, 256, (8, wide // 8, 3)).astype(np.uint8)
    texture = media.resize_image(noise, SIDE, wide)
    return np.stack([texture[:, step * t : step * t + SIDE] for t in range(FRAMES)])


def noisy(clip: np.ndarray) -> np.ndarray:
    return projection.pixels(clip + np.random.default_rng(1).normal(0, 10, clip.shape))


def small(clip: np.ndarray) -> np.ndarray:
    return media.resize_video(clip, SIDE // 2, SIDE // 2)


def error(made: np.ndarray, clip: np.ndarray) -> float:
    """Levels of the last frame, without its edges, of which motion brings in some."""
    inside = slice(12, -12)
    return float(np.abs(made[-1].astype(float) - clip[-1])[inside, inside].mean())


@pytest.mark.parametrize("step", [0, 2])
def test_what_is_made_up_anew_in_each_frame_is_averaged_along_the_motion(step):
    clip = scene(step)
    made = noisy(clip)
    assert error(steadying.steadied(made, small(clip), 0.9), clip) < 0.5 * error(made, clip)
    assert error(steadying.steadied(made, small(clip), 0.0, 0.0), clip) == error(made, clip)


def test_a_frame_depends_on_none_after_it():
    made = noisy(scene(2))
    whole = steadying.steadied(made, small(scene(2)), 0.9)
    for count in (1, 7):
        np.testing.assert_array_equal(steadying.steadied(made[:count], small(scene(2))[:count], 0.9), whole[:count])


def test_after_a_cut_nothing_is_left_of_what_was_before():
    """The frames are those of the second scene alone, but that its first one is corrected."""
    clip = np.concatenate([np.zeros_like(scene(0)), 55 + scene(1) // 2])
    made = noisy(clip)
    found = steadying.steadied(made, small(clip), 0.9)[FRAMES]
    wanted = projection.projected(made[FRAMES:][:1], small(clip)[FRAMES:][:1], steadying.RETURN)[0]
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_the_result_stays_near_the_small_clip():
    """Noise that resizing keeps is taken back too."""
    clip = scene(2)
    before, after = (small(made) for made in (noisy(clip), steadying.steadied(noisy(clip), small(clip), 0.9)))
    distances = [np.abs(one[1:].astype(float) - small(clip)[1:]).mean() for one in (before, after)]
    assert distances[1] < 0.4 * distances[0]
