"""Metrics of single clips and of pairs: similarity over scales, warping, stillness, sound against picture, collapse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import skimage.data

from poet.evaluation import metric
from poet.evaluation.metrics import ms_ssim, onsets, temporal

NAMES = ("warping_error_levels", "change_levels", "frozen_rate", "onset_agreement", "collapse_rate")
PICTURE = skimage.data.astronaut()[::2, ::2]


def values(batch: dict, name: str) -> metric.Summary:
    return metric.measure(batch, [metric.METRICS[name]])[name].summary


def moving(frames: int = 6, step: int = 2, side: int = 64) -> np.ndarray:
    """uint8 [T, side, side, 3]: a window that slides over a picture."""
    return np.stack([PICTURE[60 : 60 + side, 60 + step * t : 60 + step * t + side] for t in range(frames)])


# ------------------------------------------------------------------------------------------- MS-SSIM


def test_ms_ssim_is_that_of_scipy_s_filters() -> None:
    truth = PICTURE[:100, :90]
    other = np.clip(truth + np.random.default_rng(0).normal(0, 12, truth.shape), 0, 255).astype(np.uint8)
    found = ms_ssim.ms_ssim(truth[None], other[None])[0]
    assert ms_ssim.scales_of(100, 90) == 4
    weights = np.array(ms_ssim.WEIGHTS[:4]) / sum(ms_ssim.WEIGHTS[:4])
    want, x, y = 1.0, truth.astype(float), other.astype(float)
    for scale, weight in enumerate(weights):
        lightness, contrast = _factors(x, y)
        want *= (lightness * contrast if scale == 3 else contrast).mean() ** weight
        x, y = (scipy.ndimage.uniform_filter(z, (2, 2, 1), origin=(-1, -1, 0)) for z in (x, y))
        x, y = (z[: z.shape[0] // 2 * 2 : 2, : z.shape[1] // 2 * 2 : 2] for z in (x, y))
    assert found == pytest.approx(want, rel=1e-9)


def _factors(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def blur(z: np.ndarray) -> np.ndarray:
        made = scipy.ndimage.gaussian_filter(z, (1.5, 1.5, 0), truncate=5 / 1.5)
        return made[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, c = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return (2 * mx * my + c1) / (mx**2 + my**2 + c1), (2 * c + c2) / (vx + vy + c2)


def test_ms_ssim_is_1_of_equal_frames_and_falls_with_noise() -> None:
    frames, rng = PICTURE[None, :64, :64], np.random.default_rng(0)
    noisy = [np.clip(frames + rng.normal(0, s, frames.shape), 0, 255).astype(np.uint8) for s in (0, 5, 20, 60)]
    scores = [ms_ssim.ms_ssim(frames, other)[0] for other in noisy]
    assert scores[0] == 1 and scores == sorted(scores, reverse=True) and scores[-1] < 0.9
    assert [ms_ssim.scales_of(n, n) for n in (11, 22, 64, 176, 512)] == [1, 2, 3, 5, 5]


# ------------------------------------------------------------------------------------------ in time


def test_what_moves_along_its_motion_has_less_warping_error_than_it_changes() -> None:
    clip = moving()
    warped, changed = temporal.warping_error(clip), temporal.changes(clip).mean()
    assert warped < 0.35 * changed
    flickering = np.clip(clip.astype(int) + np.array([0, 20] * 3)[:, None, None, None], 0, 255).astype(np.uint8)
    assert temporal.warping_error(flickering) > warped + 10


def test_hidden_pixels_do_not_count() -> None:
    there = np.zeros((8, 8, 2), np.float32)
    there[:, :4, 0] = 3.0
    back = np.zeros((8, 8, 2), np.float32)
    back[:, 3:7, 0] = -3.0
    seen = temporal.visible(there, back)
    # The left half moves by three and hides what does not move there.
    assert seen[:, :4].all() and not seen[:, 4:7].any() and seen[:, 7].all()


def test_a_clip_that_stands_still_is_frozen_and_changes_nothing() -> None:
    still = np.repeat(moving(1), 6, axis=0)
    half = np.concatenate([moving(3), still[:3] * 0 + moving(3)[2]])
    batch = {"video": np.stack([still, moving(), half])}
    assert values(batch, "frozen_rate").value == pytest.approx(2 / 3)
    assert temporal.changes(still).sum() == 0 and temporal.warping_error(still) == 0
    assert values({"video": moving(1)[None]}, "warping_error_levels").value is None


# -------------------------------------------------------------------------------------------- sound


def clip_with_bangs(
    at: list[int], heard: list[int], frames: int = 17, rate_hz: float = 8.0
) -> tuple[np.ndarray, np.ndarray]:
    """A dark clip that flashes in some frames, and noise that begins before others, and decays."""
    video = np.full((frames, 16, 16, 3), 30, np.uint8)
    video[at] = 200
    sound, rng = np.zeros(round(frames / rate_hz * 16_000)), np.random.default_rng(0)
    burst = rng.normal(size=1600) * np.exp(-np.arange(1600) / 300) * 8000
    for frame in heard:
        start = round((frame - 0.5) / rate_hz * 16_000)
        sound[start : start + len(burst)] += burst[: len(sound) - start]
    return video, sound.astype(np.int16)


def test_sound_that_begins_with_a_flash_agrees_and_other_sound_does_not() -> None:
    right = onsets.agreement(*clip_with_bangs([3, 11], [3, 11]))
    wrong = onsets.agreement(*clip_with_bangs([3, 11], [6, 14]))
    assert right > 0.5 and wrong < 0.1
    video, sound = clip_with_bangs([3], [3])
    assert np.isnan(onsets.agreement(video, sound * 0)) and np.isnan(onsets.agreement(video[:3], sound))
    summary = values({"video": [video, video], "sound": [sound, None]}, "onset_agreement")
    assert summary.n == 1 and summary.value > 0.5


def test_collapsed_codes_are_counted() -> None:
    rng = np.random.default_rng(0)
    alive = rng.integers(0, 1024, (5, 8, 8))
    batch = {"ids": np.stack([alive, np.repeat(alive[:1], 5, axis=0), np.tile(alive[:, :4, :4], (1, 2, 2))])}
    assert values(batch, "collapse_rate").value == pytest.approx(2 / 3)


# ---------------------------------------------------------------------------------------------- drift


def film(last: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8 [1, 64, 64, 64, 3] of 8 s at 8 Hz: a picture that moves, whose second half is `last` of its frames."""
    frames = np.concatenate([moving(32, step=1), moving(32, step=1)[::-1]])
    return np.concatenate([frames[:32], last(frames[32:])])[None].astype(np.uint8)


