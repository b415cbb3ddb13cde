"""Cards of shipped weights say what the scores beside them say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

PRETRAINED = Path(__file__).resolve().parents[1] / "data/pretrained"
sys.path.insert(1, str(PRETRAINED))

import card  # noqa: E402

LM = PRETRAINED / "lm_arenas"


def test_the_card_of_the_language_model_holds_its_scores():
    page = (LM / "README.md").read_text()
    assert card.replaced(page, card.tables(json.loads((LM / "scores.json").read_text()))) == page


def test_scores_and_weights_are_of_the_same_step():
    manifest = json.loads((LM / "MANIFEST").read_text().splitlines()[0])
    assert json.loads((LM / "scores.json").read_text())["step"] == manifest["step"]


def test_tables_are_replaced_where_they_stand():
    gain = {"nats_per_token": dict(value=0.5, low=0.25, high=1), "nats_per_clip": dict(value=2, low=1, high=3)}
    scores = {
        "condition_gain": {"text_to_video": {"text": {"video": gain}}},
        "likelihood": {
            "text_to_video": {"video": dict(loss_nats=5, loss_nats_error=0.1, unigram_nats=10, accuracy=0.125)}
        },
    }
    made = card.tables(scores)
    page = "\n".join(
        ["# A card", "", made[0].replace("0.500", "9"), "", "Between.", "", made[1].replace("5.000", "8"), ""]
    )
    assert card.replaced(page, made) == page.replace("9 [", "0.500 [").replace("8 ±", "5.000 ±")
    assert "| text_to_video | text → video | 0.500 [0.250, 1.000] | 2.0 [1.0, 3.0] |  |" in made[0]
    with pytest.raises(ValueError, match="no table"):
        card.replaced("# A card\n", made)
