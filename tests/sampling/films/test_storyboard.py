"""Storyboards and prompts by time: what is written is what is read, and what cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from poet.sampling.films import camera, storyboard
from poet.sampling.films.prompts import Schedule
from poet.spec import PromptSpec, UserError

TEXT = """
seed: 7
sound: true
suffix: highly detailed.
scenes:
  - prompt: a dog runs.
    seconds: 4
    camera: pan left
  - prompt: it begins to rain
    transition: continue
    sound_prompt: rain
  - a cat sleeps
"""


def test_a_storyboard_is_read_and_written():
    board = storyboard.parse(TEXT)
    assert storyboard.parse(storyboard.write(board)) == board
    assert [scene.transition for scene in board.scenes] == ["cut", "continue", "cut"]
    assert board.prompt(board.scenes[0]) == "a dog runs, the camera pans left, highly detailed"
    assert board.prompt(board.scenes[0], {"pan left": "turns left"}) == "a dog runs, turns left, highly detailed"
    assert board.seed_of(board.scenes[0]) == 7 and board.seed_of(board.scenes[0].replace(seed=2)) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        (("seconds: 4", "secons: 4"), "scene 1 has the unknown field 'secons'.*did you mean seconds"),
        (("sound: true", "sounds: true"), "it has the unknown field 'sounds'.*did you mean sound"),
        (("pan left", "pan lft"), "scene 1: unknown camera movement 'pan lft'.*did you mean pan left"),
        (("transition: continue", "transition: fade"), "scene 2: scene.transition = 'fade'.*cut, continue"),
        (("seconds: 4", "seconds: -1"), "scene 1: scene.seconds = -1.0: must lie in"),
        (("seconds: 4", "seconds: a lot"), "scene 1: scene.seconds = 'a lot': expected a number"),
        (("seconds: 4", "transition: continue"), "storyboard.scenes.*first scene cannot continue another"),
        (("sound_prompt: rain", "clip: a.mp4"), "scene 2: scene.clip = 'a.mp4'.*opens with its end"),
        (("seconds: 4", "frame: a.png\n    clip: b.mp4"), "scene 1: scene.clip.*not both"),
        (("scenes:", "scene:"), "expected fields"),
        (("seed: 7", "seed: [7"), "not YAML"),
        (("- a cat sleeps", "- 3"), "scene 3 is 3"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: tuple[str, str], message: str, tmp_path: Path):
    (tmp_path / "b.yaml").write_text(TEXT.replace(*change))
    with pytest.raises(UserError, match=f"(?s)b.yaml: .*{message}"):
        storyboard.read(tmp_path / "b.yaml")


def test_plain_lines_continue_but_behind_dashes(tmp_path: Path):
    (tmp_path / "story.txt").write_text("a dog runs\n\nit rains\n---\na cat\n")
    board = storyboard.read(tmp_path / "story.txt")
    assert [(s.prompt, s.transition, s.seconds) for s in board.scenes] == [
        ("a dog runs", "cut", 5.0),
        ("it rains", "continue", 5.0),
        ("a cat", "cut", 5.0),
    ]
    (tmp_path / "b.yaml").write_text("scenes: [{prompt: a, frame: x.png}]")
    assert storyboard.read(tmp_path / "b.yaml").scenes[0].frame == str(tmp_path / "x.png")
    (tmp_path / "story.txt").write_text("---\n")
    with pytest.raises(UserError, match="no prompt"):
        storyboard.read(tmp_path / "story.txt")
    with pytest.raises(UserError, match="no such file"):
        storyboard.read(tmp_path / "none.yaml")


def test_prompts_change_by_time():
    schedule = Schedule.parse(["3: it rains", "a dog: it runs", "10.5: night"])
    assert [schedule.at(s) for s in (0, 2.9, 3, 10.4, 99)] == ["a dog: it runs"] * 2 + ["it rains"] * 2 + ["night"]
    assert Schedule.parse([]).at(3) == ""
    schedule.check_length(11)
    for texts, message in (
        (["3: a"], "first prompt begins at 3 s"),
        (["a", "0: b"], "two prompts"),
        (["0: "], "empty"),
    ):
        with pytest.raises(UserError, match=message):
            Schedule.parse(texts)
    with pytest.raises(UserError, match="begins at 10.5 s of a film of 5 s"):
        schedule.check_length(5)
    spoken = PromptSpec(suffix="by night", negative="noise")
    assert (
        spoken.complete("a dog.", "", "zoom in", " ") == "a dog, zoom in, by night"
        and spoken.complete(" ", "zoom in") == ""
    )
    assert [spoken.negative_for(*asked) for asked in ((True,), (True, "cats"), (False,))] == ["noise", "cats", ""]


def texture(size: int) -> np.ndarray:
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


@pytest.mark.parametrize(
    "name, step",
    [
        ("pan left", (-2, 0, 1)),
        ("pan right", (2, 0, 1)),
        ("tilt up", (0, -2, 1)),
        ("tilt down", (0, 2, 1)),
        ("zoom in", (0, 0, 1.04)),
        ("dolly out", (0, 0, 1 / 1.04)),
        ("static", (0, 0, 1)),
    ],
)
def test_the_flow_tells_how_the_camera_moves(name: str, step: tuple[float, float, float]):
    """A view of 64x64 that goes over a still picture; `step`: how it moves right and down, and what it grows by."""
    import cv2

    picture, frames = texture(192), []
    x, y, scale = step
    for k in range(6):
        matrix = np.array([[1 / scale**k, 0, 96 + x * k], [0, 1 / scale**k, 96 + y * k]]) @ np.array(
            [[1, 0, -32], [0, 1, -32], [0, 0, 1]], float
        )
        frames.append(cv2.warpAffine(picture, matrix, (64, 64), flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR))
    found = camera.motion(np.stack(frames))
    assert found.agrees(name)
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up", "in": "out", "out": "in"}
    kind, _, way = name.partition(" ")
    if way:
        assert not found.agrees(f"{kind} {opposite[way]}")
        assert abs(getattr(found, camera.MOVES[name].axis)) == pytest.approx(2 if scale == 1 else 1.3, rel=0.4)
