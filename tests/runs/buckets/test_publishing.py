"""A run whose work dir lies in a bucket: what survives its machine, who may write, and what becomes of failures."""

from __future__ import annotations

import functools
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import bucket_servers
import pytest

from poet.checkpoints import policy
from poet.runs import exits, manifest, publishing, status
from poet.runs.buckets import lease, mirror
from poet.runs.buckets.files import Place
from poet.runs.buckets.lease import Lost
from poet.runs.publishing import Publisher, Unpublished
from poet.runs.run import Run
from poet.spec import CheckpointSpec, Experiment, UserError, to_dict

KEEP = functools.partial(policy.kept, policy=CheckpointSpec(every=10, keep=2, keep_every=40, best="loss"))


@pytest.fixture
def url(server: bucket_servers.Server, request: pytest.FixtureRequest) -> str:
    server.faults([])
    return f"gs://{bucket_servers.BUCKET}/published/{request.node.name}"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Goes to another machine: one whose disk has not seen the others' copies."""

    def turn(name: str) -> None:
        monkeypatch.setenv(mirror.CACHE, str(tmp_path / name))

    turn("first")
    return turn


def save(run: Run, publisher: Publisher, step: int, loss: float = 1.0) -> None:
    """A checkpoint of a few files, and lines of the log up to it, as a training leaves them."""
    folder = run.at(step).path
    (folder / "state").mkdir(parents=True)
    (folder / "state/array").write_bytes(bytes([step]) * 9000)
    (folder / "spec.json").write_text(json.dumps(to_dict(Experiment())))
    manifest.write(folder, {"format": 1, "step": step, "arrays": {}, "metrics": {"loss": loss}})
    run.spec_file.write_text(json.dumps(to_dict(Experiment())))
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"step": step, "kind": "train"}) + "\n")
    publisher.saved(step, KEEP)


def steps_there(url: str) -> list[int]:
    names = Place(url).listed()
    return sorted(int(name.split("/")[1]) for name in names if name.endswith(manifest.NAME))


def test_a_folder_of_this_machine_needs_nothing(tmp_path: Path) -> None:
    run = Run.to_train(tmp_path / "run")
    with publishing.hold(run) as publisher:
        save(run, publisher, 10)
        publisher.room(20)
        publisher.finish()
        assert not publisher.failed and not publisher.pending()


def test_another_machine_goes_on_where_the_first_one_was(url: str, machine: Callable[[str], None]) -> None:
    run = Run.to_train(url)
    run.check_place()
    with publishing.hold(run) as publisher:
        for step, loss in ((10, 0.5), (20, 1.0), (40, 1.0), (50, 1.0), (60, 1.0)):
            save(run, publisher, step, loss)
        (run.folder / "samples").mkdir()
        (run.folder / "samples/a.png").write_bytes(b"picture")
        publisher.finish()
        assert steps_there(url) == [10, 40, 50, 60]  # Best, every 40th, the last two.
    machine("second")
    other = Run.to_train(url)
    other.check_place()
    with publishing.hold(other) as publisher:
        assert other.folder != run.folder and other.steps() == [60] and not publisher.unpublished
        assert bucket_servers.tree(other.at(60).path) == bucket_servers.tree(run.at(60).path)
        assert other.metrics.read_bytes() == run.metrics.read_bytes()
        save(other, publisher, 70)
    assert steps_there(url) == [10, 40, 60, 70]
    assert Place(url).read("metrics.jsonl") == other.metrics.read_bytes()
    assert Place(url).read("samples/a.png") == b"picture"
    machine("first")  # Whose copy is older than the bucket.
    with publishing.hold(run):
        assert run.steps() == [70] and run.metrics.read_bytes() == other.metrics.read_bytes()


def test_the_same_machine_fetches_nothing_and_publishes_what_was_left(
    url: str, machine: Callable[[str], None], server: bucket_servers.Server
) -> None:
    run = Run.to_train(url)
    with publishing.hold(run) as publisher:
        save(run, publisher, 10)
        publisher.finish()
        save(run, Publisher(), 20)  # As if the process were killed before it could be sent.
    server.requests()
    with publishing.hold(run) as publisher:
        assert run.steps() == [10, 20] and publisher.unpublished == [20]
        assert not any("array" in line and "GET" in line for line in server.requests())
        publisher.saved(20, KEEP)
    assert steps_there(url) == [10, 20]


def test_what_a_user_deletes_in_the_bucket_is_gone(url: str, machine: Callable[[str], None]) -> None:
    run = Run.to_train(url)
    with publishing.hold(run) as publisher:
        for step in (10, 20):
            save(run, publisher, step)
    for name in [n for n in Place(url).listed() if "00000020" in n]:
        Place(url).delete(name)
    with publishing.hold(run) as publisher:
        assert run.steps() == [10] and not publisher.unpublished
    for name in Place(url).listed():
        Place(url).delete(name)
    with publishing.hold(run):
        assert run.steps() == [] and not run.metrics.exists()


def test_torn_uploads_are_not_seen_and_go_away(url: str, machine: Callable[[str], None], tmp_path: Path) -> None:
    run = Run.to_train(url)
    with publishing.hold(run) as publisher:
        save(run, publisher, 10)
    (tmp_path / "part").write_bytes(b"x")
    Place(url).upload(tmp_path / "part", "checkpoints/00000020/state/array")
    machine("second")
    with publishing.hold(Run.to_train(url)) as publisher:
        assert Run.to_train(url).steps() == [10]
    assert not [name for name in Place(url).listed() if "00000020" in name]


