"""A store that cannot feed a run is refused before any batch is read."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from token_stores import BITS, CLIP, TEXT, make_experiment

from poet.data import checks
from poet.data.checks import check
from poet.data.loader import batches
from poet.spec import UserError, VideoTokenizerSpec, VocabularySpec
from poet.tasks.resolved import Resolved


def test_a_fitting_store_passes_and_its_manifest_is_returned(experiment):
    assert check(Resolved(experiment)).splits["train"].clips == 29
    assert check(Resolved(experiment), fingerprints={"video": "abc"}).video.bits == BITS


def test_a_missing_store_is_refused(tmp_path):
    for path in ("", str(tmp_path / "nothing")):
        with pytest.raises(UserError, match="no token store"):
            check(Resolved(make_experiment(path)))


def test_an_unknown_task_is_refused_with_near_names(store):
    with pytest.raises(UserError, match="did you mean text_to_video"):
        check(Resolved(make_experiment(store.path, mixture_rates={"text_to_vidio": 1.0})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": CLIP.replace(frames=17)}, "CLIP.frames = 9"),
        ({"clip": CLIP.replace(rate_hz=12.0)}, "CLIP.rate_hz = 8.0"),
        (
            {"video_tokenizer": VideoTokenizerSpec(bits=BITS, stem=(1, 2, 2))},
            r"video.grid is \[3, 2, 2\], not \[3, 1, 1\]",
        ),
        (
            {"vocabulary": VocabularySpec(visual_bits=7), "video_tokenizer": VideoTokenizerSpec(bits=7)},
            "video.bits is 6, not 7",
        ),
        ({"text": TEXT.replace(width=8)}, "text.width is 4, not 8"),
        ({"text": TEXT.replace(length=4)}, "text.length is 8, not 4"),
        ({"text": TEXT.replace(encoder="t5")}, "text.name is 'minilm', not 't5'"),
    ],
)
def test_a_store_of_another_format_is_refused(experiment, changes, message):
    with pytest.raises(UserError, match=message):
        check(Resolved(dataclasses.replace(experiment, **changes)))


def test_a_run_without_text_does_not_ask_for_the_stores_text_encoder(store):
    experiment = make_experiment(store.path, mixture_rates={"unconditional": 1.0})
    check(Resolved(experiment.replace(text=TEXT.replace(encoder="t5", width=1024))))


def test_another_tokenizer_is_refused(experiment):
    with pytest.raises(UserError, match="fingerprint is 'abc', not 'xyz'"):
        check(Resolved(experiment), fingerprints={"video": "xyz"})


def test_a_batch_larger_than_the_split_repeats_its_clips_and_is_said(store, caplog):
    """A folder of a few clips feeds any configuration: the README's third job, on one's own clips."""
    rates = {"unconditional": 1.0}
    check(Resolved(make_experiment(store.path, mixture_rates=rates, batch=29)))
    assert not caplog.records
    experiment = make_experiment(store.path, mixture_rates=rates, batch=58)
    check(Resolved(experiment))
    assert "takes 58 clips and split 'train'" in caplog.text and "has 29" in caplog.text
    batch = next(batches(Resolved(experiment))["video"])["tokens"]
    assert sorted(np.unique(batch, axis=0, return_counts=True)[1].tolist()) == [2] * 29


def test_a_missing_split_is_refused(experiment):
    with pytest.raises(UserError, match="no split 'test'"):
        check(Resolved(experiment), split="test")


def test_the_default_split_is_the_one_that_training_reads(experiment):
    assert checks.TRAIN_SPLIT in check(Resolved(experiment)).splits


def test_a_run_names_the_networks_that_its_mixture_uses(store, tmp_path):
    """What no task uses is no part of what was trained with; a store is itself wherever it lies."""
    text = checks.networks_of(*_opened(store.path))
    assert text == {"video": "abc", "text": "def", "store": text["store"]}
    assert "text" not in checks.networks_of(*_opened(store.path, mixture_rates={"unconditional": 1.0}))
    moved = shutil.copytree(store.path, tmp_path / "moved")
    assert checks.networks_of(*_opened(str(moved))) == text


def _opened(path, **options):
    experiment = make_experiment(path, **options)
    return Resolved(experiment), check(Resolved(experiment))
