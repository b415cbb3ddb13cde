"""The process that makes what was asked for: it has the model, and dies without taking the service along.

Its pipe brings ('make', [(Work, batch_key), ...]), ('cancel', id), ('watch', id): somebody wants previews, ('stop',).
It answers ('ready', `Measured`) or ('broken', why), ('news', id, facts), ('done', id, result), ('failed', id, kind,
message), ('cancelled', id), and ('idle', `Measured`) when all that it had is made.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import sys
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from poet.server.backend import INTERNAL, Backend, Cancelled, Maker, News, Session, Work, kind_of
from poet.server.memory import Meter

_LOG = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
# Exit code of a worker that could not load its model.
CANNOT_LOAD = 3


def main(connection: Connection, backend: Backend, level: int) -> None:
    """The body of the process."""
    from poet.server import logs

    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The service decides when it ends.
    logs.configure(level)
    try:
        maker = backend.load()
    except Exception as error:
        _LOG.exception("the model cannot be loaded")
        with contextlib.suppress(OSError):
            connection.send(("broken", str(error)))
        sys.exit(CANNOT_LOAD)
    connection.send(("ready", Meter().read()))
    with contextlib.suppress(EOFError, BrokenPipeError):
        Worker(connection, maker).run()


def _die_with_parent() -> None:
    """Two workers on one job would write the same files."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Worker:
    """The loop of the process."""

    def __init__(self, connection: Connection, maker: Maker):
        self._pipe, self._maker = connection, maker
        self._waiting: deque[tuple[Work, str]] = deque()
        self._cancelled: set[str] = set()
        self._watched: set[str] = set()
        self._works: dict[str, Work] = {}
        self._session: Session | None = None
        self._batch_key = ""
        self._stopping, self._meter = False, Meter()

    def run(self) -> None:
        """Until ('stop',) comes, or the service is gone."""
        while not self._stopping:
            busy = self._session is not None and bool(self._session.names)
            self._hear(wait=not (busy or self._waiting or self._cancelled))
            self._take_in()
            if self._session is not None:
                self._step()

    def _hear(self, wait: bool) -> None:
        while wait or self._pipe.poll():
            kind, *rest = self._pipe.recv()
            wait = False
            if kind == "make":
                self._waiting.extend(rest[0])
            elif kind == "cancel":
                self._cancelled.add(rest[0])
            elif kind == "watch":
                self._watched.add(rest[0])
            else:
                self._stopping = True

    def _take_in(self) -> None:
        """Drops what was cancelled; takes in what waits and fits."""
        for job_id in [*self._cancelled]:
            self._cancelled.discard(job_id)
            waited = [entry for entry in self._waiting if entry[0].id == job_id]
            if job_id in self._works or waited:
                if job_id in self._works:
                    self._session.drop(job_id)
                for entry in waited:
                    self._waiting.remove(entry)
                self._end(job_id, ("cancelled", job_id))
        while self._waiting:
            work, batch_key = self._waiting[0]
            alone = (
                self._session is not None and self._session.names and not (batch_key and batch_key == self._batch_key)
            )
            if alone:
                return
            self._waiting.popleft()
            if self._session is None or not self._session.names:
                self._meter.start()
                self._session, self._batch_key = self._maker.session(batch_key, self._watch), batch_key
            self._add(work)

    def _add(self, work: Work) -> None:
        self._works[work.id] = work
        try:
            work.place.mkdir(parents=True, exist_ok=True)
            self._session.add(work)
        except Exception as error:
            self._failed(work.id, error)

    def _step(self) -> None:
        had = [*self._session.names]
        self._advance()
        if had and not self._session.names:
            self._pipe.send(("idle", self._meter.read()))

    def _advance(self) -> None:
        try:
            news = self._session.step()
        except Cancelled:
            news = []
        except Exception as error:  # It is every job's of the session.
            for job_id in [*self._session.names]:
                self._session.drop(job_id)
                self._failed(job_id, error)
            return
        for one in news:
            self._tell(one)

    def _watch(self, news: News) -> None:
        """Called in a step that makes one job for long."""
        self._tell(news)
        self._hear(wait=False)
        if news.id in self._cancelled or self._stopping:
            raise Cancelled

    def _tell(self, news: News) -> None:
        if news.error is not None:
            self._failed(news.id, news.error)
        elif news.result is not None:
            self._done(news)
        else:
            facts: dict[str, Any] = {"fraction": news.fraction, "latents": news.latents, "left_s": news.left_s}
            frames = news.frames() if news.frames is not None and news.id in self._watched else None
            if frames is not None:
                facts["preview"] = _preview(self._works[news.id], news.latents, frames)
            self._pipe.send(("news", news.id, facts))

    def _done(self, news: News) -> None:
        work = self._works[news.id]
        out = work.folder / "out"
        shutil.rmtree(out, ignore_errors=True)  # Of a try whose end was not noted.
        os.rename(work.place, out)
        self._end(news.id, ("done", news.id, dict(news.result)))

    def _failed(self, job_id: str, error: Exception) -> None:
        kind = kind_of(error)
        message = str(error)
        if kind == INTERNAL:
            _LOG.error("job failed", exc_info=error, extra={"job": job_id})
            message = "an error of the service, which its log describes"
        shutil.rmtree(self._works[job_id].place, ignore_errors=True)
        self._end(job_id, ("failed", job_id, kind, _without_places(message, self._works[job_id])))

    def _end(self, job_id: str, message: tuple[Any, ...]) -> None:
        self._works.pop(job_id, None)
        self._watched.discard(job_id)
        self._pipe.send(message)


def _without_places(message: str, work: Work) -> str:
    """A message without the folders of this machine."""
    return message.replace(f"{work.folder}/", "")


def _preview(work: Work, latents: int, frames: Any) -> int:
    """Writes a strip of new frames, uint8 [F, H, W, 3]; its number."""
    from poet import media

    number = max(latents - 1, 0)
    media.write_png_strip(work.folder / "previews" / f"{number:03d}.png", frames)
    return number
