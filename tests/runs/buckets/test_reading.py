"""What lies in a bucket is read as if it lay here: from an emulator's process over HTTP, and from fsspec's memory."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import bucket_servers
import fsspec  # noqa: F401
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
import token_stores  # noqa: E402

from poet import cli  # noqa: E402
from poet.runs import manifest, retries  # noqa: E402
from poet.runs.buckets import files, mirror  # noqa: E402
from poet.runs.buckets.files import Entry, Forbidden, Place  # noqa: E402
from poet.runs.run import Run  # noqa: E402
from poet.spec import Experiment, UserError, to_dict  # noqa: E402
from poet.store import reader  # noqa: E402

URL = f"gs://{bucket_servers.BUCKET}/runs/mine"


@pytest.fixture(params=("gs", "memory"))
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty folder: of the emulator, and of an implementation that shares nothing with it."""
    if request.param == "gs":
        request.getfixturevalue("server").faults([])
    found = URL if request.param == "gs" else "memory://bucket/runs/mine"
    yield found
    place = Place(found)
    for name in place.listed():
        place.delete(name)


def work_dir(folder: Path) -> Path:
    """Two checkpoints, one that is being written, and a log."""
    for step in (2, 10, 30):
        inner = folder / f"checkpoints/{step:08d}"
        (inner / "state").mkdir(parents=True)
        (inner / "state/array").write_bytes(bytes([step]) * 70_000)
        (inner / "spec.json").write_text(json.dumps(to_dict(Experiment())))
        if step < 30:
            manifest.write(inner, {"format": 1, "step": step, "arrays": {}})
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def test_a_work_dir_stands_for_its_newest_complete_checkpoint(url: str, tmp_path: Path) -> None:
    theirs = work_dir(tmp_path / "theirs")
    bucket_servers.put(url, theirs)
    for path, step in ((url, 10), (f"{url}/checkpoints", 10), (f"{url}/checkpoints/00000002/", 2)):
        run = Run.open(path)
        assert run.checkpoint.step == step and run.checkpoint.verify() and run.checkpoint.spec == Experiment()
        assert bucket_servers.tree(run.folder) == bucket_servers.tree(theirs / f"checkpoints/{step:08d}")


def test_a_copy_is_made_once_and_follows_the_bucket(url: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place = Place(url)
    (tmp_path / "file").write_bytes(b"one")
    place.upload(tmp_path / "file", "sub/file")
    first = mirror.local(url)
    assert "1 files, 0.0 MB" in capsys.readouterr().err and bucket_servers.tree(first) == {"sub/file": b"one"}
    assert mirror.local(url) == first and "files, " not in capsys.readouterr().err
    (tmp_path / "file").write_bytes(b"two")
    place.upload(tmp_path / "file", "sub/file")
    assert bucket_servers.tree(mirror.local(url)) == {"sub/file": b"two"}
    assert bucket_servers.tree(first) == {"sub/file": b"one"}  # Who reads it still can.


FAULTS = [429, 503, 408, "reset", "after"]
CALLS = {"list": r"GET .*/o\?", "read": r"GET /download", "upload": "POST /upload", "delete": "DELETE|POST /batch"}


@pytest.mark.parametrize("answer", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_that_passes_changes_nothing(
    server: bucket_servers.Server, call: str, answer: int | str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content" * 1000)
    place = Place(f"{URL}/{call}/{answer}")
    server.requests()
    server.fail(CALLS[call], answer, times=3)
    place.upload(tmp_path / "file", "a")
    assert mirror.local(place.url).joinpath("a").read_bytes() == b"content" * 1000
    place.delete("a")
    assert place.listed() == {} and place.entry("a") is None
    requests = server.requests()
    assert len(requests) >= 4 + 3, requests


def test_an_answer_that_never_comes_is_asked_for_again(
    server: bucket_servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ANSWER_S", 0.3)
    (tmp_path / "file").write_bytes(b"x")
    place = Place(f"{URL}/hanging")
    for call in CALLS.values():
        server.fail(call, "hang")
        place.upload(tmp_path / "file", "a")
        assert mirror.local(place.url).joinpath("a").read_bytes() == b"x"
        place.delete("a")


def test_a_bucket_that_stays_away_is_named(server: bucket_servers.Server) -> None:
    server.fail("GET", 503, times=10**6)
    with pytest.raises(retries.ReadFailed, match=f"{URL} cannot be read: the bucket answers 503, 8 times in a row"):
        Run.open(URL)
    server.faults([])


@pytest.mark.parametrize("code", [401, 403])
def test_missing_rights_are_named_at_once(server: bucket_servers.Server, code: int) -> None:
    server.requests()
    server.fail("GET", code, times=10**6)
    with pytest.raises(Forbidden, match="refuses this account.*gcloud auth"):
        Run.open(URL)
    server.faults([])
    assert len(server.requests()) <= 4


def test_what_is_not_there_is_named(server: bucket_servers.Server, capsys: pytest.CaptureFixture) -> None:
    for missing in ("gs://no-such-bucket/x", f"gs://{bucket_servers.BUCKET}/nothing"):
        assert cli.main(["checkpoint", "list", missing]) == 2
        assert "no such folder or bucket" in capsys.readouterr().err
    with pytest.raises(UserError, match="names no bucket"):
        mirror.local("gs://")


def test_a_missing_driver_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    with pytest.raises(UserError, match=r"reading gs:// needs the package gcsfs: pip install .*\[gcs\]"):
        Run.open("gs://bucket/x")


@pytest.mark.parametrize("name", ["../../outside", "a/../../outside", "a//b", "x\0y"])
def test_names_stay_in_the_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"bucket/x/" + name: {"size": 1}, "bucket/x/fine": {"size": 1}}
    place = Place("memory://bucket/x")
    monkeypatch.setattr(place.files, "find", lambda *_, **__: info, raising=False)
    with pytest.raises(UserError, match="which is no name of a file"):
        mirror.local(place.url)
    assert not (tmp_path / "cache").exists()


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "/"]), min_size=1, max_size=5))
def test_a_name_that_passes_lies_below_the_folder(parts: list[str]) -> None:
    name = "/".join(parts)
    if manifest.stays_inside(name):
        assert Path("/root/folder", name).resolve().is_relative_to("/root/folder")


