"""Records of films: each kind is made again from `generation.json` alone, to the same bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import film_fakes
import numpy as np
import pytest
import tiny

from poet import media
from poet.sampling import record
from poet.sampling.films import chain, storyboard
from poet.sampling.films.edit import Session
from poet.sampling.films.long import LongFilm
from poet.sampling.films.sampler import FilmSampler, Wish
from poet.sampling.films.studio import Studio
from poet.spec import UserError, to_dict


@pytest.fixture
def studio() -> Studio:
    """Of silent films, over the tiny generator."""
    generator, ways = film_fakes.generator(), {"context": 3}
    found = Studio(tiny.RUN, generator.resolved, (), ways)
    found.__dict__.update(sampler=FilmSampler(generator, **ways), made_by={"checkpoint": "tiny"})
    return found


@pytest.fixture
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A picture that is named from the current folder."""
    monkeypatch.chdir(tmp_path)
    media.write_png_strip("still.png", np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8))
    return "still.png"


def requests(still: str) -> dict[str, Mapping[str, Any]]:
    scenes = [
        {"prompt": "a dog", "seconds": 0.5, "frame": str(Path(still).absolute())},
        {"prompt": "a cat", "seconds": 0.36},
    ]
    jobs = [{"task": "image_to_video", "prompt": "it runs"}, {"task": "long", "prompt": "it rains", "seconds": 0.5}]
    return {
        "long": dataclasses.asdict(LongFilm(prompts=("a dog", "0.4: it rains"), seconds=0.6, opening=still, seed=4)),
        "storyboard": to_dict(storyboard.parse(json.dumps({"scenes": scenes, "suffix": "by night"}))),
        "chain": {"jobs": [to_dict(chain.Job(**job)) for job in jobs], "clip": still},
    }


@pytest.mark.parametrize("kind", ["long", "storyboard", "chain"])
def test_a_film_is_made_again_from_its_record(kind: str, studio: Studio, still: str, tmp_path: Path, monkeypatch):
    files = studio.make(kind, requests(still)[kind], tmp_path / "a")
    assert files[-1].name == record.NAME and all(path.is_file() for path in files)
    monkeypatch.chdir("/")  # Its inputs are found from anywhere.
    replay = record.read(str(tmp_path / "a"))
    record.check(replay, tiny.RUN)
    assert replay.film == kind and replay.files.keys() == {str(p.relative_to(tmp_path / "a")) for p in files[:-1]}
    again = studio.make(replay.film, replay.request, tmp_path / "b")
    assert record.differing(replay, again, tmp_path / "b") == []
    assert replay.made_with["watermark"] == "none: 16x16 pixels are too few, the shorter side needs 128"
    (tmp_path / "b" / files[0].relative_to(tmp_path / "a")).write_bytes(b"other")
    assert record.differing(replay, again, tmp_path / "b") == [str(files[0].relative_to(tmp_path / "a"))]
    (tmp_path / still).unlink()
    with pytest.raises(UserError, match="still.png, which is gone"):
        record.check(replay, tiny.RUN)


def test_the_film_of_a_session_is_made_again_from_its_record(studio: Studio, tmp_path: Path):
    session = Session.create(tmp_path / "s", studio.sampler, seed=5, sample=studio.sample, made_by=studio.made_by)
    session.choose(session.propose([Wish(prompt="a dog"), Wish(prompt="a cat")])[1])
    studio.recorded("edit", session.request, tmp_path / "s", session.write())
    session.propose([Wish(prompt="smoke")])  # What follows does not change what was written.
    replay = record.read(str(tmp_path / "s"))
    record.check(replay, tiny.RUN)
    again = studio.make(replay.film, replay.request, tmp_path / "again")
    assert record.differing(replay, again, tmp_path / "again") == [] and replay.files
