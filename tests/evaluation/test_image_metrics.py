"""PSNR and SSIM agree with scikit-image and with what can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import metrics as skimage_metrics

from poet.evaluation.intervals import ratio_and_error
from poet.evaluation.metrics import pixels as image_metrics


def _clips(seed: int, shape: tuple[int, ...], noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A clip with smooth structure and the same clip with noise, uint8."""
    rng = np.random.default_rng(seed)
    height, width = shape[-3:-1]
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin((x * (c + 1) + y * 2) / 7) for c in range(3)], -1)
    clean = np.broadcast_to(127 + 90 * waves, shape)
    noisy = clean + rng.normal(0, noise, shape)
    return clean.astype(np.uint8), np.clip(noisy, 0, 255).astype(np.uint8)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), height=st.integers(11, 40), width=st.integers(11, 40), noise=st.floats(1, 120))
def test_per_frame_values_equal_scikit_image(seed, height, width, noise):
    truth, other = _clips(seed, (2, height, width, 3), noise)
    for frame in range(2):
        pair = truth[frame], other[frame]
        want_psnr = skimage_metrics.peak_signal_noise_ratio(*pair, data_range=255)
        want_ssim = skimage_metrics.structural_similarity(
            *pair, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert image_metrics.psnr(truth, other)[frame] == pytest.approx(want_psnr, abs=1e-9)
        assert image_metrics.ssim(truth, other)[frame] == pytest.approx(want_ssim, abs=1e-9)


def test_psnr_of_a_constant_offset_is_the_closed_form():
    truth = np.full((3, 16, 16, 3), 100, np.uint8)
    np.testing.assert_allclose(image_metrics.psnr(truth, truth + 5), np.full(3, 20 * math.log10(255 / 5)))


def test_ssim_of_flat_frames_is_the_luminance_term():
    x, y = 100.0, 150.0
    c1 = (0.01 * 255) ** 2
    want = (2 * x * y + c1) / (x**2 + y**2 + c1)
    frames = [np.full((1, 12, 12, 3), v, np.uint8) for v in (x, y)]
    assert image_metrics.ssim(*frames)[0] == pytest.approx(want, abs=1e-9)


def test_equal_frames_are_infinite_but_a_clip_mean_stays_finite():
    truth, other = _clips(0, (4, 16, 16, 3), 30)
    other[1] = truth[1]
    assert np.isinf(image_metrics.psnr(truth, other)[1])
    rest = image_metrics.psnr(truth, other)[[0, 2, 3]]
    want = (rest.sum() + 10 * math.log10(255**2 * 12)) / 4
    assert image_metrics.clip_psnr(truth, other) == pytest.approx(want)
    assert image_metrics.clip_psnr(truth, truth) == image_metrics.PSNR_CEILING_DB
    assert image_metrics.clip_ssim(truth, truth) == pytest.approx(1.0)


def test_mean_and_error_of_independent_values():
    mean, error = ratio_and_error(np.array([1.0, 2.0, 6.0]), np.ones(3))
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(7 / 3))
    assert ratio_and_error(np.array([4.0]), np.ones(1)) == (4.0, None)


@pytest.mark.parametrize(
    "truth, other",
    [
        (np.zeros((12, 12, 3), np.uint8), np.zeros((12, 13, 3), np.uint8)),
        (np.zeros((12, 12, 3), np.uint8), np.zeros((12, 12, 3), np.float32)),
    ],
)
def test_what_cannot_be_compared_is_refused(truth, other):
    with pytest.raises(ValueError):
        image_metrics.psnr(truth, other)
    with pytest.raises(ValueError, match="at least 11"):
        image_metrics.ssim(np.zeros((10, 12, 3), np.uint8), np.zeros((10, 12, 3), np.uint8))
