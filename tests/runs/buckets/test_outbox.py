"""Outputs at gs://: the files that a folder would get, or none; what was there decides as on a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bucket_servers
import pytest

from poet import cli
from poet.runs import exits, manifest, outputs
from poet.runs.buckets import mirror, outbox
from poet.runs.buckets.files import Forbidden, Place
from poet.runs.run import Run
from poet.spec import UserError

WRITTEN = Path(__file__).resolve().parents[2] / "fixtures/written_before"


@pytest.fixture
def url(server: bucket_servers.Server, request: pytest.FixtureRequest) -> str:
    server.faults([])
    return f"gs://{bucket_servers.BUCKET}/outputs/{request.node.name}"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    return lambda name: monkeypatch.setenv(mirror.CACHE, str(tmp_path / name))


def write(url: str, text: str, *, overwrite: bool = False) -> None:
    """As a command does."""
    with outbox.published(url) as folder:
        with outputs.claim(folder, outputs.EVALUATION, overwrite=overwrite) as output:
            (output.folder / "media").mkdir()
            (output.folder / "media" / f"{text}.txt").write_text(text)


def names(url: str) -> list[str]:
    return list(Place(url).listed())


def test_a_command_leaves_there_what_it_leaves_in_a_folder(url: str, tmp_path: Path) -> None:
    convert = ["checkpoint", "convert", str(WRITTEN / "lm")]
    assert cli.main([*convert, f"--out={tmp_path / 'here'}"]) == exits.FINISHED
    assert cli.main([*convert, f"--out={url}/"]) == exits.FINISHED
    assert bucket_servers.tree(mirror.fetch(url)) == bucket_servers.tree(tmp_path / "here")
    assert Run.open(url).checkpoint.verify()
    assert not mirror.workdir(url).exists()


def test_an_earlier_output_is_replaced_where_that_is_allowed_on_any_machine(url: str, machine) -> None:
    machine("first")
    write(url, "a")
    machine("second")
    with pytest.raises(UserError, match="holds an earlier evaluation: give another folder, or --overwrite"):
        write(url, "b")
    assert names(url) == ["MANIFEST", "media/a.txt"]
    write(url, "b", overwrite=True)
    assert names(url) == ["MANIFEST", "media/b.txt"] and manifest.verify(mirror.fetch(url))


def test_a_command_that_fails_sends_nothing_and_goes_on_from_what_it_has(url: str) -> None:
    with pytest.raises(KeyError), outbox.published(url) as folder:
        folder.mkdir(parents=True)
        (folder / "first").write_text("1")
        raise KeyError
    assert names(url) == []
    with outbox.published(url) as folder:
        assert (folder / "first").read_text() == "1"
        (folder / "second").write_text("2")
    assert names(url) == ["first", "second"]


def test_a_folder_without_a_manifest_goes_on_on_another_machine(url: str, machine) -> None:
    machine("first")
    with outbox.published(url) as folder:
        folder.mkdir(parents=True)
        (folder / "clip_1").write_text("1")
    machine("second")
    with outbox.published(url) as folder:
        assert [path.name for path in folder.iterdir()] == ["clip_1"]
        (folder / "clip_2").write_text("2")
    assert names(url) == ["clip_1", "clip_2"]


def test_an_output_that_cannot_be_sent_stays_and_says_where(url: str, server: bucket_servers.Server) -> None:
    with pytest.raises(outbox.Unsent, match=f"the output lies in .*: gcloud storage rsync -r .* {url}") as told:
        with outbox.published(url) as folder:
            folder.mkdir(parents=True)
            (folder / "clip").write_text("1")
            server.fail("POST", 403, times=10**6)
    assert exits.of(told.value) == exits.USER and (folder / "clip").read_text() == "1"


def test_a_place_that_others_write_to_meanwhile_is_left_alone(url: str) -> None:
    with pytest.raises(outbox.Unsent, match="was written by another process meanwhile"):
        with outbox.published(url) as folder:
            folder.mkdir(parents=True)
            (folder / "clip").write_text("ours")
            Place(url).write("clip", b"theirs")
    assert Place(url).read("clip") == b"theirs"


def test_places_that_are_none_are_refused_before_any_work(url: str, server: bucket_servers.Server) -> None:
    write(url, "a")
    Place(f"{url}-run").write("lease.json", b"{}")
    Place(f"{url}-run").write("checkpoints/00000010/MANIFEST", b"")
    for place, what in (
        (f"{url}/inside", f"lies in {url}, whose MANIFEST"),
        (f"{url}-run", "holds a run or a token store"),
        (f"gs://{bucket_servers.BUCKET}", "names a bucket alone"),
        ("gs://absent-bucket/x", "no such bucket"),
        ("memory://x/y", "may lie in a folder or at gs://"),
    ):
        with pytest.raises(UserError, match=what), outbox.published(place):
            pytest.fail(place)
    server.fail("POST", 403, times=9)
    with pytest.raises(Forbidden), outbox.published(f"{url}-other"):
        pytest.fail("no rights")


def test_studies_stay_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prefer", "make", "a", "b", "--out=gs://b/x"]) == exits.USER
    assert "gs://b/x is a URL: give a folder here" in capsys.readouterr().err
