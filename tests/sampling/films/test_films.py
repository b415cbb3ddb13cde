"""Films in folders: resumed, extended, changed scene by scene, edited by choosing; each the same whichever way."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from film_fakes import SAMPLE, generator

from poet import media
from poet.media.joining import open_film_writer
from poet.sampling.films import long, scenes, storyboard
from poet.sampling.films.edit import Session
from poet.sampling.films.folder import FilmFolder, faded
from poet.sampling.films.sampler import FilmSampler, Wish
from poet.sampling.films.terminal import Terminal
from poet.spec import UserError

MADE_BY = {"checkpoint": "tiny"}


@pytest.fixture(scope="module")
def sampler() -> FilmSampler:
    return FilmSampler(generator(), has_audio=True, context=3)


@pytest.fixture(scope="module")
def silent() -> FilmSampler:
    return FilmSampler(generator(), context=3)


def clips_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "clips").iterdir())}


def counts(path: Path) -> tuple[int, float]:
    """(frames, seconds of sound) of an mp4."""
    with av.open(str(path)) as file:
        frames = sum(1 for _ in file.decode(video=0))
    with av.open(str(path)) as file:
        samples = sum(f.samples for f in file.decode(audio=0)) if file.streams.audio else 0
        return frames, samples / (file.streams.audio[0].rate if file.streams.audio else 1)


def test_a_film_is_extended_where_it_ended(sampler: FilmSampler, tmp_path: Path):
    wanted = long.LongFilm(prompts=("a dog", "0.5: a cat"), seconds=0.6, seed=4)
    asked = dict(made_by=MADE_BY, sample=SAMPLE)
    film, sheet = long.make(sampler, wanted, tmp_path / "whole", **asked)
    assert counts(film) == (15, pytest.approx(0.6, abs=0.15)) and sheet.exists()
    short = wanted.replace(seconds=0.55)
    long.make(sampler, short, tmp_path / "parts", **asked)
    (tmp_path / "parts/clips/00003.npz").unlink()  # As if it was killed in its second clip.
    long.make(sampler, wanted, tmp_path / "parts", **asked)
    assert clips_of(tmp_path / "parts") == clips_of(tmp_path / "whole")
    with pytest.raises(UserError, match="another film: its seed is 4, requested is 5"):
        long.make(sampler, wanted.replace(seed=5), tmp_path / "parts", **asked)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep")
    with pytest.raises(UserError, match="holds no film"):
        long.make(sampler, wanted, tmp_path / "mine", **asked)


def test_a_prompt_changes_what_follows_alone(silent: FilmSampler, tmp_path: Path):
    asked = dict(made_by=MADE_BY, sample=SAMPLE)
    for name, prompts in (("one", ("a dog",)), ("two", ("a dog", "0.4: smoke and a cat"))):
        long.make(silent, long.LongFilm(prompts=prompts, seconds=0.6), tmp_path / name, **asked)
    one, two = clips_of(tmp_path / "one"), clips_of(tmp_path / "two")
    assert [one[name] == two[name] for name in sorted(one)] == [True, True, False, False]


def test_an_opening_is_kept_frame_by_frame(silent: FilmSampler, tmp_path: Path):
    video = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    media.write_gif(tmp_path / "given.gif", np.repeat(video, 4, axis=0), 100)
    wanted = long.LongFilm(seconds=0.5, opening=str(tmp_path / "given.gif"))
    read, _ = long.read_opening(wanted.opening, silent.generator.resolved.spec.clip, has_audio=False)
    long.make(silent, wanted, tmp_path / "film", made_by=MADE_BY, sample=SAMPLE)
    first = next(FilmFolder(tmp_path / "film").pieces())
    np.testing.assert_array_equal(first.frames, read)


STORY = """
sound: false
scenes:
  - {prompt: a dog, seconds: 0.4}
  - {prompt: a cat, seconds: 0.2, transition: continue}
  - {prompt: rain, seconds: 0.4}
  - {prompt: rain, seconds: 0.4}