@pytest.mark.parametrize(
    "change, low, high",
    [
        (lambda x: x, 0, 0.5),
        (lambda x: np.rint(128 + (x - 128.0) / 2), 6.02 - 0.5, 6.02 + 0.5),
        (lambda x: scipy.ndimage.gaussian_filter(x, (0, 2, 2, 0)), 3, 30),
        (lambda x: np.clip(x + np.random.default_rng(1).normal(0, 60, x.shape), 0, 255), 3, 30),
        (lambda x: np.full_like(x, 90), 30, 60),
    ],
    ids=["as it was", "half the contrast", "blurred", "noisy", "flat"],
)
def test_a_film_that_falls_apart_drifts(change, low, high) -> None:
    assert low <= values({"video": film(change), "rate_hz": 8.0}, "drift_db").value <= high


def test_drift_is_that_of_the_ends_and_short_films_have_none() -> None:
    video = film(lambda x: x // 2)
    ends = [video[0, :24].astype(float), video[0, -24:].astype(float)]
    contrast = [np.mean([np.var(frame[..., c]) for frame in part for c in range(3)]) for part in ends]
    steps = [[s for axis in (1, 2) for s in [np.mean(np.diff(part, axis=axis) ** 2)]] for part in ends]
    by_hand = max(abs(10 * np.log10(contrast[1] / contrast[0])), abs(10 * np.log10(sum(steps[1]) / sum(steps[0]))))
    assert values({"video": video, "rate_hz": 8.0}, "drift_db").value == pytest.approx(by_hand)
    assert values({"video": video[:, :47], "rate_hz": 8.0}, "drift_db").value is None
