"""Metrics of sound against closed forms, a direct Fourier sum, and what is known of them."""

from __future__ import annotations

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from poet.evaluation import metric, metrics
from poet.evaluation.metrics import sounds as sound_metrics
from poet.evaluation.metrics.sounds import RATE_HZ, SI_SDR_LIMIT_DB
from poet.evaluation.report import spectrograms
from poet.spec import UserError

SCORES = {
    "log-mel_db": sound_metrics.log_mel_distance,
    "SI-SDR_db": sound_metrics.si_sdr_db,
    "PESQ-wb": sound_metrics.pesq_wb,
    "STOI": sound_metrics.stoi,
    "ViSQOL": sound_metrics.visqol,
    "ViSQOL-speech": sound_metrics.visqol_speech,
}
METRICS = {name: m for name, m in metric.METRICS.items() if "sounds" in m.tables}
needs = {name: pytest.mark.skipif(not m.is_installed, reason=m.install) for name, m in METRICS.items()}
PACKAGED = [pytest.param(name, marks=needs[name]) for name, m in METRICS.items() if m.package]


def speech_like(samples: int = 34_000, seed: int = 0) -> np.ndarray:
    """float64: harmonics of a gliding voice in syllables, and breath."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / RATE_HZ
    voiced = sum(np.sin(k * phase) / k for k in range(1, 25))
    syllables = np.maximum(0, np.sin(2 * np.pi * 4 * t)) ** 0.5
    return 0.15 * voiced * syllables + 0.002 * rng.normal(size=samples)


def noisy(sound: np.ndarray, level: float, seed: int = 1) -> np.ndarray:
    return sound + level * np.random.default_rng(seed).normal(size=len(sound))


# ------------------------------------------------------------------------------------------ SI-SDR


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(
    seed=st.integers(0, 10_000), gain=st.floats(0.01, 100), level=st.floats(0.003, 3), offset=st.floats(-0.5, 0.5)
)
def test_si_sdr_against_its_closed_form(seed: int, gain: float, level: float, offset: float) -> None:
    """With r the correlation of the two, SI-SDR = 10 log10(r^2 / (1 - r^2)): no scale, no offset."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=400)
    other = truth + level * rng.normal(size=400)
    r = np.corrcoef(truth, other)[0, 1]
    expected = 10 * math.log10(r**2 / (1 - r**2))
    expected = min(max(expected, -SI_SDR_LIMIT_DB), SI_SDR_LIMIT_DB)
    assert sound_metrics.si_sdr_db(truth, gain * other + offset) == pytest.approx(expected, abs=1e-5)


def test_si_sdr_at_its_ends() -> None:
    truth = speech_like(2000)
    assert sound_metrics.si_sdr_db(truth, truth) == SI_SDR_LIMIT_DB
    assert sound_metrics.si_sdr_db(truth, 0 * truth) == -SI_SDR_LIMIT_DB
    assert math.isnan(sound_metrics.si_sdr_db(0 * truth, truth))


# ----------------------------------------------------------------------------------------- log-mel


