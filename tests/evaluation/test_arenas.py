"""Probes of the arenas and the metrics that they serve: known answers, other computations, the card."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from poet.evaluation import columns, metric, probes
from poet.evaluation.metrics import arenas
from poet.runs import assets, manifest
from poet.spec import UserError

FOLDER = assets.root() / probes.SHIPPED
HALL, FIELD = "in the brown hall", "on the green field"


def textured(seed: int = 0) -> np.ndarray:
    """uint8 [64, 96, 3]: smooth random colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (8, 12, 3))
    return np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)


def panned(pixels_per_frame: int) -> np.ndarray:
    """uint8 [9, 64, 64, 3]: a window that moves to the left over a texture moves its picture to the right."""
    ground = np.concatenate([textured()] * 2, axis=1)
    return np.stack([ground[:, 60 - pixels_per_frame * t :][:, :64] for t in range(9)])


def test_a_fit_finds_the_minimum_of_its_loss():
    """Against the loss by other arithmetic: no step from the solution lowers it, and classes count alike."""
    rng = np.random.default_rng(1)
    classes = np.repeat([0, 1, 2], [50, 20, 10])
    rows = rng.normal(0, 1, (80, 4)) + np.eye(4)[classes]
    probe = probes.fit(rows, classes, ("a", "b", "c"), penalty=0.01)

    def loss(weights, bias):
        logits = ((rows - rows.mean(0)) / (rows.std(0) + 1e-3)) @ weights + bias
        right = np.exp(logits)[np.arange(80), classes] / np.exp(logits).sum(1)
        return -np.mean([np.log(right[classes == k]).mean() for k in range(3)]) + 0.01 * (weights**2).sum()

    best = loss(probe.weights_DxK, probe.bias_K)
    for _ in range(50):
        step = 0.01 * rng.normal(size=(5, 3))
        assert loss(probe.weights_DxK + step[:4], probe.bias_K + step[4]) > best - 1e-7
    assert best < np.log(3)
    np.testing.assert_allclose(np.exp(probe(rows)).sum(-1), 1)


def test_probes_come_back_from_the_disk(tmp_path):
    rng = np.random.default_rng(2)
    probe = probes.fit(rng.normal(size=(30, 3)), rng.integers(0, 2, 30), ("no", "yes"), 0.1)
    probes.save(tmp_path, {"one": probe})
    back = probes.load.__wrapped__(tmp_path)["one"]
    assert back.labels == ("no", "yes") and back.fingerprint == probe.fingerprint
    with pytest.raises(UserError, match="data/arenas_av/probes.py"):
        probes.load.__wrapped__(tmp_path / "absent")


def test_the_shipped_probes_are_whole_small_and_as_their_card_says():
    manifest.check_listed(FOLDER)
    assert (FOLDER / probes.FILE).stat().st_size < 200_000
    found = probes.load()
    assert set(found) == {probes.PLACES, probes.FLASHES, probes.BANGS}
    assert len(found[probes.PLACES].labels) == 11
    card, scores = (FOLDER / "README.md").read_text(), json.loads((FOLDER / "scores.json").read_text())
    for split, values in scores.items():
        assert all(value >= 0.8 for value in values.values()), "a probe that fails on real clips is no metric"
        row = " | ".join(f"{values[name]:.3f}" for name in (probes.PLACES, probes.FLASHES, probes.BANGS))
        assert f"| {split} | {row} |" in card


