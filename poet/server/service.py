"""The service without HTTP: jobs are made, followed, cancelled and removed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import secrets
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio

from poet.server.backend import TOO_LARGE, Accepted, Backend
from poet.server.dispatcher import Dispatcher
from poet.server.fields import MEDIA_ID, in_fields, replaced
from poet.server.hub import Hub
from poet.server.intake import Media, of_result, take_in
from poet.server.memory import Ledger
from poet.server.metrics import Metrics
from poet.server.settings import ServeSpec
from poet.server.store import DONE, QUEUED, RUNNING, Conflict, Job, Store, Upload
from poet.spec import MOST_SEED, UserError

_LOG = logging.getLogger(__name__)
# Files that are decoded at once.
_INTAKES = 2
# Suffixes of results that a request may take as its media, the best first.
_TAKEN = (".mp4", ".webm", ".mkv", ".png", ".gif", ".wav")


class Refused(UserError):
    """A request that is not taken.

    Attributes:
      status: of HTTP.  code: of the error, for programs.  param: the field at fault; ''.
      retry_s: seconds after which it may be sent again; 0 says nothing.
    """

    def __init__(self, message: str, status: int = 400, code: str = "bad_request", param: str = "", retry_s: float = 0):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_s = status, code, param, retry_s


def not_found(what: str, name: str) -> Refused:
    """There is no such thing, or it is another owner's."""
    return Refused(f"there is no {what} {name!r}", 404, "not_found")


@dataclasses.dataclass(frozen=True)
class Sent:
    """A request as it came.

    asked: its fields; digest: of all that was sent, files too.
    """

    asked: Mapping[str, Any]
    digest: str

    @classmethod
    def of(cls, asked: Mapping[str, Any], files: Mapping[str, str] | None = None) -> Sent:
        """`files`: digests of files that came with it, by field."""
        text = json.dumps([asked, files or {}], sort_keys=True, default=str)
        return cls(asked, hashlib.sha256(text.encode()).hexdigest())


