"""The jobs of a service, in SQLite; what they take and make are files in a folder for each.

    FOLDER/
      jobs.sqlite        every job and upload
      lease.json         which process serves it
      jobs/ID/           inputs/, work/ while it runs, previews/, out/ when it is done
      uploads/ID.SUFFIX  media that requests may name

A job is stored before any work on it begins.  The process may be killed at any time: the next one that opens the store
finds finished jobs as they were, queues what was running again, and removes files that belong to nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from poet.runs import lease
from poet.server.database import connect
from poet.spec import UserError

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
ENDED = (DONE, FAILED, CANCELLED)
FILE = "jobs.sqlite"
# A random id of this many hexadecimal characters cannot be guessed.
_ID_BYTES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One job.

    Attributes:
      number: rises with every job; the queue is in its order.
      id: `<object>_<32 hexadecimal characters>`.
      object: 'video' or 'job', the part of the API that made it.
      owner: of the API key that made it; '' without keys.
      request: as JSON, checked and complete; files by their names in `inputs/`.
      seed: of its noise, fixed when the job was accepted.
      batch_key: jobs of equal values may be sampled together; '' is none.
      samples: places of a batch that it takes.
      idempotency_key: the client's idempotency key, None without one; digest: of what was sent with it.
      cancelling: it runs, and shall stop.  deleted: its files and row go as soon as it has stopped.
      deaths: worker processes that ended while they had it.
      created, started, finished: Unix seconds; None where that has not come.
      error: {'kind', 'message'} of a failed job.  result: what a finished job made.
    """

    number: int
    id: str
    object: str
    owner: str
    task: str
    request: Mapping[str, Any]
    seed: int
    batch_key: str
    samples: int
    idempotency_key: str | None
    digest: str
    state: str
    cancelling: bool
    deleted: bool
    deaths: int
    created: float
    started: float | None
    finished: float | None
    error: Mapping[str, str] | None
    result: Mapping[str, Any] | None
    size_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upload:
    """Media that a client has sent.

    file: its path below the store's folder.  about: what was found in it.
    """

    id: str
    owner: str
    file: str
    about: Mapping[str, Any]
    created: float
    size_bytes: int


class Conflict(UserError):
    """An idempotency key that came with another request before."""


