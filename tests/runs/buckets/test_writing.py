"""What is published in a bucket is whole or not to be seen, and has one writer; by an emulator over HTTP."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import bucket_servers
import pytest

from poet.runs import retries
from poet.runs.buckets import lease as leases
from poet.runs.buckets import mirror
from poet.runs.buckets.files import Forbidden, Place
from poet.runs.buckets.lease import Lost
from poet.runs.buckets.upload import publish, withdraw
from poet.spec import UserError

URL = f"gs://{bucket_servers.BUCKET}/written"
LAST = "MANIFEST"
LEASE = "POST .*lease.json"


@pytest.fixture
def place(server: bucket_servers.Server, request: pytest.FixtureRequest) -> Place:
    server.faults([])
    return Place(f"{URL}/{request.node.name}", "--workdir")


def folder_of(path: Path, *names: str, content: str = "") -> Path:
    for name in (*names, LAST):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes((content + name).encode() * 1000)
    return path


def test_a_place_becomes_the_folder_that_is_published(place: Place, tmp_path: Path) -> None:
    for number, names in enumerate((("x", "sub/y"), ("x", "z"))):
        folder = folder_of(tmp_path / str(number), *names, content=str(number))
        assert publish(folder, place, LAST) > 0
        assert bucket_servers.tree(mirror.fetch(place.url)) == bucket_servers.tree(folder)
        assert publish(folder, place, LAST) == 0
    withdraw(place, LAST)
    assert place.listed() == {}


def test_at_no_request_the_last_file_stands_beside_others_than_its_own(place: Place, tmp_path: Path) -> None:
    old, new = folder_of(tmp_path / "old", "x", "y"), folder_of(tmp_path / "new", "y", "z", content="new ")
    publish(old, place, LAST)
    seen = []

    def look() -> None:
        seen.append({name: place.read(name) for name in place.listed()})

    with pytest.MonkeyPatch.context() as patch:
        for name in ("upload", "delete"):
            work = getattr(Place, name)
            patch.setattr(Place, name, lambda self, *args, work=work: (work(self, *args), look())[0])
        publish(new, place, LAST)
    whole = [bucket_servers.tree(folder) for folder in (old, new)]
    assert len(seen) > 4 and seen[-1] == whole[1]
    assert all(files in whole for files in seen if LAST in files)


def test_a_killed_upload_is_not_seen_and_goes_on(
    place: Place, server: bucket_servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = folder_of(tmp_path / "a", *"bcde"), Place.upload

    def killed(self: Place, file: Path, name: str) -> None:
        if name in "de":
            raise KeyboardInterrupt
        whole(self, file, name)

    monkeypatch.setattr("poet.runs.buckets.files.THREADS", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Place, "upload", killed)
        publish(folder, place, LAST)
    assert set(place.listed()) == {"b", "c"}
    server.requests()
    publish(folder, place, LAST)
    assert sum("POST /upload" in line for line in server.requests()) == 3
    assert bucket_servers.tree(mirror.fetch(place.url)) == bucket_servers.tree(folder)


@pytest.mark.parametrize("answer", [429, 503, "reset", "after"])
def test_uploads_survive_faults_that_pass(
    answer: int | str, place: Place, server: bucket_servers.Server, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "a", *"bcd")
    server.fail("POST /upload", answer, times=5)
    publish(folder, place, LAST)
    assert bucket_servers.tree(mirror.fetch(place.url)) == bucket_servers.tree(folder)


def test_large_files_go_up_in_a_session_that_is_begun_anew(
    place: Place, server: bucket_servers.Server, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * (6 << 12))
    server.fail("POST .*upload_id|PUT .*upload_id", 503, times=7)
    place.upload(tmp_path / "a", "a")
    assert mirror.fetch(place.url).joinpath("a").read_bytes() == (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("size", [9, 6 << 20])
def test_what_arrives_otherwise_than_it_was_sent_is_sent_again(
    size: int, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x" * size)
    files, turned = place.files, []
    request = files._request

    async def turn(method: str, path: str, *args: object, data: object = None, **kwargs: object) -> object:
        if data and not turned:
            turned.append(1)
            data = bytes(data)[:-1] + b"y"
        return await request(method, path, *args, data=data, **kwargs)

    monkeypatch.setattr(files, "_request", turn, raising=False)
    place.upload(tmp_path / "a", "a")
    assert turned and place.read("a") == b"x" * size


@pytest.mark.parametrize("data", [b"", b"a", b"a\n", b"a\r", b"a\r\n", b"a\n--==0==--", b"\0"])
def test_bytes_of_any_kind_arrive(data: bytes, place: Place, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    place.upload(tmp_path / "a", "a")
    assert place.read("a") == data


def test_no_rights_and_no_bucket_are_named_at_once(place: Place, server: bucket_servers.Server) -> None:
    server.requests()
    server.fail("POST", 403, times=10**6)
    with pytest.raises(Forbidden, match="refuses this account"), leases.hold(place, "a"):
        pytest.fail("held")
    assert len(server.requests()) < 8
    server.faults([])
    missing = Place("gs://no-such-bucket/run", "--workdir")
    with pytest.raises(UserError, match="--workdir = 'gs://no-such-bucket/run': there is no such bucket"):
        missing.write("a", b"x")
    with (
        pytest.raises(UserError, match="a work dir may lie in a folder or at gs://"),
        leases.hold(Place("memory://bucket/run", "--workdir"), "a"),
    ):
        pytest.fail("held")


# ---------------------------------------------------------------------------------------------- leases


def test_conditions_hold_for_every_write(place: Place) -> None:
    first = place.write("a", b"1", generation="0")
    for generation in ("0", "17"):
        with pytest.raises(FileExistsError):
            place.write("a", b"2", generation=generation)
    second = place.write("a", b"3", generation=first)
    assert second != first and place.read("a") == b"3" and place.entry("a").generation == second


def test_a_second_holder_is_refused_by_name(place: Place) -> None:
    with leases.hold(place, "a") as (_, same):
        assert not same
        with pytest.raises(UserError, match=r"work dir gs://.* is in use by another process \(pid \d+ on .*started"):
            with leases.hold(place, "b"):
                pytest.fail("held twice")
    with leases.hold(place, "b") as (_, same):  # It was given back.
        assert not same


def left(place: Place, copy: str) -> None:
    """A lease as a killed process leaves it."""
    lease = leases.Lease(place, copy, what="work dir")
    assert not lease.take()
    lease.claim()


def test_the_lease_of_a_dead_process_is_taken_once_it_is_stale(place: Place) -> None:
    left(place, "a")
    begin = time.monotonic()
    with leases.hold(place, "b"):
        assert leases.STALE_S < time.monotonic() - begin < 5 * leases.STALE_S


def test_the_lease_of_the_same_copy_is_free_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALE_S", 10**6)
    left(place, "a")
    with leases.hold(place, "a") as (_, same):
        assert same


def test_a_copy_that_was_not_yet_brought_to_the_bucket_is_not_taken_for_it(place: Place) -> None:
    left(place, "a")
    with leases.hold(place, "b"):
        pass  # Killed before it had fetched, as far as the bucket knows.
    with leases.hold(place, "b") as (_, same):
        assert not same


def test_of_many_that_want_a_stale_lease_one_gets_it(place: Place) -> None:
    left(place, "dead")
    outcomes: list[str] = []
    over = threading.Event()

    def want(copy: str) -> None:
        try:
            with leases.hold(place, copy):
                outcomes.append("held")
                over.wait(10)
        except UserError as error:
            outcomes.append("refused" if "in use by" in str(error) else str(error))
            if len(outcomes) == 4:
                over.set()

    threads = [threading.Thread(target=want, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["held", *["refused"] * 3]


def test_who_was_cut_off_learns_that_another_took_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off = leases.Lease(place, "a", what="work dir")
    cut_off.take()
    with leases.hold(place, "b") as (held, _):
        held.claim()
        with pytest.raises(Lost, match="was taken over by pid"):
            cut_off.check() or cut_off.renew()
        cut_off.give_back()  # Which it no longer can.
        assert json.loads(place.read("lease.json"))["copy"] == "b"


@pytest.mark.parametrize("answer", [503, "reset", "after"])
def test_a_lease_survives_requests_that_fail_for_a_while(
    answer: int | str, place: Place, server: bucket_servers.Server
) -> None:
    server.fail(LEASE, answer, times=2)
    with leases.hold(place, "a") as (held, _):
        for times in (1, 3):
            server.fail(LEASE, answer, times=times)
            held.renew()
    with leases.hold(place, "b"):
        pass


def test_a_bucket_that_stays_away_costs_no_lease(place: Place, server: bucket_servers.Server) -> None:
    with leases.hold(place, "a") as (held, _):
        server.fail("POST", 503, times=10**6)
        with pytest.raises(retries.ReadFailed, match="lease.json cannot be written: the bucket answers 503"):
            held.renew()
        server.faults([])
        held.check()
        assert held.lost is None
