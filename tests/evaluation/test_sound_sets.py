"""Sets of sounds for `poet tokenizer-eval`: by kind, spread over the split, of one length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from poet import media
from poet.evaluation.sets import sounds as sound_sets
from poet.spec import AudioTokenizerSpec, EvalSpec, UserError

SPEC = AudioTokenizerSpec()
LONG, SHORT = 4000, 3000


def write_folder(folder: Path, items: list[tuple[str, int, int]]) -> str:
    """A folder of wav files (kind, samples, value): sound k is constant at its value."""
    lines = []
    for index, (kind, samples, value) in enumerate(items):
        name = f"{index:03d}.wav"
        media.write_wav(folder / name, np.full(samples, value, np.int16), SPEC.sample_rate_hz)
        lines.append(json.dumps({"file": name, "kind": kind, "split": "validation"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(game, sounds); the value of a sound tells its place."""
    game = write_folder(tmp_path_factory.mktemp("game"), [("", LONG, 100 + i) for i in range(5)])
    kinds = [("speech", LONG, 1000 + i) for i in range(9)] + [("speech", SHORT, 2000)] * 3
    kinds += [("music", LONG, 3000 + i) for i in range(2)] + [("effects", SHORT, 4000)]
    return game, write_folder(tmp_path_factory.mktemp("sounds"), kinds)


def test_sets_are_kinds_evenly_spaced_and_long_enough(folders: tuple[str, str]) -> None:
    evaluation = EvalSpec(source=folders[0], sounds=folders[1], clips=3)
    sets, skipped = sound_sets.open_sets((), SPEC, evaluation, samples=3500)
    assert {name: sounds[:, 0].tolist() for name, sounds in sets.items()} == {
        "game": [100, 102, 104],
        "speech": [1000, 1004, 1008],
        "music": [3000, 3001],
    }
    assert all(s.dtype == np.int16 and s.shape[1] == 3500 for s in sets.values())
    assert list(skipped) == ["effects"] and "no effects of 0.219 s or more" in skipped["effects"]


def test_only_what_a_folder_was_given_for_is_read(folders: tuple[str, str]) -> None:
    sets, skipped = sound_sets.open_sets((), SPEC, EvalSpec(source=folders[0]), samples=3500)
    assert list(sets) == ["game"] and not skipped


def test_sounds_come_at_the_rate_of_the_tokenizer(folders: tuple[str, str]) -> None:
    spec = SPEC.replace(sample_rate_hz=24_000, strides=(3, 4, 5, 8))
    evaluation = EvalSpec(sounds=folders[1])
    sets, _ = sound_sets.open_sets(["music"], spec, evaluation, samples=6000)
    assert sets["music"].shape == (2, 6000)


def test_mistakes_are_told(folders: tuple[str, str]) -> None:
    evaluation = EvalSpec(sounds=folders[1])
    for names, told in (
        (["speach"], "speech"),
        (["game"], "EVAL.source=FOLDER"),
        (["effects"], "no effects of 0.219 s"),
    ):
        with pytest.raises(UserError, match=told):
            sound_sets.open_sets(names, SPEC, evaluation, samples=3500)
    with pytest.raises(UserError, match="EVAL.source=FOLDER.*EVAL.sounds=FOLDER"):
        sound_sets.open_sets((), SPEC, EvalSpec(), samples=3500)
    with pytest.raises(UserError, match="EVAL.split"):
        sound_sets.open_sets(["speech"], SPEC, evaluation.replace(split="tset"), samples=3500)
