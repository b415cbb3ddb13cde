"""How a film is cut into clips: every frame once, whatever the tokenizer's factor and the clip's length."""

from __future__ import annotations

import itertools

import pytest
from film_fakes import tiny

from poet.sampling.films.windows import Windows
from poet.spec import UserError
from poet.tasks.resolved import Resolved

PAPER = Windows(
    latents=5, context=3, factor=4, rate_hz=8.0, hop=320, audio_frames=106, known_audio=(0, 6, 31, 56, 81, 106)
)


def test_the_paper_s_recipe():
    assert (PAPER.clip_frames, PAPER.frames_of(3), PAPER.new_frames(3)) == (17, 9, 8)
    assert PAPER.frames_in(24.0) == 192 and PAPER.clips_for(192) == 1 + 22
    assert PAPER.carries_sound and PAPER.sample_of(9) == 18_000


@pytest.mark.parametrize("latents, context, factor", [*itertools.product((2, 5, 11), (1, 3), (1, 2, 4))])
def test_every_frame_comes_once(latents: int, context: int, factor: int):
    if context >= latents:
        with pytest.raises(UserError, match="context"):
            Windows(latents=latents, context=context, factor=factor, rate_hz=8.0)
        return
    windows = Windows(latents=latents, context=context, factor=factor, rate_hz=8.0)
    shown: list[int] = []
    for _ in range(windows.clips_for(50)):
        given = windows.given_of(len(shown))
        start = len(shown) - windows.frames_of(given)  # The frame of the film with which the clip opens.
        clip = range(start, start + windows.clip_frames)
        assert list(clip[: windows.frames_of(given)]) == shown[start:]
        shown += clip[windows.frames_of(given) :]
    assert shown == list(range(len(shown))) and 50 <= len(shown) < 50 + windows.clip_frames


def test_a_run_gives_its_windows_and_short_openings_what_they_hold():
    windows = Windows.of(Resolved(tiny.EXPERIMENT))
    assert (windows.latents, windows.context, windows.factor) == (3, 2, 2) and not windows.hop
    assert [PAPER.given_of(n) for n in (0, 1, 4, 5, 8, 9, 100)] == [0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(UserError, match="positive time"):
        PAPER.frames_in(0)
