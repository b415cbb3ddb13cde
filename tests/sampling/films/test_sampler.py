"""Films that go on clip after clip: no seam, no frame twice, nothing lost in a file, and the same from any batch."""

from __future__ import annotations

from pathlib import Path

import film_fakes as fakes
import numpy as np
import pytest

from poet.sampling.films import pieces
from poet.sampling.films.sampler import FilmSampler, Wish, check_trained, task_for
from poet.sampling.generate import Generator
from poet.spec import UserError
from poet.tasks.resolved import Resolved

CLIPS = 4


def film(sampler: FilmSampler, *, clips: int = CLIPS, opening=None, prompt: str = "a dog") -> list[pieces.Piece]:
    made = [sampler.begin(*(opening or ()))]
    for number in range(clips):
        made += sampler.go_on(made[-1], [Wish(prompt=prompt)], seed=5, number=number)
    return made


def joined(sampler: FilmSampler, made: list[pieces.Piece]) -> tuple[np.ndarray, np.ndarray]:
    """(frames, samples) of a film."""
    return np.concatenate([p.frames for p in made]), np.concatenate([*(p.samples for p in made), made[-1].rest])


@pytest.fixture(scope="module")
def generator() -> Generator:
    return fakes.generator()


@pytest.fixture(scope="module")
def carried(generator: Generator) -> tuple[FilmSampler, list[pieces.Piece]]:
    sampler = FilmSampler(generator, has_audio=True, context=3)
    return sampler, film(sampler)


def test_a_film_of_carried_codes_is_one_stream(carried):
    """The frozen networks decode all codes at once: the film has these frames and samples, so it has no seam."""
    sampler, made = carried
    frames, samples = joined(sampler, made)
    assert len(frames) == 9 + 3 * sampler.windows.new_frames(3) == 21
    assert len(samples) == sampler.windows.sample_of(21)
    video = np.concatenate([p.video for p in made])
    np.testing.assert_array_equal(sampler.pictures.tokenizer.decode(video[None])[0], frames)
    audio = np.concatenate([p.audio for p in made], axis=1)
    np.testing.assert_array_equal(sampler.sounds.tokenizer.decode(audio[None])[0], samples)


def test_the_next_clip_is_given_the_codes_of_the_last(carried):
    sampler, made = carried
    video, audio = np.concatenate([p.video for p in made]), np.concatenate([p.audio for p in made], axis=1)
    np.testing.assert_array_equal(made[-1].end.given[1:], video[-2:])
    anchor = sampler.pictures.tokenizer.encode(np.concatenate([p.frames for p in made])[None, -5:-4])[0]
    np.testing.assert_array_equal(made[-1].end.given[:1], anchor)
    np.testing.assert_array_equal(made[-1].sound_end.given, audio[:, -sampler.windows.known_audio[3] :])


def test_recoding_gives_the_codes_of_the_last_frames(generator: Generator):
    sampler = FilmSampler(generator, has_audio=True, context=3, recode=True)
    made = film(sampler)
    frames, samples = joined(sampler, made)
    assert len(frames) == 21 and len(samples) == sampler.windows.sample_of(21)
    end = made[-1].end
    np.testing.assert_array_equal(end.given, sampler.pictures.tokenizer.encode(frames[None, -5:])[0])
    clip = np.concatenate([made[-2].end.given, made[-1].video])
    np.testing.assert_array_equal(sampler.pictures.tokenizer.decode(clip[None])[0][5:], made[-1].frames)


def test_a_sink_is_the_first_frame_s_own_code(generator: Generator):
    made = film(FilmSampler(generator, context=2, sink=True), clips=2)
    np.testing.assert_array_equal(made[-1].end.given[0], made[1].video[0])


@pytest.mark.parametrize("recode", [False, True])
@pytest.mark.parametrize("frames", [1, 4, 12])
def test_what_is_given_opens_a_film_as_it_is(generator: Generator, recode: bool, frames: int):
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (frames, 16, 16, 3), np.uint8)
    sampler = FilmSampler(generator, has_audio=True, context=3, recode=recode)
    sound = rng.integers(-9000, 9000, sampler.windows.sample_of(frames)).astype(np.int16)
    made = film(sampler, clips=2, opening=(video, sound), prompt="")
    found, samples = joined(sampler, made)
    np.testing.assert_array_equal(found[:frames], video)
    given = sampler.windows.given_of(frames)
    assert len(found) == frames + sampler.windows.new_frames(given) + sampler.windows.new_frames(3)
    assert len(samples) == sampler.windows.sample_of(len(found))
    fade = round(0.02 * sampler.windows.sample_rate_hz)
    kept = max(sampler.windows.sample_of(frames) - fade - sampler.windows.hop, 0)
    np.testing.assert_array_equal(samples[:kept], sound[:kept])


@pytest.mark.parametrize("recode", [False, True])
def test_a_film_goes_on_from_files(generator: Generator, tmp_path: Path, recode: bool):
    sampler = FilmSampler(generator, has_audio=True, context=3, recode=recode)
    made = film(sampler, clips=3)
    for number, piece in enumerate(made[:3]):
        pieces.save(tmp_path / f"{number}.npz", piece)
    last = sampler.resume(pieces.load(tmp_path / f"{number}.npz") for number in range(3))
    (again,) = sampler.go_on(last, [Wish(prompt="a dog")], seed=5, number=2)
    pieces.save(tmp_path / "a.npz", again)
    pieces.save(tmp_path / "b.npz", made[3])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-99])
    with pytest.raises(UserError, match="damaged"):
        pieces.load(tmp_path / "a.npz")


def test_candidates_differ_and_each_goes_on_by_itself(carried):
    sampler, made = carried
    wishes = [Wish(prompt="a dog"), Wish(prompt="a dog"), Wish(prompt="smoke and a cat")]
    found = sampler.go_on(made[1], wishes, seed=5, number=1)
    np.testing.assert_array_equal(found[0].video, made[2].video)
    assert len({p.video.tobytes() for p in found}) == 3
    (after,) = sampler.go_on(found[0], [Wish(prompt="a dog")], seed=5, number=2)
    np.testing.assert_array_equal(after.frames, made[3].frames)
    np.testing.assert_array_equal(after.samples, made[3].samples)


def test_what_cannot_be_made_is_refused(generator: Generator):
    assert task_for(True, True, 3) == "text_to_video_with_audio" and task_for(False, False, 1) == "frame_prediction"
    with pytest.raises(UserError, match="needs a prompt"):
        task_for(False, True, 0)
    with pytest.raises(UserError, match="no sound"):
        FilmSampler(fakes.tiny.generator(fakes.SAMPLE), has_audio=True)
    with pytest.raises(UserError, match="recode and sink"):
        FilmSampler(generator, recode=True, sink=True)
    with pytest.raises(UserError, match=r"expected uint8 \(T, 16, 16, 3\)"):
        FilmSampler(generator).begin(np.zeros((3, 16, 17, 3), np.uint8))
    data = generator.resolved.spec.data.replace(mixture_rates={"captioning": 1.0})
    with pytest.raises(UserError, match="needs the task frame_prediction.*trained on captioning"):
        check_trained(Resolved(generator.resolved.spec.replace(data=data)), "frame_prediction")
    piece = FilmSampler(generator).begin()
    with pytest.raises(UserError, match="negative prompt"):
        FilmSampler(generator).go_on(piece, [Wish(prompt="a", negative="b")], seed=0, number=0)
    with pytest.raises(UserError, match="all candidates have a prompt"):
        FilmSampler(generator).go_on(piece, [Wish(prompt="a"), Wish()], seed=0, number=0)
