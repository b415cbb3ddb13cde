"""A token store with conditions made from pixels, and captions as pieces, beside the same video."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import store_fakes as fakes

from poet import conditioning
from poet.spec import ConditioningSpec, StoreSpec, UserError
from poet.store import manifest as manifests
from poet.store import reader

CLIPS = 7
SPEC = ConditioningSpec(prediction_latents=2, depth="flat")
NAMES = tuple(conditioning.CONDITIONS)


class LetterPieces:
    """A piece for each letter of 'tex 0123456789', closed by 1."""

    size = 20
    fingerprint = "letter-pieces"
    letters = "tex 0123456789"

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray, int]:
        ids = np.zeros((len(texts), length), np.int32)
        for row, text in zip(ids, texts):
            pieces = [2 + self.letters.index(c) for c in text][: length - 1] + [1]
            row[: len(pieces)] = pieces
        return ids, (ids > 0).sum(1), 0


@pytest.fixture(scope="module")
def videos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (5, 16, 16, 3), np.uint8) for _ in range(CLIPS)]


@pytest.fixture(scope="module")
def source(videos, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data") / "fake" / "1.0.0"
    fakes.write_tfds(folder, {"train": videos})
    return folder


def tokenize(source: pathlib.Path, path: pathlib.Path, **changes: Any) -> manifests.Manifest:
    spec = StoreSpec(source=str(source), path=str(path), splits=("train",), batch=2)
    given = {"conditions": NAMES, "conditioning_spec": SPEC, "pieces": LetterPieces()} | changes
    return fakes.tokenize(
        spec, fakes.CLIP, tokenizer=fakes.MeanTokenizer(), text=fakes.LetterEncoder(), progress=False, **given
    )


def test_every_condition_is_the_code_of_what_is_made_from_its_clip(source, videos, tmp_path):
    manifest = tokenize(source, tmp_path / "s")
    found = {e["key"].decode(): e for e in reader.dataset(str(tmp_path / "s"), "train").as_numpy_iterator()}
    assert len(found) == CLIPS
    for index, video in enumerate(videos):
        key = f"train/{index}"
        np.testing.assert_array_equal(found[key]["video"], fakes.mean_codes(video[None]).ravel())
        for name in NAMES:
            made = conditioning.make(name, video, SPEC, key=key, factor=fakes.MeanTokenizer.spec.factor)
            codes = np.where(made.cells, fakes.mean_codes(made.video[None])[0], -1)
            np.testing.assert_array_equal(found[key][name], codes.ravel())
        text = f"text {index}"
        assert found[key]["pieces"].tolist() == [2 + LetterPieces.letters.index(c) for c in text] + [1, 0]
    prints = {name: manifest.plan.streams[name].fingerprint for name in NAMES}
    assert len(set(prints.values())) == len(NAMES)
    assert manifest.splits["train"].statistics.keys() == manifest.plan.streams.keys()


def test_what_is_not_asked_for_is_not_made_and_the_rest_is_as_it_was(source, tmp_path):
    tokenize(source, tmp_path / "all")
    few = tokenize(source, tmp_path / "few", conditions=("inpainting",), pieces=None)
    assert set(few.plan.streams) == {"video", "inpainting"}
    for a, b in zip(*(reader.dataset(str(tmp_path / n), "train") for n in ("all", "few"))):
        assert a["key"] == b["key"]
        np.testing.assert_array_equal(a["inpainting"], b["inpainting"])


def test_a_store_of_other_conditions_is_not_continued(source, tmp_path):
    tokenize(source, tmp_path / "s")
    with pytest.raises(UserError, match="streams.inpainting.fingerprint is"):
        tokenize(source, tmp_path / "s", conditioning_spec=SPEC.replace(inpainting=("central",)))


def test_a_source_without_depth_is_refused_before_any_clip_is_read(source, tmp_path):
    with pytest.raises(UserError, match="source's clips come without depth.*'flat'"):
        tokenize(source, tmp_path / "s", conditioning_spec=ConditioningSpec())
    assert not (tmp_path / "s").exists()
