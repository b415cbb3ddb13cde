"""The watermark of films: all that was made carries it, whichever clip it is of, and nothing that was given."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from film_fakes import SAMPLE, generator

from poet import media
from poet.media import watermark
from poet.sampling.films import chain, edit, folder, long, scenes, storyboard
from poet.sampling.films.sampler import FilmSampler, Wish

MADE_BY = {"checkpoint": "tiny"}
OFF = SAMPLE.replace(watermark=False)


@pytest.fixture(scope="module")
def sampler() -> FilmSampler:
    return FilmSampler(generator(), context=3)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Frames that go into films, which are too small for the mark to outlive H.264."""
    frames: list[np.ndarray] = []

    @contextlib.contextmanager
    def open_film_writer(*_: object) -> Iterator[SimpleNamespace]:
        frames.clear()
        yield SimpleNamespace(add=lambda new, samples: frames.extend(new))

    monkeypatch.setattr(watermark, "LEAST_SIDE", 16)
    monkeypatch.setattr(folder, "open_film_writer", open_film_writer)
    monkeypatch.setattr(media, "write_mp4", lambda path, video, *_: frames.extend(video))
    return frames


@pytest.fixture
def given(tmp_path: Path) -> str:
    video = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    media.write_gif(tmp_path / "given.gif", video, 25)
    return str(tmp_path / "given.gif")


def bits(frames: list[np.ndarray]) -> list[int]:
    return [watermark.find([frame]).bits for frame in frames]


def said(film: Path) -> str:
    return json.loads((film / folder.REQUEST).read_text())["watermark"]


def test_clips_of_a_long_film_are_marked_and_its_opening_is_not(sampler, written, given, tmp_path):
    wanted = long.LongFilm(seconds=0.9, opening=given)
    read, _ = long.read_opening(given, sampler.generator.resolved.spec.clip, has_audio=False)
    long.make(sampler, wanted, tmp_path / "film", made_by=MADE_BY, sample=SAMPLE)
    marked = list(written)
    assert "32 bits in the frames that were made" in said(tmp_path / "film")
    np.testing.assert_array_equal(marked[: len(read)], read)
    assert len(marked) > len(read) + 9 and min(bits(marked[len(read) :])) >= watermark.ENOUGH
    # The same folder: what it holds is what was sampled, whatever is written of it.
    long.make(sampler, wanted, tmp_path / "film", made_by=MADE_BY, sample=OFF)
    kept = np.concatenate([piece.frames for piece in folder.FilmFolder(tmp_path / "film").pieces()])
    np.testing.assert_array_equal(written, kept[: len(written)])
    assert said(tmp_path / "film") == "none: SAMPLE.watermark is off"
    assert max(bits(written)) < watermark.ENOUGH


def test_every_scene_is_marked_but_for_what_it_begins_with(sampler, written, given, tmp_path):
    (tmp_path / "story.yaml").write_text(
        f"scenes:\n  - {{prompt: a dog, seconds: 0.3}}\n  - {{prompt: rain, seconds: 0.5, clip: {given}}}\n"
    )
    board = storyboard.read(tmp_path / "story.yaml")
    scenes.make(sampler, board, tmp_path / "film", made_by=MADE_BY, sample=SAMPLE)
    assert "32 bits in the frames that were made" in said(tmp_path / "film")
    first = sampler.windows.frames_in(0.3)
    begun = len(long.read_opening(given, sampler.generator.resolved.spec.clip, has_audio=False)[0])
    found = bits(written)
    assert min(found[:first] + found[first + begun :]) >= watermark.ENOUGH
    assert max(found[first : first + begun]) < watermark.ENOUGH and len(found) > first + begun


def test_sessions_mark_what_was_chosen(sampler, written, tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    session = edit.Session.create(tmp_path / "s", sampler, video=video, sample=SAMPLE, made_by=MADE_BY)
    session.choose(session.propose([Wish(prompt="a dog")])[0])
    session.choose(session.propose([Wish(prompt="a cat")], at=session.frames() - 2)[0])
    session.write()
    np.testing.assert_array_equal(written[:9], video)
    assert min(bits(written[9:])) >= watermark.ENOUGH
    edit.Session.open(tmp_path / "s", sampler, sample=OFF, made_by=MADE_BY).write()
    assert max(bits(written)) < watermark.ENOUGH


def test_jobs_of_a_chain_mark_what_they_paint(sampler, written, tmp_path):
    with_audio = FilmSampler(generator(), has_audio=True, context=3)
    video = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    runner = chain.Chain(sampler, with_audio, SAMPLE, MADE_BY)
    sound, clip = chain.Job(task="video_to_audio"), chain.Job(task="frame_prediction")
    runner.run([sound], tmp_path / "out", chain.Made(video=video))
    np.testing.assert_array_equal(written, video)
    runner.run([sound, clip, sound], tmp_path / "out", chain.Made(video=video))
    assert min(bits(written[-18:])) >= watermark.ENOUGH
    written.clear()
    longer = chain.Job(task="long", seconds=0.7)
    runner.run([longer], tmp_path / "out", chain.Made(video=video))
    np.testing.assert_array_equal(written[:9], video)
    assert len(written) > 9 and min(bits(written[9:])) >= watermark.ENOUGH
