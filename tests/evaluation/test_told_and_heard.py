"""Captions, onsets of shots and structure: known answers, brute force, other libraries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from poet.evaluation import metric, probes
from poet.evaluation.metric import METRICS
from poet.evaluation.metrics import captions, shots, structure
from poet.runs import assets

HALL = "in the brown hall"


def test_the_phrases_are_those_of_the_recipes():
    recipe = (assets.root() / "data/game_clips/words.py").read_text()
    for phrase in captions.MOTIONS + captions.EVENTS:
        stem = phrase.removesuffix(" the")
        assert f'"{phrase}' in recipe or f'"{stem} ' in recipe, phrase


def test_captions_with_known_answers():
    true = [f"{HALL} the player walks forward and turns left, fires the pistol", "the player turns right", "a cat"]
    made = [f"{HALL} the player turns left and walks forward", "the player turns right, kills a monster", "turns left"]
    names = ("caption_place_and_motion", "caption_place", "caption_motion", "caption_actions_f1", "caption_shot")
    found = metric.measure({"caption": true, "written": made}, [METRICS[name] for name in names])
    values = {name: found[name].summary.value for name in names}
    assert values["caption_place_and_motion"] == 0 and values["caption_place"] == 1
    assert values["caption_motion"] == 1 / 2, "the first motion is the commonest; a cat does not move"
    # Both name two motions of the first clip and one of the second: 2 * 3 / (3 + 2 + 1 + 2 + 0 + 1).
    assert values["caption_actions_f1"] == pytest.approx(6 / 9)
    assert values["caption_shot"] == 1 / 2, "the shot is missed, and none is made up"


@given(st.lists(st.integers(0, 12), max_size=4, unique=True), st.lists(st.integers(0, 12), max_size=4, unique=True))
def test_matches_are_the_most_that_there_are(found, true):
    """Against every way to pair them."""
    found, true = sorted(found), sorted(true)
    few, many = sorted((found, true), key=len)
    most = max(sum(abs(a - b) <= 1 for a, b in zip(few, chosen)) for chosen in itertools.permutations(many, len(few)))
    assert shots.matched(found, true) == most


def test_shots_are_heard_when_they_are_fired(monkeypatch):
    heard = {0: [3, 4, 9], 1: [], 2: [1]}
    frames = lambda sound, count: np.isin(np.arange(count), heard[int(sound[0])])
    monkeypatch.setattr(probes, "bangs", frames)
    fields = {
        "shots": [(2, 12), (5,), None],
        "sound": [np.array([n]) for n in range(3)],
        "video": np.zeros((3, 17, 2, 2, 3), np.uint8),
    }
    found = metric.measure(fields, [METRICS["shot_onset_f1"]])["shot_onset_f1"]
    # Frames 3 and 4 are one bang, near the shot in 2; 9, 12 and 5 stand alone; the third clip has no record.
    assert found.summary.value == pytest.approx(2 * 1 / (2 + 2 + 0 + 1)) and found.summary.n == 2


def test_flow_agrees_with_the_same_motion_in_other_colours_and_not_with_its_opposite():
    rng = np.random.default_rng(6)
    ground = np.kron(rng.integers(0, 255, (8, 20, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    to_left = np.stack([ground[:, 3 * t :][:, :64] for t in range(6)])
    to_right = to_left[::-1]
    assert structure.flow_agreement(to_left, 255 - to_left) > 0.9
    assert structure.flow_agreement(to_left, to_right) < -0.5
    still = np.repeat(to_left[:1], 6, axis=0)
    assert np.isnan(structure.flow_agreement(still, still)), "nothing moves"


def test_edges_of_a_picture_where_depth_has_them(rng=np.random.default_rng(7)):
    depth = np.ones((2, 16, 16))
    depth[:, 4:12, 4:12] = 5
    video = np.repeat(np.repeat((30 * depth).astype(np.uint8), 2, 1), 2, 2)[..., None] * np.ones(3, np.uint8)
    right = structure.depth_edge_agreement(depth, video)
    wrong = structure.depth_edge_agreement(np.roll(depth, 7, axis=2), video)
    assert right > 0.95 and wrong < 0.5 * right
    # Against scipy on the same steepness, by finite differences of its own.
    noise = rng.integers(0, 255, (1, 8, 8, 3)).astype(np.uint8)
    far = rng.uniform(1, 9, (1, 8, 8))
    steep = [
        np.hypot(*np.gradient(frame)).ravel() for frame in (np.log1p(far[0]), noise[0].astype(float).mean(axis=-1))
    ]
    assert structure.depth_edge_agreement(far, noise) == pytest.approx(scipy.stats.pearsonr(*steep)[0])
    assert np.isnan(structure.depth_edge_agreement(np.ones((1, 8, 8)), noise)), "a flat depth has no edge"