def test_what_has_arrived_is_not_fetched_again(
    server: bucket_servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 50_000)
    url = f"{URL}/resumed"
    for name in "abc":
        Place(url).upload(tmp_path / name, name)
    whole = Place.download

    def killed(self: Place, name: str, entry: Entry, target: Path) -> None:
        if name != "a":
            target.with_name(f"{name}.~part").write_bytes(b"half")
            raise KeyboardInterrupt
        whole(self, name, entry, target)

    monkeypatch.setattr(files, "THREADS", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Place, "download", killed)
        mirror.local(url)
    server.requests()
    assert bucket_servers.tree(mirror.local(url)) == {n: (tmp_path / n).read_bytes() for n in "abc"}
    requests = server.requests()
    assert [n for n in "abc" if any(f"resumed/{n}?" in line for line in requests)] == ["b", "c"]


def test_a_checkpoint_that_is_replaced_meanwhile_is_listed_again(
    server: bucket_servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{URL}/changing"
    (tmp_path / "a").write_bytes(b"old")
    Place(url).upload(tmp_path / "a", "a")
    listed = Place.listed

    def then_replaced(self: Place) -> dict[str, Entry]:
        found = listed(self)
        monkeypatch.setattr(Place, "listed", listed)
        (tmp_path / "a").write_bytes(b"newer")
        self.upload(tmp_path / "a", "a")
        return found

    monkeypatch.setattr(Place, "listed", then_replaced)
    assert mirror.local(url).joinpath("a").read_bytes() == b"newer"


def test_what_is_read_into_memory_has_a_limit(server: bucket_servers.Server) -> None:
    place = Place(f"gs://{bucket_servers.BUCKET}/large")
    place.write("lease.json", b"12345678")
    assert place.read("lease.json", 8) == b"12345678"
    with pytest.raises(UserError, match="large/lease.json has .* larger than"):
        place.read("lease.json", 7)


def test_an_object_that_is_stored_compressed_is_refused() -> None:
    """Requests would inflate it, beyond its size and past its checksum."""
    with pytest.raises(UserError, match="b/x.json is stored with the content encoding gzip: upload it as it is"):
        files._entry({"name": "b/x.json", "size": 10, "contentEncoding": "gzip"})


def test_a_disk_without_space_is_named_before_anything_is_fetched(
    server: bucket_servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    Place(f"{URL}/large").upload(tmp_path / "a", "a")
    monkeypatch.setattr(mirror.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 999}))
    with pytest.raises(UserError, match=f"GB left: make space there, or set {mirror.CACHE}"):
        mirror.local(f"{URL}/large")


def test_which_errors_pass() -> None:
    assert files.passing(TimeoutError()) and files.passing(ConnectionResetError(errno.ECONNRESET, "reset"))
    assert (
        not files.passing(FileNotFoundError())
        and not files.passing(PermissionError())
        and not files.passing(KeyError())
    )


def test_checkpoints_of_a_bucket_are_listed_and_verified(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = work_dir(tmp_path / "theirs")
    shutil.rmtree(folder / "checkpoints/00000030")
    bucket_servers.put(url, folder)
    assert cli.main(["checkpoint", "verify", url]) == 0
    assert f"{url}/checkpoints/00000010: whole" in capsys.readouterr().out
    (tmp_path / "flipped").write_bytes(b"\x03" + bytes([2]) * 69_999)
    Place(url).upload(tmp_path / "flipped", "checkpoints/00000002/state/array")
    assert cli.main(["checkpoint", "verify", url]) == 1
    assert f"{url}/checkpoints/00000002 is damaged: state/array was altered" in capsys.readouterr().out
    Place(url).delete("checkpoints/00000010/state/array")
    assert cli.main(["checkpoint", "list", url, "--quick"]) == 0
    table = capsys.readouterr().out
    assert "state/array is missing" in table and table.count("whole") == 1


def test_a_store_in_a_bucket_gives_the_same_records(tmp_path: Path) -> None:
    store = token_stores.write_store(tmp_path / "codes")
    url = "memory://bucket/codes"
    bucket_servers.put(url, tmp_path / "codes")
    assert reader.load_manifest(url) == reader.load_manifest(store.path)
    theirs, ours = (list(reader.dataset(path, "train").as_numpy_iterator()) for path in (url, store.path))
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    with pytest.raises(UserError, match="DATA.store = .*there is no such folder"):
        reader.load_manifest("memory://bucket/absent")