def test_a_place_does_not_depend_on_detail_or_order():
    """The mean frame of a probe's class is of that class, in any order of frames, blurred or at another size."""
    probe = probes.load()[probes.PLACES]
    rng = np.random.default_rng(3)
    video = np.kron(rng.integers(0, 255, (5, 8, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    place = probes.place_of(video)
    assert place in probe.labels and probes.place_of(video[::-1]) == place
    assert probes.place_of(np.kron(video, np.ones((1, 2, 2, 1), np.uint8))) == place
    rows = probes.place_rows(video)
    by_hand = video.reshape(5, 8, 8, 8, 8, 3).mean(axis=(2, 4)).reshape(5, -1) / 255
    np.testing.assert_allclose(rows, by_hand, atol=1 / 255)


@pytest.mark.parametrize("pixels, way", [(3, 1), (-3, -1), (0, 0)])
def test_a_turn_is_the_way_that_the_picture_moves(pixels, way):
    assert arenas.turn(panned(pixels)) == way


@pytest.mark.parametrize(
    "caption, place, way",
    [
        (f"{HALL} the player turns left slowly", HALL, 1),
        (f"{FIELD} the player walks forward and turns right", FIELD, -1),
        (f"{HALL} the player turns left and turns right quickly", HALL, 0),
        ("a cat turns left", None, 1),
        ("", None, 0),
    ],
)
def test_captions_are_read(caption, place, way):
    assert arenas.named_place(caption) == place and arenas.named_turn(caption) == way


def test_flash_rows_are_bumps_over_the_neighbours():
    video = np.zeros((5, 16, 16, 3), np.uint8)
    video[2] = 255
    rows = probes.flash_rows(video)[:, : 16 * 16 * 3]
    np.testing.assert_allclose(rows.mean(axis=1), [0, -0.5, 1, -0.5, 0])


def test_bang_rows_are_the_loudness_of_each_frame():
    sound = np.zeros(16_000, np.int16)
    sound[4000:6000] = 16_384
    rows = probes.bang_rows(sound, 8)
    np.testing.assert_allclose(rows[:, 0], [0, 0, 0.5, 0, 0, 0, 0, 0], atol=1e-4)
    half = rows.shape[1] // 2
    np.testing.assert_allclose(rows[1:, half:], rows[1:, :half] - rows[:-1, :half], atol=1e-4)


def batch(captions, seen, heard=None, monkeypatch=None, rate_hz=8.0):
    """Clips whose first pixel is their number, with detectors that know it."""
    videos = np.stack([np.full((6, 16, 16, 3), n, np.uint8) for n in range(len(captions))])
    monkeypatch.setattr(probes, "flashes", lambda video: np.array(seen[video[0, 0, 0, 0]], bool))
    monkeypatch.setattr(probes, "bangs", lambda sound, frames: np.array(heard[sound[0]], bool))
    sounds = [np.array([n]) if heard and heard[n] is not None else None for n in range(len(captions))]
    return {"caption": captions, "video": videos, "sound": sounds, "rate_hz": rate_hz}


def test_shots_are_scored_with_both_kinds_of_clips_counted_alike(monkeypatch):
    shot, calm = f"{HALL} the player walks, fires the pistol", f"{HALL} the player walks"
    captions = [shot, shot, shot, shot, calm, calm, "no arena, fires the pistol"]
    seen = [[0, 1], [0, 0], [1, 1], [1, 0], [0, 0], [1, 0], [1, 1]]
    heard = [[1, 0], [1, 0], None, [0, 0], [0, 0], [0, 0], [1, 0]]
    fields = batch(captions, seen, heard, monkeypatch)
    chosen = [metric.METRICS[name] for name in ("shot_seen", "shot_heard")]
    found = metric.measure(fields, chosen)
    assert found["shot_seen"].summary.value == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["shot_heard"].summary.value == pytest.approx((2 / 3 + 1) / 2)
    slower = metric.measure(fields | {"rate_hz": 4.0}, chosen)
    assert slower["shot_seen"].summary.value is None, "changes from frame to frame depend on the rate"


def test_differences_of_shots_are_paired_and_those_of_a_brute_force(monkeypatch):
    """Against scikit-learn's definition by hand, resample by resample of the same groups."""
    rng = np.random.default_rng(5)
    said, one, two = (rng.random(40) < share for share in (0.5, 0.4, 0.6))
    groups = np.arange(40) // 2

    def state(seen):
        captions = [f"{HALL} x, fires the pistol" if shot else f"{HALL} x" for shot in said]
        fields = batch(captions, [[int(hit)] for hit in seen], None, monkeypatch)
        return arenas.shots_told(arenas._flashes)({**fields, "groups": groups})

    def accuracy(seen, times):
        hits = (seen == said) * times
        return (hits[said].sum() / times[said].sum() + hits[~said].sum() / times[~said].sum()) / 2

    first, second = state(one), state(two)
    difference, low, high, pairs = columns.difference(first, second, arenas.balanced)
    ones = np.ones(40)
    assert pairs == 40 and difference == pytest.approx(accuracy(two, ones) - accuracy(one, ones))
    times = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), 1000)[:, groups]
    found = [accuracy(two, row) - accuracy(one, row) for row in times]
    assert (low, high) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])))
    assert columns.difference(first, first, arenas.balanced)[:3] == (0, 0, 0)
    halves = [first._some(np.arange(0, 23)), first._some(np.arange(17, 40))]
    np.testing.assert_array_equal(halves[1].merge(halves[0]).rows_NxC, first.rows_NxC)


def test_shots_that_are_seen_and_heard_are_near_each_other(monkeypatch):
    seen, heard = [[0, 1, 0, 0, 0, 1], [0] * 6], [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    fields = batch([f"{HALL} x", f"{HALL} y"], seen, heard, monkeypatch)
    found = metric.measure(fields, [metric.METRICS["shots_together"]])["shots_together"]
    # Frame 1 is heard in 2, and 2 is seen in 1; frame 5 of the first and frame 3 of the second stand alone.
    assert found.summary.value == pytest.approx(2 / 4)
    np.testing.assert_array_equal(found.state.counts_N, [3, 1])


def test_places_and_turns_of_whole_clips(monkeypatch):
    monkeypatch.setattr(probes, "place_of", lambda video: HALL if video[0, 0, 0, 0] < 2 else FIELD)
    captions = [
        f"{HALL} the player turns left",
        f"{FIELD} the player waits",
        f"{FIELD} the player turns right",
        "a cat",
    ]
    fields = batch(captions, [[0]] * 4, None, monkeypatch)
    found = metric.measure(fields, [metric.METRICS["place_agreement"], metric.METRICS["turn_agreement"]])
    assert found["place_agreement"].summary.value == pytest.approx(2 / 3)
    assert found["turn_agreement"].summary.value == 0, "stills do not turn"
    assert found["turn_agreement"].summary.n == 2


def test_every_place_of_the_recipe_is_a_label():
    recipe = (assets.root() / "data/arenas_av/arenas.py").read_text()
    assert set(re.findall(r'place="([^"]+)"', recipe)) == set(probes.load()[probes.PLACES].labels)