class Store:
    """The jobs in a folder.  Its methods may be called from any thread of one process.

    Args:
      now: Unix seconds; None is `steady` from the last time that the store knows.
    """

    def __init__(self, folder: Path, now: Callable[[], float] | None = None):
        self.folder, self._lock = folder, threading.RLock()
        self._database = connect(folder / FILE)
        self.now = now or steady(self._last_s())

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path, now: Callable[[], float] | None = None) -> Iterator[Store]:
        """The store of this process alone, recovered from whatever ended the process before.

        Raises UserError: another process serves it, it cannot be written, or it is damaged.
        """
        with lease.hold(folder, what="job store"):
            store = cls(folder, now)
            try:
                store.recover()
                yield store
            finally:
                store.close()

    def close(self) -> None:
        """Ends its use of the database."""
        with self._lock:
            self._database.close()

    def _last_s(self) -> float:
        """The latest time in the store; 0 in a new one."""
        columns = (
            "max(created) FROM jobs",
            "max(started) FROM jobs",
            "max(finished) FROM jobs",
            "max(created) FROM uploads",
        )
        return max(self._database.execute(f"SELECT {column}").fetchone()[0] or 0.0 for column in columns)

    # ------------------------------------------------------------------------------------- places

    def place(self, job_id: str) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / job_id

    # ------------------------------------------------------------------------------- new jobs

    def find_idempotent(self, owner: str, idempotency_key: str, digest: str) -> Job | None:
        """The job that an owner made with this idempotency key; None if there is none.

        Raises Conflict where it was made of another request.
        """
        found = self._one(
            "SELECT * FROM jobs WHERE owner = ? AND idempotency_key = ? AND deleted = 0", owner, idempotency_key
        )
        if found is not None and found.digest != digest:
            raise Conflict(
                f"idempotency key {idempotency_key!r} was used for another request: use a new key for a new request"
            )
        return found

    def add(
        self,
        object: str,
        task: str,
        request: Mapping[str, Any],
        *,
        seed: int,
        owner: str = "",
        batch_key: str = "",
        samples: int = 1,
        idempotency_key: str | None = None,
        digest: str = "",
        inputs: Mapping[str, Path] | None = None,
    ) -> Job:
        """Stores a new job, which is then queued; or the one that the same request made before.

        Args:
          inputs: name in the job's `inputs/` -> the file that is linked there.

        Raises Conflict: as `find_idempotent`.
        """
        with self._lock:
            if idempotency_key is not None and (before := self.find_idempotent(owner, idempotency_key, digest)):
                return before
            job_id = new_id(object)
            self._link(job_id, inputs or {})
            values = {
                **{"id": job_id, "object": object, "owner": owner, "task": task, "request": _json(request)},
                **{
                    "seed": seed,
                    "batch_key": batch_key,
                    "samples": samples,
                    "idempotency_key": idempotency_key,
                    "digest": digest,
                },
                **{"state": QUEUED, "created": self.now()},
            }
            names, marks = ", ".join(values), ", ".join("?" * len(values))
            with self._changes() as database:
                # A deleted job gives its key free.
                database.execute(
                    "UPDATE jobs SET idempotency_key = NULL WHERE owner = ? AND idempotency_key = ? AND deleted",
                    (owner, idempotency_key),
                )
                database.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", [*values.values()])
            return self.get(job_id)

    def _link(self, job_id: str, inputs: Mapping[str, Path]) -> None:
        folder = self.place(job_id) / "inputs"
        folder.mkdir(parents=True)
        for name, path in inputs.items():
            os.link(path, folder / name)

    # ---------------------------------------------------------------------------------- reading

    def get(self, job_id: str, owner: str | None = None) -> Job | None:
        """A job; None where there is none, or one of another owner."""
        found = self._one("SELECT * FROM jobs WHERE id = ? AND deleted = 0", job_id)
        return found if found and owner in (None, found.owner) else None

    def jobs(self, *states: str, owner: str | None = None, object: str | None = None) -> list[Job]:
        """The jobs in these states (none: in any), the oldest first."""
        wanted = states or STATES
        marks = ", ".join("?" * len(wanted))
        where, values = f"state IN ({marks}) AND deleted = 0", list(wanted)
        for name, value in (("owner", owner), ("object", object)):
            if value is not None:
                where, values = f"{where} AND {name} = ?", [*values, value]
        return self._all(f"SELECT * FROM jobs WHERE {where} ORDER BY number", *values)

    def queue(self, limit: int) -> list[Job]:
        """The next jobs of the queue, in its order."""
        sql = "SELECT * FROM jobs WHERE state = ? AND deleted = 0 ORDER BY number LIMIT ?"
        return self._all(sql, QUEUED, limit)

    def page(
        self, owner: str, object: str | None, *, after: str = "", limit: int = 20, ascending: bool = False
    ) -> tuple[list[Job], bool]:
        """Up to `limit` of an owner's jobs behind the job `after`, and whether more follow; the newest first."""
        order, sign = ("ASC", ">") if ascending else ("DESC", "<")
        where, values = "owner = ? AND deleted = 0", [owner]
        if object is not None:
            where, values = f"{where} AND object = ?", [*values, object]
        if after:
            where = f"{where} AND number {sign} coalesce((SELECT number FROM jobs WHERE id = ? AND owner = ?), 0)"
            values += [after, owner]
        found = self._all(f"SELECT * FROM jobs WHERE {where} ORDER BY number {order} LIMIT {int(limit) + 1}", *values)
        return found[:limit], len(found) > limit

    def count(self, *states: str, owner: str | None = None) -> int:
        """How many jobs are in these states."""
        marks = ", ".join("?" * len(states))
        sql = f"SELECT count(*) FROM jobs WHERE state IN ({marks}) AND deleted = 0"
        sql, values = (sql, states) if owner is None else (f"{sql} AND owner = ?", (*states, owner))
        with self._lock:
            return self._database.execute(sql, values).fetchone()[0]

    def position(self, job: Job) -> int:
        """Queued jobs before it; 0 for the next one."""
        sql = "SELECT count(*) FROM jobs WHERE state = ? AND number < ? AND deleted = 0"
        with self._lock:
            return self._database.execute(sql, (QUEUED, job.number)).fetchone()[0]

    # ---------------------------------------------------------------------------- changes of state

    def start(self, job_id: str) -> bool:
        """queued -> running; False where it is not queued any more."""
        return self._move(job_id, (QUEUED,), RUNNING, started=self.now())

    def finish(self, job_id: str, result: Mapping[str, Any]) -> bool:
        """running -> done.  Its files must be in place."""
        size_bytes = _size(self.place(job_id))
        moved = self._move(
            job_id, (RUNNING,), DONE, finished=self.now(), result=_json(result), size_bytes=size_bytes, cancelling=0
        )
        self._remove_deleted(job_id)
        return moved

    def fail(self, job_id: str, kind: str, message: str) -> bool:
        """queued or running -> failed."""
        error = _json({"kind": kind, "message": message})
        size_bytes = _size(self.place(job_id))
        moved = self._move(
            job_id, (QUEUED, RUNNING), FAILED, finished=self.now(), error=error, size_bytes=size_bytes, cancelling=0
        )
        self._remove_deleted(job_id)
        return moved

    def requeue(self, job_id: str, *, died: bool = False) -> bool:
        """running -> queued, at its old place; cancelled if that was asked for.  `died`: its worker did."""
        with self._lock, self._changes() as database:
            database.execute("UPDATE jobs SET deaths = deaths + ? WHERE id = ? AND state = ?", (died, job_id, RUNNING))
            asked = database.execute("SELECT cancelling FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if asked and asked[0]:
            return self.cancelled(job_id)
        return self._move(job_id, (RUNNING,), QUEUED, started=None)

    def cancel(self, job_id: str) -> bool:
        """A queued job is cancelled at once, a running one is to be; False for one that has ended."""
        with self._lock:
            if self._move(job_id, (QUEUED,), CANCELLED, finished=self.now()):
                return True
            return self._move(job_id, (RUNNING,), RUNNING, cancelling=1)

    def cancelled(self, job_id: str) -> bool:
        """running -> cancelled, when its worker has stopped."""
        moved = self._move(job_id, (RUNNING,), CANCELLED, finished=self.now(), cancelling=0)
        self._remove_deleted(job_id)
        return moved

    def delete(self, job_id: str) -> bool:
        """Removes a job and its files; a running one is cancelled, and goes when it has stopped."""
        with self._lock:
            self.cancel(job_id)
            with self._changes() as database:
                done = database.execute("UPDATE jobs SET deleted = 1 WHERE id = ? AND deleted = 0", (job_id,)).rowcount
            self._remove_deleted(job_id)
            return bool(done)

    def _move(self, job_id: str, before: Sequence[str], state: str, **values: Any) -> bool:
        columns = ", ".join(f"{name} = ?" for name in values)
        marks = ", ".join("?" * len(before))
        sql = f"UPDATE jobs SET state = ?{', ' if columns else ''}{columns} WHERE id = ? AND state IN ({marks})"
        with self._lock, self._changes() as database:
            return database.execute(sql, (state, *values.values(), job_id, *before)).rowcount > 0

    def _remove_deleted(self, job_id: str) -> None:
        """The row and the files of a deleted job that does not run."""
        with self._lock:
            sql = "SELECT 1 FROM jobs WHERE id = ? AND deleted = 1 AND state != ?"
            if self._database.execute(sql, (job_id, RUNNING)).fetchone():
                shutil.rmtree(self.place(job_id), ignore_errors=True)
                with self._changes() as database:
                    database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    # -------------------------------------------------------------------------------------- uploads

    def add_upload(self, path: Path, about: Mapping[str, Any], owner: str = "") -> Upload:
        """Moves a file into the store; it keeps its suffix."""
        upload_id = new_id("file")
        name, size_bytes = f"uploads/{upload_id}{path.suffix}", path.stat().st_size
        (self.folder / "uploads").mkdir(exist_ok=True)
        os.replace(path, self.folder / name)
        with self._lock, self._changes() as database:
            values = (upload_id, owner, name, _json(about), self.now(), size_bytes)
            database.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?)", values)
        return self.upload(upload_id, owner)

    def upload(self, upload_id: str, owner: str | None = None) -> Upload | None:
        """An upload; None where there is none, or one of another owner."""
        with self._lock:
            row = self._database.execute("SELECT * FROM uploads WHERE id = ?", (upload_id,)).fetchone()
        if row is None or owner not in (None, row["owner"]):
            return None
        return Upload(**{**dict(row), "about": json.loads(row["about"])})

    def delete_upload(self, upload_id: str) -> None:
        """Removes an upload; jobs that were made of it keep theirs."""
        with self._lock:
            found = self.upload(upload_id)
            if found is not None:
                (self.folder / found.file).unlink(missing_ok=True)
                with self._changes() as database:
                    database.execute("DELETE FROM uploads WHERE id = ?", (upload_id,))

    # ------------------------------------------------------------------------------------ upkeep

    def recover(self) -> list[str]:
        """What an earlier process left: running jobs are queued again (their ids), deleted ones and stray files go."""
        again = [job.id for job in self._all("SELECT * FROM jobs WHERE state = ?", RUNNING)]
        for job_id in again:
            self.requeue(job_id)
        with self._lock:
            deleted = self._database.execute("SELECT id FROM jobs WHERE deleted = 1").fetchall()
            for (job_id,) in deleted:
                self._remove_deleted(job_id)
            known = {row[0] for row in self._database.execute("SELECT id FROM jobs")}
            files = {row[0] for row in self._database.execute("SELECT file FROM uploads")}
        for path in _inside(self.folder / "jobs"):
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)
        for path in _inside(self.folder / "uploads"):
            if path.relative_to(self.folder).as_posix() not in files:
                path.unlink(missing_ok=True)
        return [job_id for job_id in again if self.get(job_id)]

    def expire(self, *, age_s: float, size_bytes: float) -> list[str]:
        """Removes ended jobs and uploads older than `age_s`, then the oldest ended jobs until the files fit; their ids.

        Jobs that are queued or run stay, whatever they hold.
        """
        ended, before = self.jobs(*ENDED), self.now() - age_s
        when = lambda job: (job.finished or job.created, job.number)
        gone = [job.id for job in ended if when(job)[0] < before]
        kept = sorted((job for job in ended if when(job)[0] >= before), key=when)
        total = sum(job.size_bytes for job in kept)
        for job in kept:
            if total <= size_bytes:
                break
            gone.append(job.id)
            total -= job.size_bytes
        for job_id in gone:
            self.delete(job_id)
        with self._lock:
            rows = self._database.execute("SELECT id FROM uploads WHERE created < ?", (before,)).fetchall()
        for (upload_id,) in rows:
            self.delete_upload(upload_id)
        return gone

    # ----------------------------------------------------------------------------------- database

    @contextlib.contextmanager
    def _changes(self) -> Iterator[sqlite3.Connection]:
        """A transaction."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _all(self, sql: str, *values: Any) -> list[Job]:
        with self._lock:
            return [_job(row) for row in self._database.execute(sql, values).fetchall()]

    def _one(self, sql: str, *values: Any) -> Job | None:
        return next(iter(self._all(sql, *values)), None)


def steady(least: float = 0.0) -> Callable[[], float]:
    """A clock of Unix seconds that is read once, not before `least`, and then runs evenly.

    Setting the machine's clock while the service runs makes no job older and no duration negative.
    """
    elapsed = functools.partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    start = max(time.time(), least) - elapsed()
    return lambda: start + elapsed()


def new_id(kind: str) -> str:
    """A new id that nobody can guess."""
    return f"{kind}_{secrets.token_hex(_ID_BYTES)}"


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    for name in ("request", "error", "result"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Job(**{**values, "cancelling": bool(values["cancelling"]), "deleted": bool(values["deleted"])})


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
