"""Pictures come latent frame by latent frame, and are those of the whole clip."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from poet.spec import SampleSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(SampleSpec(temperature=1.5))


@pytest.mark.parametrize("task, frames", [("unconditional", [1, 2, 2]), ("frame_prediction", [3, 2])])
def test_frames_join_to_the_clips_without_a_seam(generator, task, frames):
    request = {"media": {"video": PIXELS[:2]}, "conditioning_frames": 1} if task == "frame_prediction" else {"count": 2}
    expected = generator.generate(task, **request).video
    sampling, heard = generator.start(task, **request), []
    for progress in sampling:
        assert progress.rows.tolist() == [0, 1]
        heard.append(sampling.frames(progress))
    assert [part.shape[1] for part in heard] == frames
    np.testing.assert_array_equal(np.concatenate(heard, axis=1), expected)
    again = generator.start(task, **request)
    np.testing.assert_array_equal(again.frames(next(again)), heard[0])
