"""Copies of training clips are found, and nothing is where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from poet import cli, media
from poet.evaluation import leaks
from poet.evaluation.leaks import Nearest
from poet.evaluation.score.sides import Item


def clip(rng: np.random.Generator, frames: int = 8) -> np.ndarray:
    """uint8 [T, 32, 32, 3]: random patches of 8x8 pixels that move by a pixel a frame."""
    patches = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(patches, t, axis=1) for t in range(frames)])


def items(videos: list[np.ndarray]) -> list[Item]:
    return [
        Item(place=i, key=f"{i}", group=f"{i}", caption="", video=video, sound=None) for i, video in enumerate(videos)
    ]


def searched(samples: list[np.ndarray], training: list[np.ndarray]) -> Nearest:
    found, _ = Nearest.of(items(samples))
    for place, video in enumerate(training):
        found.see(place, leaks.described(video))
    return found


def test_the_similarity_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    samples, training = [clip(rng) for _ in range(3)], [clip(rng) for _ in range(5)]
    found = searched(samples, training)

    def frames(video):
        small = [np.float64(leaks.resized(f[None], 8, 8, "box")).ravel() for f in video]
        return np.stack([(f - f.mean()) / np.linalg.norm(f - f.mean()) for f in small])

    for row, sample in enumerate(samples):
        chosen = frames(sample[np.linspace(0, 7, 4).astype(int)])
        each = [np.mean([max(float(a @ b) for b in frames(other)) for a in chosen]) for other in training]
        assert found.similarity_N[row] == pytest.approx(max(each), abs=1e-5)
        assert found.place_N[row] == int(np.argmax(each))


def test_copies_are_found_though_they_are_darker_flatter_noisy_and_later():
    rng = np.random.default_rng(1)
    training = [clip(rng, 12) for _ in range(60)]
    changed = [
        training[7][:8] // 2,
        (training[8][:8] // 4 + 90).astype(np.uint8),
        np.clip(training[9][:8] + rng.normal(0, 20, training[9][:8].shape), 0, 255).astype(np.uint8),
        training[10][3:11],
    ]
    found = searched(changed, training)
    heldout = searched([clip(rng) for _ in range(200)], training)
    assert found.place_N.tolist() == [7, 8, 9, 10]
    assert found.similarity_N.min() > 0.95 > heldout.similarity_N.max()
    assert (leaks.chances(found.similarity_N, heldout.similarity_N) == 1 / 201).all()


def test_clips_that_are_no_copies_are_as_near_as_held_out_ones():
    rng = np.random.default_rng(2)
    training = [clip(rng) for _ in range(50)]
    fresh, heldout = (searched([clip(rng) for _ in range(300)], training) for _ in range(2))
    chance = leaks.chances(fresh.similarity_N, heldout.similarity_N)
    assert stats.kstest(chance, "uniform").pvalue > 0.001 and chance.min() > 0


def test_a_frame_of_one_colour_is_like_no_other():
    assert not leaks.described(np.full((2, 16, 16, 3), 77, np.uint8)).any()


def test_the_command_writes_what_it_found(tmp_path: Path, capsys):
    rng = np.random.default_rng(3)
    sets = {name: [clip(rng) for _ in range(count)] for name, count in (("train", 6), ("heldout", 3), ("samples", 2))}
    sets["samples"].append(sets["train"][4])
    for name, videos in sets.items():
        (tmp_path / name).mkdir()
        for place, video in enumerate(videos):
            media.write_apng(tmp_path / name / f"{place}.apng", video, 8.0)
    paths = [f"--{flag}={tmp_path / name}" for flag, name in (("training", "train"), ("heldout", "heldout"))]
    command = ["leaks", str(tmp_path / "samples"), *paths, f"--out={tmp_path / 'out'}"]
    assert cli.main(command) == 0
    found = json.loads((tmp_path / "out/leaks.json").read_text())
    first = found["clips"][0]
    assert (first["clip"], first["nearest"]) == ("2.apng", "4.apng") and first["similarity"] == pytest.approx(
        1, abs=1e-5
    )
    assert found["flagged"] is None and "99 are needed" in capsys.readouterr().out
    assert (tmp_path / "out/0_training.png").is_file()
    assert cli.main(command) == cli.EXIT_USER


def test_the_medians_differ_by_an_interval_that_scipy_finds_too():
    rng = np.random.default_rng(8)
    ours, theirs = rng.normal(0.80, 0.05, 60), rng.normal(0.75, 0.05, 90)
    found = leaks.summary(ours, theirs, leaks.chances(ours, theirs))["difference"]
    assert found["value"] == pytest.approx(np.median(ours) - np.median(theirs))
    apart = lambda a, b, axis: np.median(a, axis=axis) - np.median(b, axis=axis)
    other = stats.bootstrap((ours, theirs), apart, n_resamples=1000, method="percentile", random_state=1)
    bounds = other.confidence_interval
    assert (found["low"], found["high"]) == pytest.approx((bounds.low, bounds.high), abs=0.006)
