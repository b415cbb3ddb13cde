"""Rounds of encoding and decoding, of tokenizers whose drift can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from poet.evaluation import metric, metrics
from poet.evaluation.metrics.pixels import PSNR_CEILING_DB
from poet.evaluation.metrics.round_trips import ROUNDS, round_trips

CLIPS = np.random.default_rng(0).integers(0, 200, (3, 5, 8, 8, 3), np.uint8)


class Drifting:
    """A code is the first channel's value; every decoding is `step` brighter, as far as the value `top`."""

    def __init__(self, step: int, top: int = 255) -> None:
        self.step, self.top = step, top

    def encode(self, video):
        return video[..., 0].astype(np.int32)

    def decode(self, ids):
        brighter = np.where(ids < self.top, np.minimum(ids + self.step, self.top), ids)
        return np.repeat(brighter[..., None], 3, axis=-1).astype(np.uint8)


def scored(tokenizer, clips):
    ids = tokenizer.encode(clips)
    fields = round_trips(tokenizer, clips, ids, tokenizer.decode(ids))
    return metric.columns(metric.measure(fields, metrics.select("round_trips")[0]))


def test_a_drift_of_every_round_adds_up():
    grey = np.repeat(CLIPS[..., :1], 3, axis=-1)
    row = scored(Drifting(2), grey)
    assert row["round_trip_match"] == 0
    for rounds in ROUNDS:
        assert row[f"psnr_after_{rounds}_db"] == pytest.approx(20 * np.log10(255 / (2 * rounds)))


def test_a_projection_pays_once():
    """What is encoded a second time is what was decoded the first time: the whole loss is the first round's."""
    row = scored(Drifting(0), CLIPS)
    assert row["round_trip_match"] == 1
    assert {row[f"psnr_after_{rounds}_db"] for rounds in ROUNDS} == {row["psnr_after_1_db"]}
    assert row["psnr_after_1_db"] < PSNR_CEILING_DB


def test_the_match_is_the_share_of_codes_that_come_back():
    row = scored(Drifting(1, top=100), CLIPS)
    assert row["round_trip_match"] == pytest.approx((CLIPS[..., 0] >= 100).mean())