class Service:
    """One service; its methods may be called from any thread.

    Args:
      sample_rate_hz: of the sound that is kept of uploads.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        settings: ServeSpec = ServeSpec(),
        *,
        sample_rate_hz: int = 16_000,
        level: int = logging.INFO,
    ):
        self.store, self.backend, self.settings, self._sample_rate_hz = store, backend, settings, sample_rate_hz
        self.hub = Hub()
        self.metrics = Metrics(lambda: store.count(QUEUED), lambda: store.count(RUNNING))
        self.memory = Ledger(settings.memory_gib)
        self.dispatcher = Dispatcher(store, backend, self.hub, self.metrics, settings, self.memory, level)
        self.card = backend.card()
        self.stopping = False
        # Threads of their own: uploads that wait hold up no other request.
        self.intakes = anyio.CapacityLimiter(_INTAKES)
        self._creation = threading.Lock()

    def start(self) -> None:
        """Starts the worker, and what waits in the store."""
        self.dispatcher.start()

    def stop(self) -> None:
        """Takes nothing any more; what runs may end, or is queued again."""
        self.stopping = True
        self.hub.close()
        if self.dispatcher.is_alive():
            self.dispatcher.stop(self.settings.grace_seconds)

    @property
    def not_ready(self) -> str:
        """Why it makes nothing now; '' if it does."""
        if self.stopping:
            return "the service is stopping"
        if self.dispatcher.broken:
            return f"the model cannot be loaded: {self.dispatcher.broken}"
        if not self.dispatcher.is_alive():
            return "the service has not started"
        return "" if self.dispatcher.ready.is_set() else "the model is being loaded"

    # ------------------------------------------------------------------------------------ making jobs

    def create(
        self,
        sent: Sent,
        owner: str,
        object: str = "job",
        idempotency_key: str | None = None,
        asked: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Job:
        """Accepts a request: it is checked, stored and queued.

        Args:
          idempotency_key: the same request with it makes nothing new.
          asked: gives the fields in the form that the backend takes, if they came in another.

        Raises Refused: says what is wrong, and what to do.
        """
        digest = f"{object} {sent.digest}"
        with self._creation:
            if idempotency_key is not None and (before := self._before(owner, idempotency_key, digest)):
                return before
            self._check_queue(owner)
            asked = dict(asked() if asked else sent.asked)
            if asked.get("seed") is None:
                asked["seed"] = secrets.randbelow(MOST_SEED + 1)
            inputs: dict[str, Path] = {}
            about: dict[str, Mapping[str, Any]] = {}
            named = replaced(asked, lambda field, value: self._input(field, value, owner, inputs, about))
            try:
                accepted = self.backend.admit(named, about)
            except Refused:
                raise
            except UserError as error:
                said = in_fields(str(error), self.backend.requests.get(str(asked.get("task")), ()))
                raise Refused(_client_s(said, inputs, asked, named)) from None
            self._check_memory(accepted)
            job = self.store.add(
                object,
                accepted.task,
                {"asked": dict(sent.asked), "memory": dataclasses.asdict(accepted.need), **accepted.request},
                seed=int(asked["seed"]),
                owner=owner,
                batch_key=accepted.batch_key,
                samples=accepted.samples,
                idempotency_key=idempotency_key,
                digest=digest,
                inputs={Path(name).name: path for name, path in inputs.items()},
            )
        self.metrics.accepted.labels(job.task).inc()
        _LOG.info("job accepted", extra={"job": job.id, "task": job.task, "owner": owner})
        self.dispatcher.wake()
        return job

    def _before(self, owner: str, idempotency_key: str, digest: str) -> Job | None:
        try:
            return self.store.find_idempotent(owner, idempotency_key, digest)
        except Conflict as error:
            raise Refused(str(error), 409, "idempotency_conflict") from None

    def _check_queue(self, owner: str) -> None:
        if self.stopping:
            raise Refused("the service is stopping: send it again later", 503, "stopping", retry_s=10)
        limits = ((self.settings.max_queue, None), (self.settings.max_queue_per_key, owner))
        for most, whose in limits:
            if self.store.count(QUEUED, owner=whose) >= most:
                what = "jobs" if whose is None else "of your jobs"
                raise Refused(f"{most} {what} wait already: send it again later", 429, "queue_full", retry_s=10)

    def _check_memory(self, accepted: Accepted) -> None:
        if not self.memory.admits(accepted.need):
            self.metrics.errors.labels(TOO_LARGE).inc()
            said = self.memory.refusal(accepted.need, accepted.advice(self.memory.room))
            raise Refused(said, 400, TOO_LARGE)

    def _input(
        self, field: str, value: str, owner: str, inputs: dict[str, Path], about: dict[str, Mapping[str, Any]]
    ) -> str:
        """The name in a job's folder of an upload or a result that a request names; what is known of it is noted."""
        from poet.sampling.requests import FLAT, is_box

        if not MEDIA_ID.fullmatch(value):
            if (field == "mask" and is_box(value)) or (field == "depth" and value == FLAT):
                return value
            raise Refused(
                f"{field} = {value[:80]!r}: expected the id of an upload (POST /v1/files) or of a job whose result it "
                "takes",
                param=field,
            )
        path = self._path(value, owner)
        name = f"inputs/{len(inputs)}{path.suffix}"
        inputs[name] = path
        upload = self.store.upload(value)
        about[name] = upload.about if upload else of_result(path).about
        return name

    def _path(self, name: str, owner: str) -> Path:
        if name.startswith("file_"):
            upload = self.store.upload(name, owner)
            if upload is None:
                raise not_found("file", name)
            return self.store.folder / upload.file
        job = self.job(name, owner)
        if job.state != DONE:
            raise Refused(f"{name} is {job.state}: only the result of a job that is done can be taken", 409, "not_done")
        files = sorted(
            job.result["files"], key=lambda f: _TAKEN.index(Path(f).suffix) if Path(f).suffix in _TAKEN else 9
        )
        if not files or Path(files[0]).suffix not in _TAKEN:
            raise Refused(f"{name} made no media that a request can take")
        return self.result(job, files[0])

    # --------------------------------------------------------------------------------------- uploads

    def upload(self, source: Path, owner: str) -> Upload:
        """Takes in a file that a client sent.  Refused for one that is no media, or too large."""
        with tempfile.TemporaryDirectory(dir=self._incoming()) as folder:
            try:
                found: Media = take_in(source, Path(folder) / "media", self.settings, self._sample_rate_hz)
            except UserError as error:
                self.metrics.errors.labels("bad_media").inc()
                raise Refused(str(error), 400, "bad_media") from None
            return self.store.add_upload(found.file, found.about, owner)

    def _incoming(self) -> Path:
        folder = self.store.folder / "incoming"
        folder.mkdir(exist_ok=True)
        return folder

    # ------------------------------------------------------------------------------------------ jobs

    def job(self, job_id: str, owner: str, object: str | None = None) -> Job:
        """A job of an owner.  Refused where there is none."""
        found = self.store.get(job_id, owner)
        if found is None or object not in (None, found.object):
            raise not_found(object or "job", job_id)
        return found

    def cancel(self, job: Job) -> Job:
        """Cancels a job.  Refused for one that has ended otherwise."""
        if not self.store.cancel(job.id):
            now = self.store.get(job.id)
            if now is None or now.state != "cancelled":
                raise Refused(f"{job.id} is {now.state if now else 'gone'}: nothing to cancel", 409, "has_ended")
        self._stop_it(job)
        return self.store.get(job.id) or job

    def delete(self, job: Job) -> None:
        """Removes a job; one that runs is cancelled first."""
        self.store.delete(job.id)
        self._stop_it(job)

    def _stop_it(self, job: Job) -> None:
        self.dispatcher.cancel(job.id)
        now = self.store.get(job.id)
        if now is None or now.state != RUNNING:
            self.hub.say(job.id, {"state": now.state if now else "deleted"}, last=True)

    def result(self, job: Job, name: str) -> Path:
        """A file that a job made.  Refused where there is none."""
        if job.state != DONE:
            raise Refused(f"{job.id} is {job.state}: it has no files yet", 409, "not_done")
        if name not in job.result["files"]:
            raise not_found("file", name)
        path = self.store.place(job.id) / "out" / name
        if not path.is_file():
            raise Refused(f"the files of {job.id} are gone: make it again", 410, "gone")
        return path

    def preview(self, job: Job, number: int) -> Path:
        """The picture of new frames of a step.  Refused where there is none."""
        path = self.store.place(job.id) / "previews" / f"{number:03d}.png"
        if not path.is_file():
            raise not_found("preview", str(number))
        return path


def _client_s(message: str, inputs: Mapping[str, Path], asked: Any, named: Any) -> str:
    """A message that names files as the client did."""
    theirs: list[str] = []
    replaced(asked, lambda field, value: theirs.append(value) or value)
    ours: list[str] = []
    replaced(named, lambda field, value: ours.append(value) or value)
    for our, their in zip(ours, theirs):
        if our in inputs:
            message = message.replace(our, their)
    return message
