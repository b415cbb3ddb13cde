"""What a run of the language model starts from is what its store was made with."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from poet.checkpoints import weights
from poet.runs import origins
from poet.spec import Experiment, UserError

MADE_WITH = {"video": "v", "text": "t", "pieces": "p", "store": "s", "structure": "c"}
PARAMS = {"w": np.ones(2, np.float32)}


def adapted(folder: Path, **sections) -> Experiment:
    base = Experiment()
    return base.replace(train=base.train.replace(init_from=str(folder)), **sections)


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    return weights.save(tmp_path / "lm", Experiment(), PARAMS, "float32", 3, MADE_WITH)


def test_longer_clips_of_other_stores_and_conditions_may_follow(pretrained: Path) -> None:
    clip = Experiment().clip.replace(frames=33)
    others = MADE_WITH | {"store": "other", "structure": "other", "audio": "new"}
    origins.check_start(adapted(pretrained, clip=clip), others)
    origins.check_start(Experiment(), {"video": "anything"})


@pytest.mark.parametrize("name", ["video", "text", "pieces"])
def test_other_networks_are_refused(pretrained: Path, name: str) -> None:
    with pytest.raises(UserError, match="TRAIN.init_from = .* was made with another"):
        origins.check_start(adapted(pretrained), MADE_WITH | {name: "other"})


def test_other_rates_are_refused_and_another_kernel_is_not(pretrained: Path) -> None:
    with pytest.raises(UserError, match=r"CLIP.rate_hz = 8.0 \(now 4.0\)"):
        origins.check_start(adapted(pretrained, clip=Experiment().clip.replace(rate_hz=4.0)), MADE_WITH)
    origins.check_start(adapted(pretrained, model=Experiment().model.replace(attention="xla")), MADE_WITH)


def test_the_text_encoder_is_compared_with_that_of_the_store(monkeypatch, caplog) -> None:
    monkeypatch.setattr(origins, "fingerprint_of", lambda _: "t")
    origins.check_text(Experiment().text, MADE_WITH, what="the store")
    with pytest.raises(UserError, match="another text encoder"):
        origins.check_text(Experiment().text, MADE_WITH | {"text": "other"}, what="the store")

    def absent(_):
        raise UserError("it is not installed")

    monkeypatch.setattr(origins, "fingerprint_of", absent)
    with caplog.at_level(logging.WARNING):
        origins.check_text(Experiment().text, MADE_WITH, what="the store")
    assert "was not compared" in caplog.text


def test_codes_of_other_tokenizers_are_taken_where_that_is_asked_for(pretrained: Path, caplog) -> None:
    asked = adapted(pretrained)
    asked = asked.replace(train=asked.train.replace(init_other_codes=True))
    with caplog.at_level(logging.WARNING):
        origins.check_start(asked, MADE_WITH | {"video": "trained further"})
    assert "knows codes of other tokenizers (video)" in caplog.text
    with pytest.raises(UserError, match="another text encoder"):
        origins.check_start(asked, MADE_WITH | {"text": "other"})
