"""Sources: what is read, in which order, and how damage is told."""

from __future__ import annotations

import pathlib
import pickle

import numpy as np
import pytest
import store_fakes as fakes

from poet import media
from poet.spec import UserError
from poet.store.raw import RawClip, Skipped
from poet.store.sources import open_source

CLIP = fakes.CLIP


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tfds") / "1.0.0"
    train = [fakes.flat_video(10 * k) for k in range(20)]
    # One frame too many, twice the side; and one clip that is too short.
    other = [fakes.flat_video(5, frames=6, side=32), fakes.flat_video(6, frames=4, side=32)]
    fakes.write_tfds(folder, {"train": train})
    fakes.write_tfds(folder.parent / "other", {"test": other}, samples=100)
    return folder


def test_tfds_items_keep_the_order_of_the_files(tfds_folder: pathlib.Path) -> None:
    source = open_source(str(tfds_folder), "train", CLIP)
    clips = list(source.read(0, len(source)))
    assert [clip.key for clip in clips] == [f"train/{k}" for k in range(20)]
    assert [clip.caption for clip in clips] == [f"text {k}" for k in range(20)]
    for k, clip in enumerate(clips):
        assert np.array_equal(clip.video, fakes.flat_video(10 * k))
        assert np.array_equal(clip.audio, np.full(CLIP.samples, k, np.int16))


@pytest.mark.parametrize("start, stop", [(0, 3), (5, 16), (19, 20)])
def test_tfds_ranges_cross_files(tfds_folder: pathlib.Path, start: int, stop: int) -> None:
    source = pickle.loads(pickle.dumps(open_source(str(tfds_folder), "train", CLIP)))
    assert [c.key for c in source.read(start, stop)] == [f"train/{k}" for k in range(start, stop)]


def test_tfds_clips_of_another_size_are_fitted_or_skipped(tfds_folder: pathlib.Path) -> None:
    long, short = open_source(str(tfds_folder.parent / "other"), "test", CLIP).read(0, 2)
    assert np.array_equal(long.video, fakes.flat_video(5))
    assert long.audio.shape == (CLIP.samples,) and not long.audio[100:].any()
    assert short == Skipped(key="test/1", reason="too short: 4 frames, 5 needed")


def test_tfds_file_cut_at_a_record_is_an_error(tmp_path: pathlib.Path) -> None:
    fakes.write_tfds(tmp_path / "d", {"train": [fakes.flat_video(k) for k in range(4)]})
    (file,) = (tmp_path / "d").glob("*tfrecord*")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 4 * 3])
    source = open_source(str(tmp_path / "d"), "train", CLIP)
    with pytest.raises(UserError, match="at train clip 3: Input dataset .* 4 elements but"):
        list(source.read(0, 4))
    file.write_bytes(whole[: len(whole) // 4 * 3 - 10])
    with pytest.raises(UserError, match="damaged at train clip 2"):
        list(source.read(0, 4))


def test_folder_gives_captions_in_the_order_of_the_lines(tmp_path: pathlib.Path) -> None:
    fakes.write_folder(tmp_path, [200, 40, 120], split="train", prefix="b")
    fakes.write_folder(tmp_path, [80], split="test", prefix="a")
    train = open_source(str(tmp_path), "train", CLIP)
    assert [c.caption for c in train.read(0, 3)] == ["grey 200", "grey 40", "grey 120"]
    assert [round(c.video.mean() / 40) for c in train.read(0, 3)] == [5, 1, 3]
    (only,) = open_source(str(tmp_path), "test", CLIP).read(0, 1)
    assert (only.key, only.caption, only.audio) == ("a_000.mp4", "grey 80", None)


def test_folder_without_captions_lists_its_media(tmp_path: pathlib.Path) -> None:
    for name in ("z.mp4", "deep/er/A.MP4", "a.gif", ".hidden.mp4", "notes.txt"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gif"):
            media.write_gif(target, fakes.flat_video(0), CLIP.rate_hz)
        else:
            media.write_mp4(target, fakes.flat_video(0), CLIP.rate_hz)
    clips = list(open_source(str(tmp_path), "train", CLIP).read(0, 3))
    assert [c.key for c in clips] == ["a.gif", "deep/er/A.MP4", "z.mp4"]
    (note,) = open_source(str(tmp_path), "train", CLIP).notes
    assert "2 files are not read" in note and ".txt 1 (notes.txt)" in note
    assert "hidden 1 (.hidden.mp4)" in note
    assert {c.caption for c in clips} == {""}
    assert all(isinstance(c, RawClip) for c in clips)


def test_damaged_media_is_skipped_in_its_place(tmp_path: pathlib.Path) -> None:
    fakes.write_folder(tmp_path, [10, 20, 30])
    (tmp_path / "clip_001.mp4").write_bytes(b"no video")
    first, broken, last = open_source(str(tmp_path), "train", CLIP).read(0, 3)
    assert (first.key, last.key) == ("clip_000.mp4", "clip_002.mp4")
    assert isinstance(broken, Skipped) and broken.key == "clip_001.mp4"
    assert broken.reason.startswith("undecodable")


def test_unknown_places_and_splits_list_what_exists(tmp_path: pathlib.Path, tfds_folder: pathlib.Path) -> None:
    fakes.write_folder(tmp_path / "clips", [1], split="train")
    (tmp_path / "empty").mkdir()
    for path, split, message in (
        (tmp_path / "clip", "train", "is not a folder.*did you mean clips"),
        (tmp_path / "clips", "validation", "no split 'validation'; it has train"),
        (tfds_folder, "valid", "no split 'valid'; it has train"),
        (tfds_folder.parent, "train", "give one: .*1.0.0"),
        (tmp_path / "empty", "train", "neither a TFDS folder .* nor a folder of media"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(str(path), split, CLIP)


def test_fingerprint_follows_the_items(tmp_path: pathlib.Path) -> None:
    def fingerprint() -> str:
        return open_source(str(tmp_path), "train", CLIP).fingerprint

    fakes.write_folder(tmp_path, [10, 20])
    before = fingerprint()
    assert fingerprint() == before
    lines = (tmp_path / "captions.jsonl").read_text()
    (tmp_path / "captions.jsonl").write_text(lines.replace("grey 10", "grey 11"))
    assert fingerprint() != before
    (tmp_path / "captions.jsonl").write_text(lines)
    assert fingerprint() == before
    media.write_mp4(tmp_path / "clip_000.mp4", fakes.flat_video(10, frames=9), CLIP.rate_hz)
    assert fingerprint() != before
