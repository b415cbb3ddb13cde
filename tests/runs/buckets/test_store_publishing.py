"""A token store that is written at gs://: what another machine finds, who may write, and what is never changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import bucket_servers
import pytest

from poet.runs.buckets import mirror
from poet.runs.buckets.files import Place
from poet.spec import UserError
from poet.store import publishing
from poet.store.manifest import MANIFEST_FILE
from poet.store.runners import Distributed, Serial

ALONE = Serial(encoders=None)


@pytest.fixture
def url(server: bucket_servers.Server, request: pytest.FixtureRequest) -> str:
    server.faults([])
    return f"gs://{bucket_servers.BUCKET}/stores/{request.node.name}"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    return lambda name: monkeypatch.setenv(mirror.CACHE, str(tmp_path / name))


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_another_machine_finds_what_was_finished_and_the_end_is_the_store_alone(
    url: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_SEND_S", 0.05)
    machine("first")
    place, finished = Place(url), (".partial/plan.json", ".partial/train/0.examples", ".partial/train/0.json")
    with pytest.raises(KeyboardInterrupt), publishing.hold(url, ALONE) as folder:
        write(folder, *finished, ".partial/lease.json", ".partial/train/.1.examples.tmp")
        while not set(finished) <= place.listed().keys():
            time.sleep(0.05)
        raise KeyboardInterrupt
    machine("second")
    with publishing.hold(url, ALONE) as folder:
        assert set(bucket_servers.tree(folder)) == set(finished)
        for name in finished:
            (folder / name).unlink()
        write(folder, "a.tfrecord", MANIFEST_FILE)
    assert set(place.listed()) == {"a.tfrecord", MANIFEST_FILE, "lease.json"}
    before = place.listed()
    with publishing.hold(url, ALONE) as folder:  # Complete: a copy to look at.
        assert (folder / MANIFEST_FILE).read_bytes() == MANIFEST_FILE.encode()
    assert place.listed() == before


def test_a_failed_run_publishes_no_store(url: str, machine: Callable[[str], None]) -> None:
    machine("first")
    with pytest.raises(ZeroDivisionError), publishing.hold(url, ALONE) as folder:
        write(folder, "a.tfrecord", MANIFEST_FILE)
        raise ZeroDivisionError
    assert MANIFEST_FILE not in Place(url).listed()
    with publishing.hold(url, ALONE) as folder:  # Which is whole here, so that the next start has only to send it.
        assert (folder / "a.tfrecord").is_file()
    assert MANIFEST_FILE in Place(url).listed()


def test_what_cannot_be_one_store_is_refused(url: str, machine: Callable[[str], None], tmp_path: Path) -> None:
    machine("first")
    with pytest.raises(UserError, match="STORE.path = 'gs://.*several processes gather a store in a folder"):
        with publishing.hold(url, Distributed(ALONE, 0, 2, 1.0)):
            pytest.fail("held")
    with publishing.hold(url, ALONE) as folder:
        machine("second")
        with pytest.raises(UserError, match=f"the store {url} is in use by another process"):
            with publishing.hold(url, ALONE):
                pytest.fail("held twice")
        write(folder, MANIFEST_FILE)
    (tmp_path / "film.mp4").write_bytes(b"x")
    Place(f"{url}/other").upload(tmp_path / "film.mp4", "film.mp4")
    with pytest.raises(UserError, match="is not empty and holds no token store"):
        with publishing.hold(f"{url}/other", ALONE):
            pytest.fail("held")
