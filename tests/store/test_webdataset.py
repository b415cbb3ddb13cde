"""Tar shards: the clips of a plain folder, bit by bit, wherever the tars lie; damage is told."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import tarfile
import uuid
from collections.abc import Mapping

import fsspec
import numpy as np
import pytest
import store_fakes as fakes
from hypothesis import given
from hypothesis import strategies as st

from poet import media
from poet.spec import UserError
from poet.store import webdataset
from poet.store.raw import RawClip, Skipped
from poet.store.remote import copied
from poet.store.sources import open_source

CLIP = fakes.CLIP
LEVELS = (10, 200, 90, 150, 60)


def write_tar(path: pathlib.Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("plain")
    fakes.write_folder(folder, LEVELS)
    return folder


@pytest.fixture(scope="module")
def shards(plain: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two tars of three and two clips, with captions as text and as JSON."""
    folder = tmp_path_factory.mktemp("shards")
    members: list[dict[str, bytes]] = [{}, {}]
    for index, level in enumerate(LEVELS):
        tar = members[index // 3]
        name = f"part/{index % 3:04d}"  # each tar counts from 0, as WebDatasets may
        tar[f"{name}.mp4"] = (plain / f"clip_{index:03d}.mp4").read_bytes()
        if index % 2:
            tar[f"{name}.json"] = json.dumps({"caption": f"grey {level}"}).encode()
        else:
            tar[f"{name}.txt"] = f"grey {level}\n".encode()
    for number, content in enumerate(members):
        write_tar(folder / f"clips-{number:03d}.tar", content)
    return folder


def read_all(path: str, split: str = "train") -> list[RawClip | Skipped]:
    source = open_source(path, split, CLIP)
    return list(source.read(0, len(source)))


def as_memory(folder: pathlib.Path) -> str:
    name = f"memory://{uuid.uuid4().hex}"
    for file in folder.rglob("*.tar"):
        target = f"{name}/{file.relative_to(folder).as_posix()}"
        with fsspec.open(target, "wb") as out:
            out.write(file.read_bytes())
    return name


@pytest.mark.parametrize("form", ["{}", "{}/*.tar", "{}/clips-{{000..001}}.tar"])
@pytest.mark.parametrize("place", ["plain path", "file", "memory"])
def test_clips_are_those_of_the_plain_folder(plain: pathlib.Path, shards: pathlib.Path, form: str, place: str) -> None:
    root = {"plain path": str(shards), "file": f"file://{shards}"}.get(place) or as_memory(shards)
    clips, expected = read_all(form.format(root)), read_all(str(plain))
    assert [c.key for c in clips] == [f"clips-{i // 3:03d}/part/{i % 3:04d}" for i in range(5)]
    for clip, other in zip(clips, expected, strict=True):
        assert clip.caption == other.caption
        assert np.array_equal(clip.video, other.video) and clip.audio is other.audio is None


def test_ranges_of_a_pickled_source_cross_tars(shards: pathlib.Path) -> None:
    source = pickle.loads(pickle.dumps(open_source(str(shards), "train", CLIP)))
    whole = [c.key for c in source.read(0, 5)]
    assert [c.key for c in source.read(2, 4)] == whole[2:4]


def test_fingerprint_follows_the_members(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = open_source(str(shards), "train", CLIP).fingerprint
    assert open_source(as_memory(shards), "train", CLIP).fingerprint == before
    first = (shards / "clips-000.tar").read_bytes()
    (tmp_path / "clips-000.tar").write_bytes(first)
    assert open_source(str(tmp_path), "train", CLIP).fingerprint != before


def test_sound_of_its_own_file_begins_with_the_first_frame(plain: pathlib.Path, tmp_path: pathlib.Path) -> None:
    ramp = np.arange(CLIP.samples + 100, dtype=np.int16)
    media.write_wav(tmp_path / "ramp.wav", ramp, CLIP.sample_rate_hz)
    video, sound = (plain / "clip_000.mp4").read_bytes(), (tmp_path / "ramp.wav").read_bytes()
    write_tar(tmp_path / "d" / "a.tar", {"0.mp4": video, "0.wav": sound})
    (clip,) = read_all(str(tmp_path / "d"))
    assert np.array_equal(clip.audio, ramp[: CLIP.samples])


def test_names_tell_splits(plain: pathlib.Path, tmp_path: pathlib.Path) -> None:
    video = (plain / "clip_000.mp4").read_bytes()
    for name in ("train-0.tar", "validation-0.tar", "test/7.tar", "other-0.tar"):
        write_tar(tmp_path / name, {f"{name.removesuffix('.tar')}.mp4": video})
    found = {s: [c.key.split("/")[0] for c in read_all(str(tmp_path), s)] for s in webdataset.SPLITS}
    assert found == {"train": ["other-0", "train-0"], "validation": ["validation-0"], "test": ["test"]}
    with pytest.raises(UserError, match="no split 'valid'; it has test, train, validation"):
        open_source(str(tmp_path), "valid", CLIP)


def test_unusable_samples_are_skipped_in_their_place(plain: pathlib.Path, tmp_path: pathlib.Path) -> None:
    video = (plain / "clip_000.mp4").read_bytes()
    members = {
        "a.txt": b"no video",
        "b.mp4": b"no video either",
        "c.mp4": video,
        "c.json": b"{broken",
        "d.mp4": video,
        "d.txt": b"\xff",
        "e.mp4": video,
        "e.json": b'{"caption": 7}',
        "f.mp4": video,
        "f.seg.png": b"",
    }
    write_tar(tmp_path / "t.tar", members)
    *skipped, last = read_all(str(tmp_path / "t.tar"))
    assert [s.key for s in skipped] == [f"t/{name}" for name in "abcde"]
    reasons = [s.reason.split(":")[0] for s in skipped]
    assert reasons == ["no video", "undecodable", *["broken caption"] * 3]
    assert isinstance(last, RawClip) and last.key == "t/f" and last.caption == ""


def test_a_damaged_and_an_absent_tar_are_named(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    whole = (shards / "clips-000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 7])
    (tmp_path / "packed.tar.gz").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "packed.tgz").write_bytes(b"")
    for path, message in (
        (tmp_path / "cut.tar", "cut.tar is damaged"),
        (tmp_path / "absent-*.tar", "there is no file .*absent"),
        (tmp_path / "packed.tar.gz", "packed.tar.gz is compressed.*unpack it"),
        (tmp_path / "folder", "packed.tgz is compressed"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(str(path), "train", CLIP)


def test_odd_captions_are_mended_or_skipped_one_by_one(plain: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Before, each of these but the skipped ones stopped the ingest or lost its clip."""
    video = (plain / "clip_000.mp4").read_bytes()
    captions = {
        "half.json": (rb'{"caption": "a cat \ud83d"}', "a cat \ufffd"),
        "pair.json": (rb'{"caption": "\ud83d\ude00"}', "\U0001f600"),
        "null.json": (b'{"caption": null, "url": "u"}', ""),
        "text.json": (b'{"caption": null, "text": "t"}', "t"),
        "mark.txt": (b"\xef\xbb\xbfhello\r\n", "hello"),
        "wide.txt": ("h\xe9".encode("utf-16"), "h\xe9"),
        "deep.json": (b"[" * 100_000, None),
        "long.txt": (b"x" * (webdataset.MAX_CAPTION_BYTES + 1), None),
    }
    members = {}
    for name, (content, _) in captions.items():
        members |= {f"{name.split('.')[0]}.mp4": video, name: content}
    write_tar(tmp_path / "t.tar", members)
    for item, (name, (_, wanted)) in zip(read_all(str(tmp_path / "t.tar")), captions.items(), strict=True):
        assert item.key == f"t/{name.split('.')[0]}"
        if wanted is None:
            assert item.reason.startswith("broken caption: .")
        else:
            assert item.caption == wanted
            assert item.notes == (("caption repaired",) if name == "half.json" else ())


def test_names_keep_their_dots_and_what_is_of_no_sample_is_named(plain: pathlib.Path, tmp_path: pathlib.Path) -> None:
    video = (plain / "clip_000.mp4").read_bytes()
    members = {
        "clip v1.0.mp4": video,
        "clip v1.0.txt": b"zero",
        "clip v1.1.MP4": video,
        "clip v1.1.txt": b"one",
        "a.mp4": video,
        "a.depth.mp4": video,  # another view of a, by the convention of WebDatasets
        "a.gif": b"",
        "./b.mp4": video,
        "b.mp4": video,
        "caf\udce9.mp4": video,
        "._a.mp4": b"",
        "no_suffix": b"",
    }
    write_tar(tmp_path / "t.tar", members)
    source = open_source(str(tmp_path / "t.tar"), "train", CLIP)
    items = list(source.read(0, len(source)))
    assert [(i.key, getattr(i, "caption", None)) for i in items] == [
        ("t/clip v1.0", "zero"),
        ("t/clip v1.1", "one"),
        ("t/a", ""),
        ("t/b", None),
        ("t/caf\\udce9", ""),
    ]
    assert items[3].reason == "duplicate: the tar holds two members 'b.mp4'"
    (note,) = source.notes
    assert "4 files are not read" in note
    for name in ("a.depth.mp4", "a.gif", "._a.mp4", "no_suffix"):
        assert name in note


@pytest.mark.parametrize("name", ["clips[1].tar", "{a,b}.tar", "a::b.tar", "x.TAR", "caf\udce9.tar"])
def test_a_tar_that_exists_is_that_tar(shards: pathlib.Path, tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / "zip:" / name
    path.parent.mkdir()
    path.write_bytes((shards / "clips-000.tar").read_bytes())
    for named in (str(path), f"{tmp_path}/zip://{name}", str(path.parent)):
        assert [c.caption for c in read_all(named)] == ["grey 10", "grey 200", "grey 90"]


def test_what_lies_beside_tars_is_named(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.tar").write_bytes((shards / "clips-000.tar").read_bytes())
    (tmp_path / "lost.mp4").write_bytes(b"")
    (note,) = open_source(str(tmp_path), "train", CLIP).notes
    assert "1 files are not read" in note and "lost.mp4" in note


def test_sparse_and_huge_members_are_neither_read_nor_in_the_way(
    plain: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole of 6 GB is a header and no bytes on the disk; a test must not read it to find that out."""
    video, huge = (plain / "clip_000.mp4").read_bytes(), 6 * 10**9
    write_tar(tmp_path / "t.tar", {"a.mp4": video})
    with open(tmp_path / "t.tar", "r+b") as tar:
        tar.truncate(512 + -(-len(video) // 512) * 512)
        tar.seek(0, 2)
        for name in ("b.mp4", "c.mp4", "c.txt"):
            info = tarfile.TarInfo(name)
            info.size = huge if name[0] == "b" or name == "c.txt" else len(video)
            tar.write(info.tobuf())
            tar.write(video if name == "c.mp4" else b"")
            tar.seek(-(-info.size // 512) * 512 - (len(video) if name == "c.mp4" else 0), 1)
        tar.write(bytes(1024))
    read = []
    monkeypatch.setattr(webdataset.remote, "copied", lambda *args: read.append(args) or copied(*args))
    first, second, third = read_all(str(tmp_path / "t.tar"))
    assert isinstance(first, RawClip) and len(read) == 1
    assert second.reason == "too large: 6 GB would be copied, INGEST.max_copied_gb is 4"
    assert third.reason.startswith("broken caption: .txt: 6000000000 bytes")


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path: pathlib.Path) -> None:
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 6 * 10**9
    with open(tmp_path / "t.tar", "wb") as tar:
        tar.write(info.tobuf())
        tar.truncate(6 * 10**9 + 2048)
    with pytest.raises(UserError, match="t.tar is damaged.*a header of"):
        open_source(str(tmp_path / "t.tar"), "train", CLIP)


@given(st.integers(0, 50), st.integers(0, 12), st.integers(1, 5))
def test_braces_count_with_the_width_of_their_first_number(start: int, more: int, width: int) -> None:
    pattern = f"a/{{x,y}}-{{{start:0{width}d}..{start + more}}}.tar"
    wanted = [
        f"a/{letter}-{n:0{max(width, len(str(start)))}d}.tar" for letter in "xy" for n in range(start, start + more + 1)
    ]
    assert webdataset.expand_braces(pattern) == wanted
