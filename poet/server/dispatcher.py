"""The thread between the queue and the worker: what is made next, with whom, and what came of it."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection as connections
from multiprocessing.process import BaseProcess
from typing import Any

from poet.server import worker
from poet.server.backend import DIED, TOO_LARGE, Backend, Work
from poet.server.hub import Hub
from poet.server.memory import Ledger, Measured, Need
from poet.server.metrics import Metrics
from poet.server.settings import ServeSpec
from poet.server.store import QUEUED, Job, Store

_LOG = logging.getLogger(__name__)
# A batch that is further takes nobody in: those in it would wait longer than the newcomer gains.
_JOIN_UNTIL = 0.5
# Seconds between a worker's death and the next one: 1, 2, 4, ... of deaths in a row.
_MOST_PAUSE_S = 60.0
# Seconds that a worker has to end by itself.
_END_S = 5.0
_UPKEEP_S = 60.0
# Clients that ask at the same time are heard one after the other: an idle worker begins when no job has come for the
# first time, or the oldest waits for the second.
_QUIET_S, _GATHER_S = 0.02, 0.1
# Seconds between tries where the store cannot be written.
_STORE_PAUSE_S = 0.5


class Dispatcher(threading.Thread):
    """Runs the worker, and hands it the queue.

    Attributes:
      ready: whether the worker has loaded its model.
      broken: why it could not; ''.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        hub: Hub,
        metrics: Metrics,
        settings: ServeSpec,
        memory: Ledger,
        level: int = logging.INFO,
    ):
        super().__init__(name="dispatcher", daemon=True)
        self._store: Any = _Patient(store, lambda: self._stop_at_s is not None and time.monotonic() >= self._stop_at_s)
        self._backend, self._hub, self._metrics = backend, hub, metrics
        self._settings, self._memory, self._level = settings, memory, level
        # Of the jobs that the worker has, or had since it was idle.
        self._needs: dict[str, Need] = {}
        self._predicted = 0
        self.ready, self.broken = threading.Event(), ""
        self._wake_out, self._wake_in = os.pipe()
        self._orders: list[tuple[str, str]] = []
        self._orders_lock = threading.Lock()
        self._running: dict[str, Job] = {}
        self._fractions: dict[str, float] = {}
        # Seconds until their first frame was there, of jobs that run.
        self._seen: dict[str, float] = {}
        self._process: BaseProcess | None = None
        self._pipe: connections.Connection | None = None
        self._deaths_in_a_row, self._next_start_s, self._next_upkeep_s = 0, 0.0, 0.0
        self._stop_at_s: float | None = None
        # For so long an idle worker waits for more jobs of a batch.
        self._gather_s = 0.0
        self._busy, self._busy_since_s = False, time.monotonic()

    # ------------------------------------------------------------------------- called from other threads

    @property
    def running(self) -> int:
        """Jobs that the worker has."""
        return len(self._running)

    def wake(self) -> None:
        """There is something new in the store."""
        os.write(self._wake_in, b"\0")

    def cancel(self, job_id: str) -> None:
        """A running job shall stop; the store knows already."""
        self._order("cancel", job_id)

    def watch(self, job_id: str) -> None:
        """Somebody wants to see a job come: its news have pictures from here on."""
        if self._settings.previews:
            self._order("watch", job_id)

    def _order(self, kind: str, job_id: str) -> None:
        with self._orders_lock:
            self._orders.append((kind, job_id))
        self.wake()

    def stop(self, grace_s: float) -> None:
        """Starts nothing any more, queues again what still runs after `grace_s`, and ends the worker."""
        self._stop_at_s = time.monotonic() + grace_s
        self.wake()
        self.join()

    # ------------------------------------------------------------------------------------- the thread

    def run(self) -> None:
        """Until `stop`."""
        try:
            while not self._is_over():
                self._start_worker()
                self._wait()
                self._pass_on_orders()
                self._schedule()
                self._upkeep()
        except Exception:
            _LOG.critical("the dispatcher ended", exc_info=True)
            self.broken = "the dispatcher ended"
            self.ready.clear()
        finally:
            self._end_worker()

    def _is_over(self) -> bool:
        return self._stop_at_s is not None and (not self._running or time.monotonic() >= self._stop_at_s)

    def _start_worker(self) -> None:
        if self._process is not None or time.monotonic() < self._next_start_s or self._stop_at_s is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self._backend, self._level)
        self._process = context.Process(target=worker.main, args=arguments, name="poet-worker", daemon=True)
        self._process.start()
        theirs.close()

    def _wait(self) -> None:
        handles: list[Any] = [self._wake_out]
        if self._process is not None:
            handles += [self._pipe, self._process.sentinel]
        found = connections.wait(handles, timeout=self._gather_s or 1.0)
        if self._wake_out in found:
            os.read(self._wake_out, 65_536)
        if self._process is None:
            return
        self._hear()
        if not self._process.is_alive():
            self._hear()
            self._died()

    def _hear(self) -> None:
        try:
            while self._pipe.poll():
                kind, *rest = self._pipe.recv()
                getattr(self, f"_on_{kind}")(*rest)
        except (EOFError, OSError):
            self._process.join(_END_S)

    def _on_ready(self, found: Measured) -> None:
        self.broken = ""
        self._memory.started(found)
        self._metrics.limit.set(self._memory.limit)
        self.ready.set()
        _LOG.info("the worker is ready")

    def _on_idle(self, found: Measured) -> None:
        """All that the worker had is made; what it is given meanwhile is counted anew."""
        self._memory.ended(found, [name for need in self._needs.values() for name in need.kept])
        self._metrics.measured.set(found.peak)
        self._needs = {job_id: need for job_id, need in self._needs.items() if job_id in self._running}
        self._predicted = 0
        self._predict()

    def _predict(self) -> None:
        """Notes what the worker takes at the most with what it has."""
        if self._running:
            self._predicted = max(self._predicted, self._memory.of(map(need_of, self._running.values())))
            self._metrics.predicted.set(self._predicted)

    def _on_broken(self, why: str) -> None:
        self.broken = why

    def _on_news(self, job_id: str, facts: dict[str, Any]) -> None:
        job = self._running.get(job_id)
        if job is None:
            return
        self._fractions[job_id] = facts["fraction"]
        if facts["latents"] and job_id not in self._seen:
            self._seen[job_id] = self._store.now() - job.created
            self._metrics.first.labels(job.task).observe(self._seen[job_id])
        self._hub.say(job_id, {"state": "running", **facts})

    def _on_done(self, job_id: str, result: dict[str, Any]) -> None:
        self._deaths_in_a_row = 0
        self._store.finish(job_id, result)
        self._ended(job_id, result.get("seconds", 0.0))

    def _on_failed(self, job_id: str, kind: str, message: str) -> None:
        self._store.fail(job_id, kind, message)
        self._ended(job_id)

    def _on_cancelled(self, job_id: str) -> None:
        self._store.cancelled(job_id)
        self._ended(job_id)

    def _ended(self, job_id: str, seconds: float = 0.0) -> None:
        job = self._running.pop(job_id, None)
        self._fractions.pop(job_id, None)
        first_s = self._seen.pop(job_id, None)
        now = self._store.get(job_id)
        if job is not None and now is not None:
            self._metrics.ended(now, seconds, first_s)
            _LOG.info("job ended", extra={"job": job_id, "task": job.task, "state": now.state})
        self._hub.say(job_id, {"state": now.state if now else "deleted"}, last=True)
        self._note_load()

    def _died(self) -> None:
        """Its jobs are queued again, alone; those that have seen too many workers die fail."""
        code = self._process.exitcode
        _LOG.error("the worker died with code %s, and with it %d jobs", code, len(self._running))
        self._metrics.deaths.inc()
        self.ready.clear()
        self._forget_worker()
        self._deaths_in_a_row += 1
        self._next_start_s = time.monotonic() + min(2.0 ** (self._deaths_in_a_row - 1) - 1, _MOST_PAUSE_S)
        for job_id in [*self._running]:
            self._store.requeue(job_id, died=True)
            now = self._store.get(job_id)
            if now is not None and now.state == QUEUED and now.deaths >= self._settings.max_deaths:
                self._store.fail(job_id, DIED, f"{now.deaths} worker processes died of it")
                now = self._store.get(job_id)
            if now is not None and now.state == QUEUED:
                self._running.pop(job_id)
                self._fractions.pop(job_id, None)
                self._hub.say(job_id, {"state": QUEUED})
            else:
                self._ended(job_id)
        self._note_load()

    def _forget_worker(self) -> None:
        self._needs, self._predicted = {}, 0
        self._process.join()
        self._pipe.close()
        self._process = self._pipe = None

    # ---------------------------------------------------------------------------------------- the queue

    def _pass_on_orders(self) -> None:
        with self._orders_lock:
            orders, self._orders = self._orders, []
        for kind, job_id in orders:
            if job_id in self._running:
                self._send(kind, job_id)

    def _schedule(self) -> None:
        """Starts the oldest job, with those that can go with it, or lets the oldest one join a batch that has begun."""
        self._gather_s = 0.0
        if not self.ready.is_set() or self._process is None or self._stop_at_s is not None:
            return
        if self._running and not self._may_join():
            return
        queue = self._store.queue(limit=4 * self._backend.size)
        if not self._running:
            self._gather_s = self._until_gathered(queue)
        # In one message: the worker begins with all of them.
        if not self._gather_s and (works := [*self._taken(queue)]):
            self._send("make", works)
        self._note_load()

    def _until_gathered(self, queue: Sequence[Job]) -> float:
        """Seconds for which the oldest job waits for others that come with it: until none has come for a moment."""
        if not queue or not queue[0].batch_key:
            return 0.0
        together = [job for job in queue if job.batch_key == queue[0].batch_key]
        if sum(job.samples for job in together) >= self._backend.size:
            return 0.0
        now = self._store.now()
        return max(min(together[-1].created + _QUIET_S, together[0].created + _GATHER_S) - now, 0.0)

    def _taken(self, queue: Sequence[Job]) -> Iterator[tuple[Work, str]]:
        """Marks as running the jobs of a queue that go now."""
        batch_key = self._batch_key
        free = self._backend.size - sum(job.samples for job in self._running.values())
        for job in queue:
            if not self._running:
                if not self._has_room(job):
                    break
                yield from self._give(job)
                batch_key, free = self._batch_key, self._backend.size - job.samples
                if not batch_key:
                    break
            elif batch_key and job.batch_key == batch_key and job.samples <= free and self._joins(job):
                yield from self._give(job)
                free -= job.samples
            elif self._fractions:  # Who joins what has begun keeps its turn.
                break

    def _joins(self, job: Job) -> bool:
        """Whether a job may run beside those that do: after a death it runs alone, and there is memory for all."""
        return not job.deaths and self._memory.fits(map(need_of, (*self._running.values(), job)))

    def _has_room(self, job: Job) -> bool:
        """Whether the idle worker has memory for a job.  If not, a new worker makes room; or the job has failed."""
        need = need_of(job)
        if self._memory.fits([need]):
            return True
        if self._memory.admits(need):
            _LOG.info("a new worker makes room", extra={"job": job.id, "task": job.task})
            self.ready.clear()
            self._send("stop")
            self._forget_worker()
        else:
            self._store.fail(job.id, TOO_LARGE, self._memory.refusal(need))
            self._running[job.id] = job
            self._ended(job.id)
        self.wake()
        return False

    @property
    def _batch_key(self) -> str:
        return next((job.batch_key for job in self._running.values() if not job.deaths), "")

    def _may_join(self) -> bool:
        return bool(self._batch_key) and max(self._fractions.values(), default=0.0) < _JOIN_UNTIL

    def _give(self, job: Job) -> Iterator[tuple[Work, str]]:
        if not self._store.start(job.id):
            return
        job = self._store.get(job.id) or job
        self._running[job.id] = job
        self._needs[job.id] = need_of(job)
        self._predict()
        self._metrics.wait.labels(job.task).observe((job.started or job.created) - job.created)
        batch_key = job.batch_key and (job.id if job.deaths else job.batch_key)
        yield Work(job.id, job.task, job.request, job.seed, self._store.place(job.id)), batch_key
        if self._settings.previews and self._hub.listeners(job.id):
            self._send("watch", job.id)
        self._hub.say(job.id, {"state": "running", "fraction": 0.0, "latents": 0, "left_s": None})

    def _send(self, *message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            pass  # It has died, which is noticed next.

    def _note_load(self) -> None:
        """Counts the time since the last change, in which as many jobs ran as before it."""
        now = time.monotonic()
        if self._busy:
            self._metrics.busy.inc(now - self._busy_since_s)
        self._busy = bool(self._running)
        self._metrics.fill.set(sum(job.samples for job in self._running.values()) / self._backend.size)
        self._busy_since_s = now

    def _upkeep(self) -> None:
        now = time.monotonic()
        if now < self._next_upkeep_s:
            return
        self._next_upkeep_s = now + _UPKEEP_S
        settings = self._settings
        gone = self._store.expire(age_s=settings.keep_hours * 3600, size_bytes=settings.keep_mib * 2**20)
        if gone:
            _LOG.info("%d ended jobs were removed", len(gone))

    def _end_worker(self) -> None:
        if self._process is not None:
            self._send("stop")
            self._process.join(_END_S if self.ready.is_set() and not self._running else 0.2)
            if self._process.is_alive():
                self._process.kill()
            self._hear()
            self._forget_worker()
        for job_id in [*self._running]:
            self._store.requeue(job_id)
        self._running.clear()
        self.ready.clear()


class _Patient:
    """A store in which what cannot be written now, such as on a full disk, is written as soon as it can be.

    What the worker has made is on the disk already, and nothing else can be noted meanwhile.
    """

    def __init__(self, store: Store, is_over: Callable[[], bool]):
        self._store, self._is_over = store, is_over

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._tried, getattr(self._store, name))

    def _tried(self, method: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        while True:
            try:
                return method(*arguments, **more)
            except sqlite3.OperationalError as error:
                if self._is_over():
                    raise
                _LOG.error("the job store cannot be written (%s): it is tried again", error)
                time.sleep(_STORE_PAUSE_S)


def need_of(job: Job) -> Need:
    """What was predicted of a job when it was accepted; nothing of one that an earlier version accepted."""
    return Need(**job.request.get("memory", {}))
