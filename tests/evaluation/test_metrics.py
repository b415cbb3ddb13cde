"""Frame prediction is judged on the unknown frames alone, and against honest baselines."""

from __future__ import annotations

import numpy as np
import pytest

from poet.evaluation import metrics
from poet.evaluation.image_metrics import PSNR_CEILING_DB, clip_psnr
from poet.specs import UserError, choose

KNOWN = 2


def videos(seed: int = 0) -> np.ndarray:
    """uint8 (3, 5, 12, 12, 3): noise that differs in every frame."""
    return np.random.default_rng(seed).integers(0, 256, (3, 5, 12, 12, 3), np.uint8)


def rows_of(drawn: np.ndarray, truth: np.ndarray, known: int = KNOWN) -> dict[str, dict]:
    rebuilt = np.clip(truth.astype(int) + 9, 0, 255).astype(np.uint8)
    compared = {"true": truth} | metrics.candidates(truth, drawn[:, None], rebuilt, known)
    return {row["frames"]: row for row in metrics.compare(compared, known).rows}


def test_a_perfect_prediction_reaches_the_ceiling_and_wins_everywhere():
    row = rows_of(videos(), videos())["generated"]
    assert row["psnr_db"] == pytest.approx(PSNR_CEILING_DB) and row["ssim"] == pytest.approx(1.0)
    assert row["win_rate"] == 1.0 and row["gain_db"] > 40 and row["clips"] == 3


def test_repeating_the_last_given_frame_gains_nothing():
    truth = videos()
    copied = truth.copy()
    copied[:, KNOWN:] = truth[:, KNOWN - 1 : KNOWN]
    rows = rows_of(copied, truth)
    assert rows["generated"]["gain_db"] == rows["repeat"]["gain_db"] == 0.0
    assert rows["generated"]["gain_db_error"] == 0.0
    assert rows["generated"]["win_rate"] == 0.0 and rows["repeat"]["win_rate"] is None


def test_given_frames_do_not_count():
    truth, drawn = videos(), videos(1)
    cheating = drawn.copy()
    cheating[:, :KNOWN] = truth[:, :KNOWN]
    assert rows_of(cheating, truth)["generated"] == rows_of(drawn, truth)["generated"]


def test_gain_is_paired_by_clip():
    truth, drawn = videos(), videos(1)
    drawn[0] = truth[0]
    gains = [
        clip_psnr(t[KNOWN:], d[KNOWN:]) - clip_psnr(t[KNOWN:], t[[KNOWN - 1] * 3])
        for t, d in zip(truth, drawn)
    ]
    row = rows_of(drawn, truth)["generated"]
    assert row["gain_db"] == pytest.approx(np.mean(gains))
    assert row["gain_db_error"] == pytest.approx(np.std(gains, ddof=1) / np.sqrt(3))
    assert row["win_rate"] == pytest.approx(np.mean(np.array(gains) > 0))


def test_curves_begin_at_the_first_unknown_frame():
    truth, drawn = videos(), videos(1)
    curves = metrics.compare({"true": truth, "repeat": drawn}, KNOWN).curves
    assert curves["repeat"][:KNOWN] == [None] * KNOWN
    want = np.mean([[clip_psnr(t[i : i + 1], d[i : i + 1]) for i in range(KNOWN, 5)]
                    for t, d in zip(truth, drawn)], axis=0)
    np.testing.assert_allclose(curves["repeat"][KNOWN:], want)


def test_an_unknown_metric_is_refused_with_near_names():
    with pytest.raises(UserError, match="frame_prediction"):
        choose("frame_predictoin", metrics.METRICS, "metric")


def test_the_mean_of_samples_is_the_pixel_mean_of_every_clip() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 256, (3, 4, 5, 8, 8, 3), np.uint8)
    truth = drawn[:, 0]
    found = metrics.candidates(truth, drawn, truth, 1)
    np.testing.assert_array_equal(found["generated"], drawn[:, 0])
    exact = drawn.astype(np.float64).mean(axis=1)
    assert np.abs(found["mean of 4 samples"] - exact).max() <= 0.5
    assert "mean of 1 samples" not in metrics.candidates(truth, drawn[:, :1], truth, 1)
