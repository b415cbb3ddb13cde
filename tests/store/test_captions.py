"""`captions.jsonl`: a bad line costs its own clip, is named, and stops nothing; a misread field stops all."""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

import pytest
import store_fakes as fakes
from hypothesis import example, given
from hypothesis import strategies as st

from poet import media
from poet.spec import ClipSpec, StoreSpec, UserError
from poet.store import captions
from poet.store.raw import RawClip, Skipped, usable
from poet.store.sources import open_source

CLIP = fakes.CLIP


def parse(*lines: bytes | str, files: tuple[str, ...] = ("a.mp4", "b.mp4")) -> list[captions.Line]:
    raw = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    return captions.parse("F", raw, lambda file: 1 if file in files else -1)


GOOD = '{"file": "a.mp4", "caption": "x", "split": "test"}'


@pytest.mark.parametrize(
    "line, reason",
    [
        ("{broken", "broken caption: captions.jsonl line 3: not JSON"),
        ("[" * 100_000, "broken caption: captions.jsonl line 3: not JSON"),
        ('["b.mp4"]', "broken caption: captions.jsonl line 3: no object with a file"),
        ('{"caption": "no file"}', "broken caption: captions.jsonl line 3: no object with a file"),
        ('{"file": null}', "broken caption: captions.jsonl line 3: no object with a file"),
        ('{"file": "b.mp4", "caption": 7}', "line 3: caption is 7, not a string"),
        (b'{"file": "b.mp4", "caption": "caf\xe9"}', "line 3: not UTF-8"),
        ('{"file": "absent.mp4"}', "no such file: captions.jsonl line 3: there is no file 'absent.mp4'"),
        ('{"file": "a.mp4"}', "duplicate: captions.jsonl line 3: 'a.mp4' stands in line 1"),
        ('{"file": "x/.././a.mp4"}', "duplicate: captions.jsonl line 3: 'a.mp4' stands in line 1"),
        ('{"file": "../b.mp4"}', "outside: captions.jsonl line 3: '../b.mp4' does not lie in the folder"),
        ('{"file": "x/../../b.mp4"}', "outside: captions.jsonl line 3"),
        ('{"file": "/b.mp4"}', "outside: captions.jsonl line 3"),
        ('{"file": "."}', "outside: captions.jsonl line 3"),
    ],
)
def test_a_broken_line_is_skipped_with_its_number(line: str | bytes, reason: str) -> None:
    files = ("a.mp4", "b.mp4", "../b.mp4", "/b.mp4", ".")
    first, broken, last = parse(GOOD, "", line, '{"file": "b.mp4"}', files=files)
    assert (first.broken, last.broken) == ("", "") and last.file == "b.mp4"
    assert reason in broken.broken
    assert broken.split == "test", "of the line before"


@pytest.mark.parametrize(
    "line, wanted",
    [
        (r'{"file": "b.mp4", "caption": "a cat \ud83d"}', "a cat \ufffd"),
        (r'{"file": "b.mp4", "caption": "\ud83d\ude00"}', "\U0001f600"),
        ('{"file": "b.mp4", "caption": null, "split": null}', ""),
        ('\ufeff{"file": "./b.mp4", "caption": "marked"}', "marked"),
        ('{"file": "b.mp4", "caption": "one\u2028line"}', "one\u2028line"),
    ],
)
def test_an_odd_line_is_mended(line: str, wanted: str) -> None:
    _, mended = parse(GOOD, line)
    assert (mended.broken, mended.file, mended.caption, mended.split) == ("", "b.mp4", wanted, "train")
    told = "caption repaired: captions.jsonl line 2" if "\ufffd" in wanted else ""
    assert mended.mended == told


def test_other_encodings_are_known_by_their_marks() -> None:
    text = '{"file": "b.mp4", "caption": "h\xe9"}\r\n{"file": "a.mp4"}\r\n'
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert [line.caption for line in parse(text.encode(encoding))] == ["h\xe9", ""]
    with pytest.raises(UserError, match="no line that can be read"):
        parse(text.encode("utf-16-le"))


@pytest.mark.parametrize(
    "field, hint",
    [
        ("text", "'caption' here"),
        ("path", "'file' here"),
        ("subset", "'split' here"),
        ("Caption", "did you mean caption"),
        ("captoin", "did you mean caption"),
        ("url", "allowed: file"),
    ],
)
def test_an_unknown_field_is_refused_with_what_it_may_mean(field: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"F line 2: unknown field '{field}'.*{re.escape(hint)}"):
        parse(GOOD, json.dumps({"file": "b.mp4", field: "lost?"}))


def test_a_file_without_a_good_line_is_refused() -> None:
    for lines in (("",), ("{broken", "[1]")):
        with pytest.raises(UserError, match="F has no line that can be read"):
            parse(*lines)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(captions.FIELDS), inner),
    max_leaves=6,
)


@given(st.one_of(st.binary(), json_values.map(json.dumps).map(str.encode)))
@example(rb'{"file": "\ud83d"}')
@example(rb'{"file": "a\u0000.mp4"}')
def test_whatever_a_line_holds_the_others_give_their_clips(line: bytes) -> None:
    """Whatever is kept can be hashed, printed and stored; nothing outside the folder is asked for."""

    def size(file: str) -> int:
        assert not file.startswith(("/", "../")) and file != ".."
        return 1

    found = captions.parse("F", b"\n".join([GOOD.encode(), line, b'{"file": "z.mp4"}']), size)
    assert (found[0].file, found[-1].file) == ("a.mp4", "z.mp4")
    for item in found:
        for text in (item.key, item.caption, item.split, item.kind, item.broken):
            text.encode()


# ---------------------------------------------------------------------------------------- folders