def direct_mel_db(sound: np.ndarray) -> np.ndarray:
    """The definition of `log_mel_distance` word by word: Fourier sums, one triangle at a time."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(513), np.arange(1024)) / 1024)
    padded = np.concatenate([np.zeros(512), sound, np.zeros(512)])
    corners_mel = np.arange(66) * 2595 * np.log10(1 + 8000 / 700) / 65
    corners = 700 * (10 ** (corners_mel / 2595) - 1)
    hz = np.arange(513) * 16_000 / 1024
    rows = []
    for start in range(0, len(padded) - 1023, 256):
        magnitude = np.abs(waves @ (window * padded[start : start + 1024])) / 256
        rows.append(
            [sum(np.interp(hz, corners[band : band + 3], [0, 1, 0], left=0, right=0) * magnitude) for band in range(64)]
        )
    return 20 * np.log10(np.maximum(rows, 1e-4))


def test_log_mel_distance_against_direct_sums() -> None:
    truth, other = speech_like(3000), noisy(speech_like(3000), 0.01)
    expected = np.abs(direct_mel_db(truth) - direct_mel_db(other)).mean()
    assert sound_metrics.log_mel_distance(truth, other) == pytest.approx(expected, rel=1e-5)


def test_a_gain_is_its_decibels_above_the_floor() -> None:
    noise = 0.1 * np.random.default_rng(0).normal(size=20_000)
    assert sound_metrics.log_mel_distance(noise, noise / 2) == pytest.approx(6.0206, abs=0.05)


def test_full_scale_sine_is_near_0_db() -> None:
    """A sine at the peak of a band; a neighbouring bin or two of its window add a little."""
    sine = np.sin(2 * np.pi * 1000 * np.arange(RATE_HZ) / RATE_HZ)
    loudest = sound_metrics.mel_db(sine)[20:40].max(axis=1)
    assert np.all((-3 < loudest) & (loudest < 6))
    assert spectrograms.magnitude_db(sine)[32, 20] == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------- every metric there is


@pytest.mark.parametrize(
    "name, ceiling, tolerance",
    [
        ("log-mel_db", 0.0, 0),
        ("SI-SDR_db", SI_SDR_LIMIT_DB, 0),
        # P.862.2's map of the raw score 4.5: 0.999 + 4 / (1 + exp(-1.3669 * 4.5 + 3.8224)).
        pytest.param("PESQ-wb", 0.999 + 4 / (1 + math.exp(-1.3669 * 4.5 + 3.8224)), 1e-3, marks=needs["PESQ-wb"]),
        pytest.param("STOI", 1.0, 1e-9, marks=needs["STOI"]),
        pytest.param("ViSQOL", 4.732, 1e-3, marks=[needs["ViSQOL"], pytest.mark.slow]),
    ],
)
def test_equal_sounds_reach_the_ceiling(name: str, ceiling: float, tolerance: float) -> None:
    sound = speech_like()
    assert SCORES[name](sound, sound.copy()) == pytest.approx(ceiling, abs=tolerance)


@pytest.mark.parametrize("name", ["log-mel_db", "SI-SDR_db", *PACKAGED])
def test_more_noise_is_worse(name: str) -> None:
    sound = speech_like()
    scores = [SCORES[name](sound, noisy(sound, level)) for level in (0.001, 0.01, 0.1)]
    better = -1 if name == "log-mel_db" else 1
    assert np.all(np.isfinite(scores)) and np.all(np.diff(scores) * better < 0), scores


@pytest.mark.parametrize("name", ["SI-SDR_db", *PACKAGED])
def test_silence_and_scraps_are_not_scored(name: str) -> None:
    score, sound = SCORES[name], speech_like()
    silence = np.zeros_like(sound)
    assert math.isnan(score(silence, silence)) and math.isnan(score(silence, sound))
    assert not score(sound, silence) > 0
    if name != "SI-SDR_db":
        assert math.isnan(score(sound[:1500], sound[:1500]))


def test_a_missing_package_leaves_its_column_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str, *_: object) -> object | None:
        return None if name in ("pesq", "visqol") else object()

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    present, missing = metrics.select("sounds")
    assert [m.name for m in present] == ["log-mel_db", "SI-SDR_db", "STOI"]
    assert set(missing) == {"PESQ-wb", "ViSQOL", "ViSQOL-speech"}
    assert all(".[sound]" in line for line in missing.values())


def test_names_choose_and_mistakes_are_told() -> None:
    assert metrics.select("sounds", ["SI-SDR_db"]) == ([METRICS["SI-SDR_db"]], {})
    with pytest.raises(UserError, match="PESQ-wb"):
        metrics.select("sounds", ["PESQ"])


def test_int16_is_scaled_to_one() -> None:
    assert sound_metrics.to_float(np.array([-32768, 16384], np.int16)).tolist() == [-1, 0.5]
    assert sound_metrics.to_float(np.float32([0.25])).tolist() == [0.25]
