"""A client of `poet serve`: needs Python alone, neither this package's dependencies nor a device.

    client = Client("http://127.0.0.1:8000")
    job = client.wait(client.video("the player walks forward", seconds=4))
    client.download(job, "clips")

Requests that make something carry an idempotency key and are sent again where the connection or the service fails, so
that they make it once.
"""

from __future__ import annotations

import dataclasses
import functools
import http.client
import json
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ENDED = ("completed", "failed", "cancelled")
# What a request may name media by.
MEDIA = ("clip", "end", "mask", "depth", "frame", "input_reference")
# Answers after which the same request may succeed later.
_LATER = (429, 502, 503, 504)
_MOST_PAUSE_S = 30.0
_READ_BYTES = 2**20
# Of an answer in JSON, and of a line of events.
_MOST_BYTES = 2**26


class ApiError(RuntimeError):
    """A request that the service did not take.

    Attributes:
      status: of HTTP; 0 where there was no answer.  code, param: of the error, and the field at fault.
      request_id: finds it in the service's log.  retry_s: seconds that the service asks to wait; 0 says nothing.
    """

    def __init__(
        self, message: str, status: int = 0, code: str = "", param: str = "", request_id: str = "", retry_s: float = 0
    ):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.request_id, self.retry_s = request_id, retry_s


class JobFailed(RuntimeError):
    """A job that ended without a result; `job` says why."""

    def __init__(self, job: Job):
        super().__init__(f"{job.id} {job.status}" + (f": {job.error['message']}" if job.error else ""))
        self.job = job


@dataclasses.dataclass(frozen=True)
class File:
    """A file that a job made."""

    name: str
    bytes: int
    media_type: str
    url: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the service describes it: `JobObject` of its /openapi.json.

    Attributes:
      status: 'queued', 'in_progress', 'completed', 'failed' or 'cancelled'.
      progress: percent.  queue_position: jobs before it while it is queued.
      preview: path of a picture of the newest frames while it runs and somebody follows it.
    """

    id: str
    object: str
    model: str
    task: str
    status: str
    progress: int
    queue_position: int | None
    created_at: int
    started_at: int | None
    completed_at: int | None
    expires_at: int | None
    seed: int
    request: Mapping[str, Any]
    cancelling: bool
    latents: int
    seconds_left: float | None
    preview: str | None
    error: Mapping[str, str] | None
    files: tuple[File, ...]
    texts: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Job:
        """From the service's JSON; fields that this version does not know are left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in found.items() if name in names}
        return cls(**{**known, "files": tuple(File(**f) for f in found["files"]), "texts": tuple(found["texts"])})


