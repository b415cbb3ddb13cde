"""Atari clips: the clock, the merging of frames, and processes that fail."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest

from poet.evaluation.sets import atari
from poet.spec import ClipSpec, UserError

needs_ale = pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None, reason="needs ale-py: pip install -e '.[atari]'"
)


def counted_frames():
    """Frame k has the level k % 256 in its first channel and k // 256 in its second."""
    return (np.broadcast_to(np.uint8([k % 256, k // 256, 0]), (210, 160, 3)) for k in itertools.count())


@pytest.mark.parametrize("rate_hz", [8.0, 10.0, 60.0])
def test_frames_are_those_nearest_in_time(rate_hz: float) -> None:
    spec = ClipSpec(frames=17, height=16, width=16, rate_hz=rate_hz)
    frames = counted_frames()
    for start in (0, None):
        video = atari._clip(frames, spec)
        shown = video[:, 8, 8].astype(int) @ [1, 256, 0]
        start = shown[0] if start is None else start
        assert np.abs(shown - start - np.arange(17) * 60 / rate_hz).max() <= 0.5


class Console:
    """Draws one of two objects in every other frame, and ends every third game frame."""

    def __init__(self) -> None:
        self.frame, self.resets = 0, 0

    def getMinimalActionSet(self) -> list[int]:
        return [0]

    def getScreenRGB(self) -> np.ndarray:
        screen = np.zeros((4, 4, 3), np.uint8)
        screen[self.frame % 2] = 100
        return screen

    def act(self, action: int) -> None:
        self.frame += 1

    def game_over(self) -> bool:
        return self.frame % 3 == 2

    def reset_game(self) -> None:
        self.resets += 1


def test_objects_drawn_in_turns_are_all_seen_and_lost_games_start_again() -> None:
    console = Console()
    frames = list(itertools.islice(atari._frames(console, np.random.default_rng(0)), 30))
    assert all((frame[:2] == 100).all() and not frame[2:].any() for frame in frames)
    assert console.resets == 10


@needs_ale
def test_clips_repeat_and_a_game_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    spec = ClipSpec(frames=5, height=32, width=48)
    clips = atari.render(spec, 4, games=("seaquest", "no_such_game"))
    assert clips.shape == (2, 5, 32, 48, 3) and clips.dtype == np.uint8
    assert "no_such_game" in caplog.text
    assert (clips[0] != clips[1]).any() and (clips[0, 0] != clips[0, -1]).any()
    assert np.array_equal(clips, atari.play("seaquest", 2, spec))


@needs_ale
def test_no_game_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="none of the games no_such_game"):
        atari.render(ClipSpec(frames=5, height=32, width=32), 1, games=("no_such_game",))


def test_rates_beyond_the_console_are_refused() -> None:
    with pytest.raises(UserError, match="rate_hz = 120"):
        atari.render(ClipSpec(rate_hz=120.0), 1)
