"""Frame prediction is judged on the unknown frames alone, and against honest baselines."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from poet.evaluation import checkpoint_tables as tables
from poet.evaluation.metric import GROUPS, Values
from poet.evaluation.metrics.pixels import PSNR_CEILING_DB, blurred, clip_psnr
from poet.spec import UserError, choose

KNOWN = 2


def mean_and_error(values: np.ndarray, films: np.ndarray | None = None) -> tuple:
    """Mean and standard error of values that depend on each other within a film."""
    found = Values.of({} if films is None else {GROUPS: films}, values).summary()
    return found.value, found.error


def videos(seed: int = 0) -> np.ndarray:
    """uint8 (3, 5, 12, 12, 3): noise that differs in every frame."""
    return np.random.default_rng(seed).integers(0, 256, (3, 5, 12, 12, 3), np.uint8)


def rows_of(drawn: np.ndarray, truth: np.ndarray, known: int = KNOWN) -> dict[str, dict]:
    rebuilt = np.clip(truth.astype(int) + 9, 0, 255).astype(np.uint8)
    compared = {"true": truth} | tables.candidates(truth, drawn[:, None], rebuilt, known)
    return {row["frames"]: row for row in tables.compare(compared, known).rows}


def test_a_perfect_prediction_reaches_the_ceiling_and_wins_everywhere():
    row = rows_of(videos(), videos())["generated"]
    assert row["psnr_db"] == pytest.approx(PSNR_CEILING_DB) and row["ssim"] == pytest.approx(1.0)
    assert row["win_rate"] == 1.0 and row["gain_db"] > 40 and row["clips"] == 3


def smooth(seed: int = 0) -> np.ndarray:
    """uint8 (3, 5, 12, 12, 3): ramps that drift, on which no blur is better."""
    t, y, x = np.mgrid[:5, :12, :12]
    return np.stack([(75 + 10 * x + 2 * k * y - 3 * t)[..., None] + [0, 1, 2] for k in range(3)]).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0, 1, 2, 4])
def test_no_way_to_repeat_the_last_given_frame_gains_anything(sigma: int) -> None:
    """On noise blurring is better than the frame itself: it is a baseline, not a gain."""
    for truth in (videos(), smooth()):
        drawn = truth.copy()
        last = truth[:, KNOWN - 1 : KNOWN]
        drawn[:, KNOWN:] = blurred(last, sigma) if sigma else last
        rows = rows_of(drawn, truth)
        assert rows["generated"]["gain_db"] <= 0 and rows["generated"]["win_rate"] < 1
        [best] = [row for row in rows.values() if row["win_rate"] is None]
        assert best["gain_db"] == best["gain_db_error"] == 0
        assert best["psnr_db"] == max(r["psnr_db"] for name, r in rows.items() if "repeat" in name)


def test_a_blur_is_the_gaussian_mean() -> None:
    """Against a direct sum over the whole plane around a point."""
    frames = np.zeros((1, 41, 41, 3), np.uint8)
    frames[0, 20, 20] = 255
    y, x = np.mgrid[-20:21, -20:21]
    weights = np.exp(-(x**2 + y**2) / (2 * 2.0**2))
    want = 255 * weights / weights.sum()
    assert np.abs(blurred(frames, 2.0)[0, ..., 0] - want).max() <= 0.51
    flat = np.full((1, 9, 7, 3), 137, np.uint8)
    np.testing.assert_array_equal(blurred(flat, 4), flat)


def test_errors_of_dependent_clips_are_those_over_their_films() -> None:
    """Films of equal length: the standard error of the films' means; copies of clips add nothing."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 4)) + 3 * rng.normal(size=(6, 1))
    films = np.repeat(list("abcdef"), 4)
    mean, error = mean_and_error(values.reshape(-1), films)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(scipy.stats.sem(values.mean(axis=1)))
    assert error > 1.5 * mean_and_error(values.reshape(-1))[1]
    single = mean_and_error(values[:, 0])
    doubled = mean_and_error(np.tile(values[:, 0], 2), np.tile(films[::4], 2))
    assert doubled == pytest.approx(single) and single[1] == pytest.approx(scipy.stats.sem(values[:, 0]))
    assert mean_and_error(values[0], films[:4])[1] is None


def test_given_frames_do_not_count():
    truth, drawn = videos(), videos(1)
    cheating = drawn.copy()
    cheating[:, :KNOWN] = truth[:, :KNOWN]
    assert rows_of(cheating, truth)["generated"] == rows_of(drawn, truth)["generated"]


def test_gain_is_paired_by_clip():
    truth, drawn = smooth(), smooth()[::-1].copy()
    drawn[0] = truth[0]
    gains = [clip_psnr(t[KNOWN:], d[KNOWN:]) - clip_psnr(t[KNOWN:], t[[KNOWN - 1] * 3]) for t, d in zip(truth, drawn)]
    row = rows_of(drawn, truth)["generated"]
    assert row["gain_db"] == pytest.approx(np.mean(gains))
    assert row["gain_db_error"] == pytest.approx(np.std(gains, ddof=1) / np.sqrt(3))
    assert row["win_rate"] == pytest.approx(np.mean(np.array(gains) > 0))


def test_curves_begin_at_the_first_unknown_frame():
    truth, drawn = videos(), videos(1)
    curves = tables.compare({"true": truth, "repeat": drawn}, KNOWN).curves
    assert curves["repeat"][:KNOWN] == [None] * KNOWN
    want = np.mean(
        [[clip_psnr(t[i : i + 1], d[i : i + 1]) for i in range(KNOWN, 5)] for t, d in zip(truth, drawn)], axis=0
    )
    np.testing.assert_allclose(curves["repeat"][KNOWN:], want)


def test_an_unknown_metric_is_refused_with_near_names():
    with pytest.raises(UserError, match="frame_prediction"):
        choose("frame_predictoin", tables.TABLES, "metric")


def test_the_mean_of_samples_is_the_pixel_mean_of_every_clip() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 256, (3, 4, 5, 8, 8, 3), np.uint8)
    truth = drawn[:, 0]
    found = tables.candidates(truth, drawn, truth, 1)
    np.testing.assert_array_equal(found["generated"], drawn[:, 0])
    exact = drawn.astype(np.float64).mean(axis=1)
    assert np.abs(found["mean of 4 samples"] - exact).max() <= 0.5
    assert "mean of 1 samples" not in tables.candidates(truth, drawn[:, :1], truth, 1)