class Client:
    """A service at an address.

    Args:
      url: such as http://127.0.0.1:8000.
      key: an API key, where the service wants one.
      timeout_s: without a sign of the service, after which a request has failed.
      retries: how often a request is sent again.
    """

    def __init__(self, url: str, key: str = "", *, timeout_s: float = 60.0, retries: int = 4):
        self.url, self._timeout_s, self._retries = url.rstrip("/"), timeout_s, retries
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    # ------------------------------------------------------------------------------------ making

    def video(self, prompt: str, *, image: str | Path | None = None, **fields: Any) -> Job:
        """Asks for a video.

        Args:
          image: a picture or video that opens it: a path, or the id of an upload or a job.
          fields: of `/v1/videos`, such as seconds, seed, negative_prompt, sound.

        Raises ApiError.
        """
        fields |= {} if image is None else {"input_reference": image}
        made = self._create("/v1/videos", {"prompt": prompt, **fields})
        return self.job(made["id"])

    def submit(self, task: str, **fields: Any) -> Job:
        """Asks for anything: a task, or 'long', 'storyboard', 'chain'.

        Args:
          fields: of its request (`models()[0]["requests"][task]`); media are paths (`pathlib.Path`), which are
            uploaded, or ids of uploads or of jobs.

        Raises ApiError.
        """
        return Job.of(self._create("/v1/jobs", {"task": task, **fields}))

    def upload(self, path: str | Path) -> str:
        """Uploads a picture, video or sound; its id.  Raises ApiError for one that is none."""
        path, edge = Path(path), secrets.token_hex(16)
        head = (
            f'--{edge}\r\ncontent-disposition: form-data; name="file"; filename="media{path.suffix}"\r\n'
            "content-type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{edge}--\r\n".encode()
        return self._json("POST", "/v1/files", body, {"content-type": f"multipart/form-data; boundary={edge}"})["id"]

    def _create(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        body = json.dumps(self._with_uploads(fields)).encode()
        once = {"content-type": "application/json", "idempotency-key": secrets.token_hex(16)}
        return self._json("POST", path, body, once)

    def _with_uploads(self, value: Any, name: str = "") -> Any:
        """Fields whose paths are uploads."""
        if isinstance(value, Mapping):
            return {key: self._with_uploads(inner, key) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._with_uploads(inner, name) for inner in value]
        if isinstance(value, Job):
            return value.id
        is_path = isinstance(value, Path) or (
            name == "input_reference" and isinstance(value, str) and not _is_id(value)
        )
        return self.upload(value) if is_path and name in MEDIA else value

    # --------------------------------------------------------------------------------- following

    def job(self, job: str | Job) -> Job:
        """A job as it is now.  Raises ApiError where there is none."""
        return Job.of(self._json("GET", f"/v1/jobs/{_id(job)}"))

    def jobs(self, *, limit: int = 20) -> Iterator[Job]:
        """All jobs, the newest first; `limit` are fetched at a time."""
        after = ""
        while True:
            page = self._json("GET", f"/v1/jobs?{urllib.parse.urlencode({'limit': limit, 'after': after})}")
            yield from map(Job.of, page["data"])
            if not page["has_more"]:
                return
            after = page["last_id"]

    def events(self, job: str | Job) -> Iterator[Job]:
        """A job whenever something is new, until it has ended.  Raises ApiError where the stream breaks off."""
        with self._open("GET", f"/v1/jobs/{_id(job)}/events") as answer:
            try:
                for line in iter(functools.partial(answer.readline, _MOST_BYTES), b""):
                    if line.startswith(b"data: {") and line.strip() != b"data: {}":
                        found = Job.of(json.loads(line[6:]))
                        yield found
                        if found.ended:
                            return
            except (OSError, http.client.HTTPException) as error:
                raise ApiError(f"the events of {_id(job)} broke off: {error}") from None
        raise ApiError(f"the events of {_id(job)} ended before the job")

    def wait(
        self, job: str | Job, *, on_progress: Callable[[Job], None] | None = None, timeout_s: float = 3600.0
    ) -> Job:
        """Waits for the end of a job, over restarts of the service.

        Raises JobFailed for one that failed or was cancelled, TimeoutError, and ApiError where it is gone.
        """
        end, failures = time.monotonic() + timeout_s, 0
        while time.monotonic() < end:
            try:
                for found in self.events(job):
                    failures = 0
                    if on_progress is not None:
                        on_progress(found)
                    if found.status == "completed":
                        return found
                    if found.ended:
                        raise JobFailed(found)
                    if time.monotonic() >= end:
                        break
            except ApiError as error:
                if error.status not in (0, *_LATER):
                    raise
                failures += 1
                time.sleep(min(0.2 * 2**failures, _MOST_PAUSE_S, max(end - time.monotonic(), 0)))
        raise TimeoutError(f"{_id(job)} has not ended after {timeout_s:g} s; it goes on")

    def cancel(self, job: str | Job) -> Job:
        """Stops a job.  Raises ApiError for one that has ended."""
        return Job.of(self._json("POST", f"/v1/jobs/{_id(job)}/cancel", b""))

    def delete(self, job: str | Job) -> None:
        """Removes a job and its files."""
        self._json("DELETE", f"/v1/jobs/{_id(job)}")

    def content(self, job: Job, name: str = "") -> bytes:
        """The bytes of a file of a job that is done; of the first one where no name is given."""
        with self._open("GET", self._file(job, name).url) as answer:
            return answer.read()

    def download(self, job: Job, folder: str | Path) -> list[Path]:
        """Writes the files of a job that is done to a folder; their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for file in job.files:
            path = folder / Path(file.name).name
            with self._open("GET", file.url) as answer, open(path, "wb") as out:
                while data := answer.read(_READ_BYTES):
                    out.write(data)
            paths.append(path)
        return paths

    @staticmethod
    def _file(job: Job, name: str) -> File:
        found = [file for file in job.files if name in ("", file.name)]
        if not found:
            raise ValueError(f"{job.id} has no file {name!r}: {', '.join(file.name for file in job.files) or 'none'}")
        return found[0]

    def models(self) -> list[dict[str, Any]]:
        """The models of the service, with their tasks and the schemas of their requests."""
        return self._json("GET", "/v1/models")["data"]

    @property
    def ready(self) -> bool:
        """Whether the service makes jobs now."""
        try:
            with self._open("GET", "/readyz", retries=0):
                return True
        except ApiError:
            return False

    # -------------------------------------------------------------------------------------- HTTP

    def _json(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> Any:
        with self._open(method, path, body, headers) as answer:
            data = answer.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ApiError(f"the answer of {self.url}{path} has more than {_MOST_BYTES >> 20} MiB")
        return json.loads(data)

    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = {},
        retries: int | None = None,
    ) -> Any:
        """The answer to a request, which is sent again where that may help and does no harm."""
        tries = 1 + (self._retries if retries is None else retries)
        for number in range(1, tries + 1):
            try:
                return self._once(method, path, body, headers)
            except ApiError as error:
                if number == tries or error.status not in (0, *_LATER):
                    raise
                time.sleep(min(error.retry_s or 0.2 * 2**number, _MOST_PAUSE_S))
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Any:
        request = urllib.request.Request(
            self.url + path, data=body, method=method, headers={**self._headers, **headers}
        )
        try:
            return urllib.request.urlopen(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise _error(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{self.url} does not answer: {getattr(error, 'reason', error)}") from None


def _id(job: str | Job) -> str:
    return urllib.parse.quote(job.id if isinstance(job, Job) else job, safe="")


def _is_id(text: str) -> bool:
    kind, _, rest = text.partition("_")
    return kind in ("file", "job", "video") and len(rest) == 32 and set(rest) <= set("0123456789abcdef")


def _error(error: urllib.error.HTTPError) -> ApiError:
    try:
        facts = json.loads(error.read(_MOST_BYTES))["error"]
    except (ValueError, KeyError, TypeError):
        facts = {"message": str(error)}
    retry = error.headers.get("retry-after", "")
    return ApiError(
        facts.get("message", ""),
        error.code,
        facts.get("code") or "",
        facts.get("param") or "",
        error.headers.get("x-request-id", ""),
        float(retry) if retry.isdigit() else 0,
    )