def test_a_damaged_checkpoint_is_passed_over(
    url: str, machine: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run.to_train(url)
    with publishing.hold(run) as publisher:
        for step in (10, 20):
            save(run, publisher, step)
    (tmp_path / "flipped").write_bytes(bytes([20]) * 8999 + b"x")
    Place(url).upload(tmp_path / "flipped", "checkpoints/00000020/state/array")
    machine("second")
    other = Run.to_train(url)
    with publishing.hold(other) as publisher:
        assert other.steps() == [10] and other.set_aside() == [20]
        assert "state/array was altered" in caplog.text and "falling back" in caplog.text
        save(other, publisher, 20)
    machine("third")
    with publishing.hold(Run.to_train(url)):
        assert Run.to_train(url).at(20).verify()


def test_a_second_machine_is_refused_by_name(url: str, machine: Callable[[str], None]) -> None:
    with publishing.hold(Run.to_train(url)):
        machine("second")
        with pytest.raises(UserError, match=f"work dir {url} is in use by another process .pid"):
            with publishing.hold(Run.to_train(url)):
                pytest.fail("held twice")


@pytest.mark.parametrize("answer, code", [(503, exits.FAILED), (403, exits.USER)])
def test_an_upload_that_fails_for_good_is_told_and_nothing_is_lost(
    url: str, machine: Callable[[str], None], server: bucket_servers.Server, answer: int, code: int
) -> None:
    run = Run.to_train(url)
    with pytest.raises(
        Unpublished, match=f"checkpoints/00000020/.*what is not in the bucket lies in {re.escape(str(run.folder))}"
    ) as told:
        with publishing.hold(run) as publisher:
            save(run, publisher, 10)
            publisher.finish()
            server.fail("POST .*checkpoints/0", answer, times=10**6)
            save(run, publisher, 20)
            publisher.room(30)
            publisher.finish()
    assert exits.of(told.value) == code and steps_there(url) == [10]
    server.faults([])
    with publishing.hold(run) as publisher:
        assert run.steps() == [10, 20]
        for step in publisher.unpublished:
            publisher.saved(step, KEEP)
    assert steps_there(url) == [10, 20]


def test_who_lost_the_lease_writes_no_more(
    url: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, renew = Run.to_train(url), threading.Event()
    monkeypatch.setattr(lease.Lease, "keep", lambda self: renew.wait(20))  # As a process that stands still.
    with pytest.raises(Lost, match="was taken over by pid"):
        with publishing.hold(run) as publisher:
            save(run, publisher, 10)
            publisher.finish()
            machine("second")
            other = Run.to_train(url)
            with publishing.hold(other):
                save(run, publisher, 20)
                publisher.room(30)
                publisher.finish()
    renew.set()
    assert steps_there(url) == [10]


def test_uploads_hold_nobody_up_but_a_third_checkpoint(
    url: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, upload = threading.Event(), Place.upload
    monkeypatch.setattr(Place, "upload", lambda *args: (go.wait(20), upload(*args))[1])
    run = Run.to_train(url)
    with publishing.hold(run) as publisher:
        save(run, publisher, 10)
        publisher.room(20)
        save(run, publisher, 20)
        assert set(publisher.pending()) == {10, 20} and not steps_there(url)
        waiting = threading.Thread(target=publisher.room, args=(30,))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        go.set()
        waiting.join(20)
        assert not waiting.is_alive()
    assert steps_there(url) == [10, 20]


def test_status_says_how_a_run_in_a_bucket_stands(url: str, machine: Callable[[str], None]) -> None:
    with pytest.raises(UserError, match="is not the work dir of a run"):
        status.in_bucket(url)
    run = Run.to_train(url)
    with publishing.hold(run) as publisher:
        save(run, publisher, 10)
        publisher.finish()
        found = status.in_bucket(f"{url}/")
        assert (found.workdir, found.running, found.step, found.checkpoints) == (url, True, 10, 1)
        assert found.saved.step == 10 and f"pid {os.getpid()}" in found.holder and found.silent_s < 60
    assert status.in_bucket(url).running is False


def test_a_place_of_other_things_is_refused(url: str, server: bucket_servers.Server, tmp_path: Path) -> None:
    for name, what in (
        ("manifest.json", "a token store"),
        ("MANIFEST", "weights"),
        ("film.mp4", "not the folder of a run"),
    ):
        (tmp_path / "file").write_bytes(b"x")
        place = Place(f"{url}/{name}")
        place.upload(tmp_path / "file", name)
        with pytest.raises(UserError, match=f"--workdir={place.url} .*{what}"):
            Run.to_train(place.url).check_place()


def test_a_process_knows_whether_it_sees_the_copy(url: str, machine: Callable[[str], None], tmp_path: Path) -> None:
    with publishing.hold(Run.to_train(url)) as publisher:
        assert publishing.sees(Run.to_train(url), publisher.copy)
        machine("second")
        assert not publishing.sees(Run.to_train(url), publisher.copy)
    assert publishing.sees(Run.to_train(tmp_path / "a folder"), "")
