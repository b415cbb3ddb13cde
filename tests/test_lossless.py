"""Films that are kept as they are: frames, times, shapes of pixels and sound come back as they were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from poet import media
from poet.media.film import open_film
from poet.media.lossless import TimedFrame, write_mov

STEPS = st.lists(st.integers(900, 20_000), min_size=1, max_size=5)


@settings(max_examples=10, deadline=None)
@given(STEPS, st.sampled_from([1.0, 0.75, 1.5]), st.integers(0, 2**32 - 1))
def test_a_film_comes_back(steps, aspect, seed):
    """Frames at any times, in steps of 1/90,000 s."""
    rng = np.random.default_rng(seed)
    times = np.cumsum([0, *steps[:-1]]) / 90_000
    frames = rng.integers(0, 256, (len(steps), 6, 10, 3), np.uint8)
    sound = rng.integers(-3000, 3000, 8000).astype(np.int16)
    given_ = [TimedFrame(f, t, s / 90_000, aspect) for f, t, s in zip(frames, times, steps)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.mov"
        seconds = write_mov(file, given_, sound, 8000)
        assert abs(seconds - sum(steps) / 90_000) < 1e-9
        with open_film(file) as film:
            found = [(frame.pixels(), frame.time_s, frame.aspect) for frame in film.frames]
        heard = media.read_track(file, 8000, round(seconds * 8000), 0.0)
    for (pixels, time_s, shape), frame, expected in zip(found, frames, times, strict=True):
        np.testing.assert_array_equal(pixels, frame)
        assert abs(time_s - expected) < 1e-9 and abs(shape - aspect) < 1e-3
    if round(seconds * 8000):
        np.testing.assert_array_equal(heard, sound[: round(seconds * 8000)])
