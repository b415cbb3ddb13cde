"""Folders behind URLs: the clips, lines and errors of a plain folder."""

from __future__ import annotations

import pathlib
import sys
import tempfile
import uuid

import fsspec
import numpy as np
import pytest
import store_fakes as fakes

from poet.spec import IngestSpec, UserError
from poet.store.raw import RawClip, Skipped
from poet.store.sources import open_source

CLIP = fakes.CLIP


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("plain")
    fakes.write_folder(folder, [10, 200, 90])
    (folder / "clip_001.mp4").write_bytes(b"no video")
    return folder


def in_memory(folder: pathlib.Path) -> str:
    url = f"memory://{uuid.uuid4().hex}"
    for file in folder.rglob("*"):
        if file.is_file():
            with fsspec.open(f"{url}/{file.relative_to(folder).as_posix()}", "wb") as out:
                out.write(file.read_bytes())
    return url


def change(url: str, file: str, content: str) -> None:
    with fsspec.open(f"{url}/{file}", "w") as out:
        out.write(content)


@pytest.mark.parametrize("place", ["file", "memory"])
def test_a_url_gives_what_the_folder_gives(
    plain: pathlib.Path, place: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{plain}" if place == "file" else in_memory(plain)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source, expected = (open_source(path, "train", CLIP) for path in (url, str(plain)))
    assert source.fingerprint == expected.fingerprint and len(source) == 3
    for item, other in zip(source.read(0, 3), expected.read(0, 3), strict=True):
        assert type(item) is type(other) and item.key == other.key
        if isinstance(item, Skipped):
            assert item == other
        else:
            assert item.caption == other.caption and np.array_equal(item.video, other.video)
    assert not any(tmp_path.iterdir()), "copies go when they were read"


def test_without_captions_media_is_listed(plain: pathlib.Path) -> None:
    url = in_memory(plain)
    fsspec.filesystem("memory").rm(f"{url}/captions.jsonl")
    items = list(open_source(f"{url}/", "train", CLIP).read(0, 3))
    assert [item.key for item in items] == [f"clip_{k:03d}.mp4" for k in range(3)]
    assert isinstance(items[0], RawClip) and items[0].caption == ""


def test_broken_lines_and_missing_media_are_skipped_with_their_line(plain: pathlib.Path) -> None:
    url = in_memory(plain)
    lines = ['{"file": "clip_000.mp4"}', "{broken", '{"file": "absent.mp4"}', '{"file": "clip_000.mp4"}']
    change(url, "captions.jsonl", "\n".join(lines))
    first, *rest = open_source(url, "train", CLIP).read(0, 4)
    assert isinstance(first, RawClip)
    for number, (item, kind) in enumerate(
        zip(rest, ("broken caption", "no such file", "duplicate"), strict=True), start=2
    ):
        assert item.reason.startswith(f"{kind}: captions.jsonl line {number}: ")


def test_a_file_too_large_to_be_copied_is_skipped(plain: pathlib.Path) -> None:
    url = in_memory(plain)
    limit = (plain / "clip_000.mp4").stat().st_size / 1e9
    items = list(open_source(url, "train", CLIP, IngestSpec(max_copied_gb=limit)).read(0, 3))
    assert isinstance(items[0], RawClip)
    items = list(open_source(url, "train", CLIP, IngestSpec(max_copied_gb=0.9 * limit)).read(0, 3))
    assert items[0].reason.startswith("too large")


@pytest.mark.parametrize("protocol, driver, extra", [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
@pytest.mark.parametrize("file", ["", "/a-{0..3}.tar"])
def test_a_missing_driver_is_one_line_that_names_the_extra(
    protocol: str, driver: str, extra: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    known = sys.modules["fsspec.registry"]._registry  # what was loaded before
    monkeypatch.delitem(known, protocol, raising=False)
    with pytest.raises(UserError) as error:
        open_source(f"{protocol}://bucket/clips{file}", "train", CLIP)
    message = str(error.value)
    assert f"{protocol}://bucket/clips" in message and f".[{extra}]" in message
    assert "\n" not in message


def test_unknown_protocols_and_absent_folders_are_refused() -> None:
    with pytest.raises(UserError, match="'zz://a/b': Protocol not known"):
        open_source("zz://a/b", "train", CLIP)
    with pytest.raises(UserError, match="not a folder, or an empty one"):
        open_source(f"memory://{uuid.uuid4().hex}", "train", CLIP)


# ------------------------------------------------------------------------------------ TFDS by name


def test_a_prepared_data_set_is_found_by_name(tmp_path: pathlib.Path) -> None:
    videos = [fakes.flat_video(10 * k) for k in range(3)]
    fakes.write_tfds(tmp_path / "fake" / "1.0.0", {"train": videos})
    folder = open_source(str(tmp_path / "fake" / "1.0.0"), "train", CLIP)
    for name in ("tfds:fake", "tfds:fake:1.0.0"):
        named = open_source(name, "train", CLIP, data_dir=str(tmp_path))
        assert named == folder


def test_names_that_are_unknown_or_not_prepared_say_what_to_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no such data set.*STORE.data_dir"):
        open_source("tfds:no_such_set", "train", CLIP, data_dir=str(tmp_path))
    with pytest.raises(UserError, match="not prepared.*tfds build ucf101 --data_dir="):
        open_source("tfds:ucf101", "train", CLIP, data_dir=str(tmp_path))
