"""Films of an export: the clips of the process, continued by programs that code latent frame by latent frame."""

from __future__ import annotations

import exports
import numpy as np
import pytest

from poet.sampling.films.sampler import FilmSampler, Wish
from poet.serving.runtime import Runtime
from poet.spec import SampleSpec, UserError

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
OPENING = RNG.integers(0, 256, (5, 16, 16, 3)).astype(np.uint8), RNG.integers(-8000, 8000, 5000).astype(np.int16)
TASKS = ("text_to_video_with_audio", "frame_prediction")
# What one program and another make of the same codes may round to neighbouring values.
ROUNDING = 1


@pytest.fixture(scope="module")
def generator():
    return exports.generator(SampleSpec(seed=3))


@pytest.fixture(scope="module")
def runtime(generator, tmp_path_factory):
    return Runtime.load(exports.export(generator, tmp_path_factory.mktemp("export") / "films", *TASKS))


@pytest.mark.parametrize("recode", [False, True])
def test_an_export_makes_the_film_of_the_process(generator, runtime, recode):
    def film(sampler):
        made = [sampler.begin(*OPENING)]
        for number in range(3):
            made += sampler.go_on(made[-1], [Wish(prompt="a red door")], seed=5, number=number)
        return made

    found, wanted = (film(FilmSampler(each, has_audio=True, recode=recode)) for each in (runtime, generator))
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours.video, theirs.video)
        np.testing.assert_array_equal(ours.audio, theirs.audio)
        np.testing.assert_allclose(ours.frames.astype(int), theirs.frames, atol=ROUNDING)
        np.testing.assert_allclose(ours.samples.astype(int), theirs.samples, atol=ROUNDING)
        np.testing.assert_allclose(ours.rest.astype(int), theirs.rest, atol=ROUNDING)


def test_a_silent_film_may_begin_with_nothing_but_frames(generator, runtime):
    pair = []
    for each in (runtime, generator):
        sampler = FilmSampler(each)
        piece = sampler.begin(OPENING[0][:1])
        pair.append(sampler.go_on(piece, [Wish()] * 2, seed=1, number=0))
    for ours, theirs in zip(*pair, strict=True):
        np.testing.assert_array_equal(ours.video, theirs.video)


def test_an_export_without_films_says_so(generator, tmp_path):
    folder = exports.export(generator, tmp_path / "export", "frame_prediction", films=False)
    with pytest.raises(UserError, match=r"export the checkpoint again with EXPORT.films = True"):
        FilmSampler(Runtime.load(folder)).begin(OPENING[0])