"""


def test_a_changed_scene_is_made_anew_with_those_that_continue_it(silent: FilmSampler, tmp_path: Path):
    board, asked = storyboard.parse(STORY), dict(made_by=MADE_BY, sample=SAMPLE)
    film, *_ = scenes.make(silent, board, tmp_path, **asked)
    assert counts(film)[0] == 10 + 5 + 10 + 10
    keys = [shot.key for take in scenes.shots(board, silent, {}) for shot in take]
    assert len(set(keys)) == 4

    def kept(text: str) -> list[bool]:
        changed = [shot.key for take in scenes.shots(storyboard.parse(text), silent, {}) for shot in take]
        return [new == old for new, old in zip(changed, keys)]

    assert kept(STORY.replace("a dog", "a fox")) == [False, False, True, True]
    assert kept(STORY.replace("a cat", "a fox")) == [True, False, True, True]
    assert kept(STORY.replace("rain, seconds: 0.4}\n", "rain, seconds: 0.8}\n", 1)) == [True, True, False, False]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("scenes/*/clips/*")}
    scenes.make(silent, storyboard.parse(STORY.replace("a cat", "a fox")), tmp_path, **asked)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("scenes/*/clips/*")}
    assert before.items() <= after.items() and {path.parents[1] for path in after.keys() - before.keys()} != set()
    (tmp_path / "letter.txt").write_text("keep")
    with pytest.raises(UserError, match="not the folder of a storyboard's film.*letter.txt"):
        scenes.make(silent, board, tmp_path, **asked)


def test_continued_scenes_are_one_film(silent: FilmSampler, tmp_path: Path):
    """Two scenes of one text beside a film of the same time: as many frames, no seam in the stream of codes."""
    text = "scenes: [{prompt: a dog, seconds: 0.4}, {prompt: a dog, seconds: 0.2, transition: continue}]"
    board = storyboard.parse(text)
    scenes.make(silent, board, tmp_path, made_by=MADE_BY, sample=SAMPLE)
    (take,) = scenes.shots(board, silent, {"sample": SAMPLE.noise, "made_by": {**MADE_BY, **silent.made_by}})
    made = [p for shot in take for p in FilmFolder(tmp_path / "scenes" / shot.key).pieces()]
    frames, video = np.concatenate([p.frames for p in made]), np.concatenate([p.video for p in made])
    np.testing.assert_array_equal(silent.pictures.tokenizer.decode(video[None])[0], frames)
    assert 15 <= len(frames) < 15 + silent.windows.new_frames(3)


def test_a_session_resumes_branches_and_replays(sampler: FilmSampler, tmp_path: Path):
    rng = np.random.default_rng(1)
    video, sound = rng.integers(0, 256, (6, 16, 16, 3), np.uint8), rng.integers(-5000, 5000, 1920).astype(np.int16)
    asked = dict(sample=SAMPLE, made_by=MADE_BY)
    session = Session.create(tmp_path / "s", sampler, video=video, sound=sound, seed=9, **asked)
    first = session.propose([Wish(prompt="a dog")] * 2 + [Wish(prompt="a cat")])
    assert first == [1, 2, 3] and (tmp_path / "s/sheet.png").exists()
    session.choose(2)
    opened = Session.open(tmp_path / "s", sampler, **asked)  # As after a restart.
    (after,) = opened.propose([Wish(prompt="it rains")])
    assert opened.path(after) == [0, 2, 4]
    frames, samples = opened.film(after)
    np.testing.assert_array_equal(frames[:6], video)
    assert len(samples) == sampler.windows.sample_of(len(frames))
    (branch,) = opened.propose([Wish(prompt="smoke")], at=8, node=after)
    np.testing.assert_array_equal(opened.film(branch)[0][:8], frames[:8])
    opened.choose(branch)
    assert opened.undo() == after and opened.undo() == 2 and opened.undo() == 0
    with pytest.raises(UserError, match="nothing to undo"):
        opened.undo()
    again = Session.remade(tmp_path / "again", sampler, opened.request, **asked)
    assert again.fixed == opened.fixed and again.current == opened.current
    assert clips_of(tmp_path / "again") == clips_of(tmp_path / "s") and again.nodes == opened.nodes
    with pytest.raises(UserError, match="another film"):
        Session.open(tmp_path / "s", sampler, sample=SAMPLE, made_by={"checkpoint": "other"})
    with pytest.raises(UserError, match="is not empty"):
        Session.create(tmp_path / "s", sampler)
    with pytest.raises(UserError, match="there is no clip 77"):
        opened.choose(77)


def test_a_terminal_does_what_it_is_told(silent: FilmSampler, tmp_path: Path):
    session = Session.create(tmp_path / "s", silent, sample=SAMPLE)
    said: list[str] = []
    lines = [
        "help",
        "say a dog | a cat",
        "2",
        "count 0",
        "count 2",
        "camera pan lft",
        "camera pan left",
        "more",
        "at 99",
        "at 3",
        "more",
        "4",
        "undo",
        "tree",
        "film",
        "jump",
        "quit",
        "1",
    ]
    Terminal(session, count=2).run(lines, said.append)
    text = "\n".join(said)
    for part in (
        "candidates 1..2",
        "clip 2: a film of 9 frames, 0.36 s",
        "give a number in 1..64",
        "did you mean pan left",
        "give a number of frames in 1..9",
        "begin after frame 3 of 9",
        "film.mp4",
        "unknown command 'jump'",
        "cut after",
    ):
        assert part in text, part
    assert session.nodes[3].wish.prompt == "a dog, the camera pans left" and session.current == 2


def test_a_written_film_is_the_one_that_came_in_pieces(tmp_path: Path):
    rng = np.random.default_rng(0)
    video = np.repeat(rng.integers(0, 256, (12, 1, 1, 3), np.uint8), 16, 1).repeat(16, 2)
    sound = (8000 * np.sin(np.arange(24_000) / 9)).astype(np.int16)
    with open_film_writer(tmp_path / "f.mp4", 16, 16, 8.0, 16_000) as writer:
        for start in range(0, 12, 5):
            writer.add(video[start : start + 5], sound[start * 2000 : (start + 5) * 2000])
    media.write_mp4(tmp_path / "w.mp4", video, 8.0, sound, 16_000)
    read = [media.read_clip(tmp_path / name, _format(12)) for name in ("f.mp4", "w.mp4")]
    np.testing.assert_array_equal(read[0].video, read[1].video)
    assert np.abs(read[0].audio[2000:22_000].astype(int) - sound[2000:22_000]).mean() < 200
    with pytest.raises(UserError, match="even sides"), open_film_writer(tmp_path / "o.mp4", 15, 16, 8.0):
        pass


def _format(frames: int):
    from poet.spec import ClipSpec

    return ClipSpec(frames=frames, height=16, width=16)


def test_sound_fades_at_cuts_alone():
    parts = [(np.zeros((1, 2, 2, 3), np.uint8), np.full(n, 1000, np.int16)) for n in (30, 3, 40)]
    for rise, fall in ((0, 0), (10, 0), (0, 10), (10, 10)):
        found = np.concatenate([samples for _, samples in faded(parts, rise, fall)])
        assert len(found) == 73 and (found[10:63] == 1000).all()
        assert (found[0] < 100) == bool(rise) and (found[-1] == 0) == bool(fall)