def write(folder: pathlib.Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    media.write_mp4(folder / "x.mp4", fakes.flat_video(90), CLIP.rate_hz)
    video = (folder / "x.mp4").read_bytes()
    (folder / "x.mp4").unlink()
    for name in names:
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video)


def keys(folder: pathlib.Path, clip: ClipSpec = CLIP) -> list[str]:
    source = open_source(str(folder), "train", clip)
    return [item.key for item in source.read(0, len(source))]


def test_every_container_is_read_and_all_else_is_named(tmp_path: pathlib.Path) -> None:
    read = ["a.ts", "b.FLV", "c.wmv", "d.3gp", "e.m2ts", "f.f4v", "g.MTS", "h.vob", "i.webp", "j.divx", "k.ogg"]
    left = ["b.mp4.part", "c.mp4.crdownload", "e.mp4~", "still.jpg", "notes", ".hidden.mp4"]
    write(tmp_path, *read, *left)
    os.mkfifo(tmp_path / "pipe.mp4")
    os.symlink("nowhere", tmp_path / "broken.mp4")
    assert keys(tmp_path) == sorted(read)
    files, odd = open_source(str(tmp_path), "train", CLIP).notes
    assert files.startswith(f"{tmp_path}: 6 files are not read") and "hidden 1" in files
    assert all(name in files for name in left)
    assert odd == f"{tmp_path}: 2 neither files nor folders: broken.mp4, pipe.mp4"
    assert "still.jpg" in keys(tmp_path, CLIP.replace(frames=1)), "a clip of one frame"


def test_linked_folders_are_read_once_and_cycles_end(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "d", "z/own.mp4")
    write(tmp_path / "elsewhere", "far.mp4", "in/deep.mp4")
    os.symlink(tmp_path / "elsewhere", tmp_path / "d" / "a_link")
    os.symlink(tmp_path / "elsewhere", tmp_path / "d" / "b_link")
    os.symlink("..", tmp_path / "d" / "z" / "up")
    os.symlink(tmp_path / "d" / "z", tmp_path / "elsewhere" / "back")
    assert keys(tmp_path / "d") == ["a_link/far.mp4", "a_link/in/deep.mp4", "z/own.mp4"]


@pytest.mark.parametrize("name", ["a[1]*.mp4", "12:30.mp4", "file:x.mp4", "concat:a.mp4", "%03d.mp4", "-i.mp4"])
def test_a_file_that_exists_is_that_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / "clips[0]: {a}"
    write(folder, name)
    monkeypatch.chdir(folder)
    for source in (str(folder), "."):
        (clip,) = open_source(source, "train", CLIP).read(0, 1)
        assert isinstance(clip, RawClip) and clip.key == name


def test_what_gives_no_clip_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reads clips for something else than a store tells of those that it leaves out."""
    kept = RawClip(key="a", caption="", video=fakes.flat_video(1), audio=None)
    with caplog.at_level("INFO", logger="poet"):
        for _ in range(2):
            assert list(usable([kept, Skipped(key="b", reason="undecodable: test")])) == [kept]
    assert caplog.messages == ["b is skipped: undecodable: test"]


def test_unnamed_media_and_misnamed_captions_are_told(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4"}')
    (note,) = open_source(str(tmp_path), "train", CLIP).notes
    assert note.endswith("1 files are not read, not named in captions.jsonl: .mp4 1 (b.mp4)")
    os.truncate(tmp_path / "captions.jsonl", 6 * 10**9)  # a hole: nothing on the disk
    with pytest.raises(UserError, match="captions.jsonl has 6000000000 bytes, at most"):
        open_source(str(tmp_path), "train", CLIP)
    (tmp_path / "captions.jsonl").rename(tmp_path / "Captions.jsonl")
    with pytest.raises(UserError, match=r"STORE.path = 'caf\\\\udce9' is not UTF-8"):
        fakes.tokenize(StoreSpec(path="caf\udce9"), CLIP)
    with pytest.raises(UserError, match="holds Captions.jsonl, which is not read.*rename"):
        open_source(str(tmp_path), "train", CLIP)


def test_a_store_is_made_of_the_most_hostile_names(tmp_path: pathlib.Path) -> None:
    """Names and captions that cannot be encoded, from the file to the manifest."""
    write(tmp_path / "d", "a.mp4", "b.mp4", os.fsdecode(b"caf\xe9.mp4"), "e\u0301.mp4", "gone.mp4")
    (tmp_path / "d" / "gone.mp4").write_bytes(b"no video")
    lines: list[Any] = [
        r'{"file": "a.mp4", "caption": "a cat \ud83d"}',
        r'{"file": "caf\udce9.mp4", "caption": "bytes"}',
        '{"file": "\xe9.mp4", "caption": null}',
        '{"file": "b.mp4"',
        '{"file": "gone.mp4"}',
    ]
    (tmp_path / "d" / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    told: list[str] = []
    spec = StoreSpec(source=str(tmp_path / "d"), path=str(tmp_path / "s"), splits=("train",), batch=2, max_skipped=0.5)
    done = fakes.tokenize(
        spec, CLIP, tokenizer=fakes.MeanTokenizer(), text=fakes.LetterEncoder(), progress=False, log=told.append
    ).splits["train"]
    assert done.clips == 3 and done.notes == {"caption repaired": 1, "no caption": 1}
    assert [s.reason.split(":")[0] for s in done.skipped] == ["broken caption", "undecodable"]
    assert any("half a character" in line and "captions.jsonl line 1" in line for line in told)
    assert "1 with caption repaired, 1 with no caption" in told[-1]
    for line in told:
        line.encode()
    items = open_source(spec.source, "train", CLIP).read(0, 5)
    assert [i.key for i in items if isinstance(i, Skipped)] == ["captions.jsonl line 4", "gone.mp4"]
