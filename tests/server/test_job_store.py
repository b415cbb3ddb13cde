"""The job store: its states by a model, its files, processes that are killed, a store that another one serves."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import store_process
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from poet.server.store import CANCELLED, DONE, ENDED, FAILED, FILE, QUEUED, RUNNING, Conflict, Store
from poet.spec import UserError

ROOT = Path(__file__).resolve().parents[2]


def made(store: Store, seed: int = 0, **values):
    return store.add("job", "unconditional", {"task": "unconditional"}, seed=seed, **values)


class Jobs(RuleBasedStateMachine):
    """A dict of states is the model; the store is closed and opened in between."""

    ids = Bundle("ids")

    def __init__(self):
        super().__init__()
        self.folder, self.clock = Path(tempfile.mkdtemp()), 1000.0
        self.states: dict[str, str] = {}
        self.asked: set[str] = set()  # Running ones that shall stop.
        self.ended: dict[str, float] = {}
        self.order: list[str] = []
        self.store = Store(self.folder, lambda: self.clock)

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.folder)

    def end(self, job_id: str, state: str):
        self.states[job_id], self.ended[job_id] = state, self.clock
        self.asked.discard(job_id)

    @rule(target=ids, seed=st.integers(0, 2**32 - 1))
    def add(self, seed):
        self.clock += 1
        job = made(self.store, seed)
        assert job.state == QUEUED and job.seed == seed and job.created == self.clock
        self.states[job.id] = QUEUED
        self.order.append(job.id)
        return job.id

    @rule(job_id=ids)
    def start(self, job_id):
        assert self.store.start(job_id) == (self.states.get(job_id) == QUEUED)
        if self.states.get(job_id) == QUEUED:
            self.states[job_id] = RUNNING

    @rule(job_id=ids)
    def finish(self, job_id):
        self.clock += 1
        assert self.store.finish(job_id, {"files": []}) == (self.states.get(job_id) == RUNNING)
        if self.states.get(job_id) == RUNNING:
            self.end(job_id, DONE)

    @rule(job_id=ids)
    def fail(self, job_id):
        can = self.states.get(job_id) in (QUEUED, RUNNING)
        assert self.store.fail(job_id, "internal", "it broke") == can
        if can:
            self.end(job_id, FAILED)

    @rule(job_id=ids)
    def cancel(self, job_id):
        state = self.states.get(job_id)
        assert self.store.cancel(job_id) == (state in (QUEUED, RUNNING))
        if state == QUEUED:
            self.end(job_id, CANCELLED)
        elif state == RUNNING:
            self.asked.add(job_id)

    @rule(job_id=ids, died=st.booleans())
    def requeue(self, job_id, died):
        running = self.states.get(job_id) == RUNNING
        assert self.store.requeue(job_id, died=died) == running
        if running and job_id in self.asked:
            self.end(job_id, CANCELLED)
        elif running:
            self.states[job_id] = QUEUED

    @rule(target=ids, job_id=consumes(ids))
    def delete(self, job_id):
        there = job_id in self.states
        assert self.store.delete(job_id) == there
        if there and self.states[job_id] != RUNNING:
            assert not self.store.place(job_id).exists()
        if there and self.states.pop(job_id) == RUNNING:
            self.store.requeue(job_id)  # Its worker has stopped.
            assert not self.store.place(job_id).exists()
        self.asked.discard(job_id)
        return multiple()

    @rule()
    def open_again(self):
        self.store.close()
        self.store = Store(self.folder, lambda: self.clock)
        self.store.recover()
        for job_id, state in self.states.items():
            if state == RUNNING:
                self.states[job_id] = QUEUED
                if job_id in self.asked:
                    self.end(job_id, CANCELLED)

    @rule(age=st.integers(0, 20))
    def expire(self, age):
        gone = self.store.expire(age_s=age, size_bytes=10**9)
        expected = {i for i, s in self.states.items() if s in ENDED and self.ended[i] < self.clock - age}
        assert set(gone) == expected
        for job_id in gone:
            del self.states[job_id]

    @invariant()
    def the_store_is_the_model(self):
        assert {job.id: job.state for job in self.store.jobs()} == self.states
        assert {job.id for job in self.store.jobs() if job.cancelling} == self.asked
        queue = [job_id for job_id in self.order if self.states.get(job_id) == QUEUED]
        assert [job.id for job in self.store.jobs(QUEUED)] == queue
        assert [self.store.position(job) for job in self.store.jobs(QUEUED)] == list(range(len(queue)))
        assert self.store.count(QUEUED) == len(queue)


TestJobs = Jobs.TestCase
TestJobs.settings = settings(max_examples=10, stateful_step_count=20, deadline=None)


@pytest.fixture
def store(tmp_path):
    with Store.opened(tmp_path / "store") as found:
        yield found


def test_a_key_gives_the_same_job_and_refuses_another_request(store):
    first = made(store, 1, idempotency_key="k", digest="a", owner="me")
    assert made(store, 2, idempotency_key="k", digest="a", owner="me") == first
    assert made(store, 2, idempotency_key="k", digest="a", owner="you").id != first.id
    with pytest.raises(Conflict, match="'k' was used for another request"):
        made(store, 3, idempotency_key="k", digest="b", owner="me")
    store.delete(first.id)
    assert made(store, 4, idempotency_key="k", digest="b", owner="me").id != first.id


def test_jobs_of_another_owner_are_not_there(store):
    mine, yours = made(store, owner="me"), made(store, owner="you")
    assert store.get(mine.id, "me") == mine and store.get(mine.id, "you") is None
    assert [job.id for job in store.page("you", None)[0]] == [yours.id]
    assert store.count(QUEUED, owner="me") == 1


def test_pages_hold_every_job_once_in_both_orders(store):
    ids = [made(store, n).id for n in range(7)]
    for ascending in (True, False):
        found, after, more = [], "", True
        while more:
            page, more = store.page("", None, after=after, limit=3, ascending=ascending)
            found += [job.id for job in page]
            after = found[-1]
        assert found == (ids if ascending else ids[::-1])


def test_uploads_are_linked_into_jobs_and_may_go(store, tmp_path):
    (tmp_path / "a.png").write_bytes(b"pixels")
    upload = store.add_upload(tmp_path / "a.png", {"frames": 1}, "me")
    assert store.upload(upload.id, "you") is None and store.upload(upload.id, "me").about == {"frames": 1}
    job = made(store, inputs={"clip.png": store.folder / upload.file})
    store.delete_upload(upload.id)
    assert not (store.folder / upload.file).exists()
    assert (store.place(job.id) / "inputs/clip.png").read_bytes() == b"pixels"
    store.delete(job.id)
    assert not store.place(job.id).exists()


def test_the_oldest_finished_files_go_where_they_exceed_the_bytes(store):
    ids = []
    for n in range(5):
        job = made(store, n)
        store.start(job.id)
        (store.place(job.id) / "made.bin").write_bytes(bytes(1000))
        store.finish(job.id, {})
        ids.append(job.id)
    waiting = made(store, 9)
    (store.place(waiting.id) / "inputs/large.bin").write_bytes(bytes(10_000))
    assert store.expire(age_s=1e9, size_bytes=2500) == ids[:3]
    assert [job.id for job in store.jobs()] == [*ids[3:], waiting.id]
    assert not store.place(ids[0]).exists() and store.place(ids[4]).exists()


def test_files_of_nobody_go_at_the_start(tmp_path):
    with Store.opened(tmp_path) as store:
        kept = made(store)
    (tmp_path / "jobs/job_stray/out").mkdir(parents=True)
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads/file_stray.png").write_bytes(b"x")
    with Store.opened(tmp_path) as store:
        assert store.get(kept.id) == kept
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [kept.id] and not [
        *(tmp_path / "uploads").iterdir()
    ]


def test_a_damaged_store_and_one_of_another_version_are_refused(tmp_path):
    with Store.opened(tmp_path) as store:
        for n in range(50):
            made(store, n)
    file = tmp_path / FILE
    whole = file.read_bytes()
    for damaged in (b"no database at all" * 300, whole[:5000], whole[:4096] + os.urandom(4096) + whole[8192:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="restore it, or give another folder"), Store.opened(tmp_path):
            pass
    file.write_bytes(whole)
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(UserError, match="has format 99, this version reads 1"), Store.opened(tmp_path):
        pass


def served(folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, store_process.__file__, str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_a_second_process_is_refused_and_a_dead_one_s_store_is_free(tmp_path):
    process = served(tmp_path, "hold")
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=f"in use by another process .pid {process.pid}"), Store.opened(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()
    with Store.opened(tmp_path) as store:
        assert store.jobs() == []


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.fault)])
def test_kills_lose_no_job_and_change_no_byte(tmp_path, kills):
    """kill -9 at random moments: what was done stays, what ran is done again, with the bytes of its seed."""
    with Store.opened(tmp_path) as store:
        ids = {made(store, seed).id: seed for seed in range(3 * kills)}
    rng, done_before = random.Random(kills), set()
    for _ in range(kills):
        process = served(tmp_path)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        with Store.opened(tmp_path) as store:
            states = {job.id: job.state for job in store.jobs()}
            assert states.keys() == ids.keys() and set(states.values()) <= {QUEUED, DONE}
            done = {job_id for job_id, state in states.items() if state == DONE}
            assert done_before <= done
            done_before = done
    process = served(tmp_path)
    assert process.communicate(timeout=60)[0].endswith("all done\n")
    with Store.opened(tmp_path) as store:
        assert {job.state for job in store.jobs()} == {DONE}
        for job_id, seed in ids.items():
            assert (store.place(job_id) / "out/made.bin").read_bytes() == store_process.result(seed)
