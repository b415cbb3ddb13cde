"""The HTTP API: routes over a `Service`.  `/docs` and `/openapi.json` describe it, with the fields of its model."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

import poet
from poet.server import schema, videos, views
from poet.server.access import Keys, Rates
from poet.server.around import Around, error_response, refusal
from poet.server.forms import body_of, saved
from poet.server.service import Refused, Service, not_found
from poet.server.store import ENDED, Job
from poet.spec import UserError

_LOG = logging.getLogger(__name__)
# A page for people, if there is one.
STUDIO = Path(__file__).parent / "studio"
_MOST_KEY = 200
_PING_S = 15

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", max_length=_MOST_KEY, min_length=1)]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[str, Query(pattern="^(asc|desc)$")]
After = Annotated[str, Query(max_length=64)]


def create(service: Service, keys: Keys | None = None, listens_on: str = "127.0.0.1") -> FastAPI:
    """The application of a service, which it starts and stops with itself."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="poet",
        version=poet.__version__,
        description="Videos, sounds, pictures and films of one model. Jobs outlive clients, and the service itself.",
        lifespan=lifespan,
        responses={status: {"model": views.Error, "description": text} for status, text in schema.ERRORS.items()},
    )
    app.state.service, app.state.keys = service, keys or Keys()
    app.state.rates, app.state.created = Rates(service.settings.rate_per_minute), time.time()
    _handle_errors(app)
    for routes in (_health, _models, _files, _jobs, _videos):
        routes(app, service)
    app.add_middleware(Around, service=service, listens_on=listens_on)
    schema.install(app, service)
    if STUDIO.is_dir():
        app.mount("/", StaticFiles(directory=STUDIO, html=True), name="studio")
    return app


# --------------------------------------------------------------------------------- around each request


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> JSONResponse:
        return refusal(error if isinstance(error, Refused) else Refused(str(error)))

    @app.exception_handler(sqlite3.OperationalError)
    async def unwritten(request: Request, error: sqlite3.OperationalError) -> JSONResponse:
        _LOG.error("the job store cannot be written: %s", error)
        message = "the service cannot store anything now, as where its disk is full: send it again later"
        return error_response(message, 503, "not_stored", retry_s=10)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:])
        return error_response(f"{name}: {first['msg']}", 400, "bad_request", name)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        response = error_response(str(error.detail), error.status_code, code)
        response.headers.update(error.headers or {})
        return response


def _owner(request: Request) -> str:
    """The owner of a request.  Refused without a key, where keys are needed."""
    owner = request.app.state.keys.owner(request.headers.get("authorization", ""))
    if owner is None:
        raise Refused("send an API key of this service as `Authorization: Bearer KEY`", 401, "no_key")
    return owner


def _maker(request: Request) -> str:
    """The owner of a request that makes something, which is counted."""
    owner = _owner(request)
    who = owner or (request.client.host if request.client else "")
    wait_s = request.app.state.rates.wait_s(who)
    if wait_s:
        rate = request.app.state.service.settings.rate_per_minute
        raise Refused(f"more than {rate:g} requests a minute: wait", 429, "rate_limited", retry_s=wait_s)
    return owner


Owner = Annotated[str, Depends(_owner)]
Maker = Annotated[str, Depends(_maker)]


# ---------------------------------------------------------------------------------------------- routes


def _health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["service"], summary="Whether the process lives")
    async def healthz() -> views.Health:
        return views.Health(status="ok")

    @app.get("/readyz", tags=["service"], summary="Whether jobs are being made")
    def readyz() -> views.Health:
        if service.not_ready:
            raise Refused(service.not_ready, 503, "not_ready", retry_s=5)
        return views.Health(status="ok")

    @app.get("/metrics", tags=["service"], summary="Numbers for Prometheus", response_class=Response)
    def metrics(owner: Owner) -> Response:
        page, kind = service.metrics.page()
        return Response(page, headers={"content-type": kind})


def _models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", tags=["models"], summary="The model, its tasks and the fields of their requests")
    def list_models(owner: Owner) -> views.ModelList:
        return views.ModelList(data=[views.model_object(service, app.state.created)])

    @app.get("/v1/models/{model_id}", tags=["models"], summary="The model")
    def get_model(model_id: str, owner: Owner) -> views.ModelObject:
        if model_id != service.card["id"]:
            raise Refused(f"model {model_id!r}: this service has {service.card['id']}", 404, "model_not_found")
        return views.model_object(service, app.state.created)


def _files(app: FastAPI, service: Service) -> None:
    @app.post("/v1/files", tags=["files"], summary="Upload a picture, a video or a sound", status_code=201)
    async def upload(request: Request, owner: Maker) -> views.FileObject:
        try:
            form = await request.form(max_files=1, max_fields=4)
        except HTTPException as error:
            raise Refused(f"the form cannot be read: {error.detail}", code="bad_form") from None
        for name in form:
            if name != "file":
                raise Refused(f"an upload has no field {name!r}: send the file alone, as `file`", param=name)
        part = form.get("file")
        if part is None or isinstance(part, str):
            raise Refused("send a form (multipart/form-data) with the file in its field `file`", param="file")
        return views.file_object(await saved(part, service, owner))

    @app.get("/v1/files/{file_id}", tags=["files"], summary="What is known of an upload")
    def get_file(file_id: str, owner: Owner) -> views.FileObject:
        found = service.store.upload(file_id, owner)
        if found is None:
            raise not_found("file", file_id)
        return views.file_object(found)

    @app.delete("/v1/files/{file_id}", tags=["files"], summary="Remove an upload; jobs keep theirs")
    def delete_file(file_id: str, owner: Owner) -> views.Deleted:
        get_file(file_id, owner)
        service.store.delete_upload(file_id)
        return views.Deleted(id=file_id, object="file.deleted")


def _jobs(app: FastAPI, service: Service) -> None:
    every = {name: one for fields in service.backend.requests.values() for name, one in fields.items()}

    @app.post("/v1/jobs", tags=["jobs"], summary="Make something", status_code=201)
    async def create_job(request: Request, owner: Maker, idempotency_key: IdempotencyKey = None) -> views.JobObject:
        async with body_of(request, service, owner, every) as sent:
            make = lambda: views.job_object(service.create(sent, owner, "job", idempotency_key), service)
            return await run_in_threadpool(make)

    @app.get("/v1/jobs", tags=["jobs"], summary="Jobs, videos among them")
    def list_jobs(owner: Owner, limit: Limit = 20, order: Order = "desc", after: After = "") -> views.JobList:
        found, more = service.store.page(owner, None, after=after, limit=limit, ascending=order == "asc")
        return _page(views.JobList, [views.job_object(job, service) for job in found], more)

    @app.get("/v1/jobs/{job_id}", tags=["jobs"], summary="A job")
    def get_job(job_id: str, owner: Owner) -> views.JobObject:
        return views.job_object(service.job(job_id, owner), service)

    @app.delete("/v1/jobs/{job_id}", tags=["jobs"], summary="Remove a job and its files; cancels it first")
    def delete_job(job_id: str, owner: Owner) -> views.Deleted:
        job = service.job(job_id, owner)
        service.delete(job)
        return views.Deleted(id=job_id, object=f"{job.object}.deleted")

    @app.post("/v1/jobs/{job_id}/cancel", tags=["jobs"], summary="Stop a job within a latent frame")
    def cancel_job(job_id: str, owner: Owner) -> views.JobObject:
        return views.job_object(service.cancel(service.job(job_id, owner)), service)

    @app.get("/v1/jobs/{job_id}/events", tags=["jobs"], response_class=EventSourceResponse, **schema.EVENTS)
    def job_events(job_id: str, owner: Owner) -> EventSourceResponse:
        service.job(job_id, owner)
        return _events(service, job_id, owner, views.job_object)

    @app.get("/v1/jobs/{job_id}/files/{name}", tags=["jobs"], **schema.media("A file that it made"))
    def get_result(job_id: str, name: str, owner: Owner) -> FileResponse:
        return _file(service.result(service.job(job_id, owner), name))

    @app.get("/v1/jobs/{job_id}/content", tags=["jobs"], **schema.media("The first file that it made"))
    def job_content(job_id: str, owner: Owner) -> FileResponse:
        return _content(service, service.job(job_id, owner))

    @app.get("/v1/jobs/{job_id}/previews/{number}", tags=["jobs"], **schema.media("Frames of a step, side by side"))
    def get_preview(job_id: str, number: int, owner: Owner) -> FileResponse:
        return _file(service.preview(service.job(job_id, owner), number))


def _videos(app: FastAPI, service: Service) -> None:
    @app.post("/v1/videos", tags=["videos"], summary="Make a video", status_code=200)
    async def create_video(request: Request, owner: Maker, idempotency_key: IdempotencyKey = None) -> views.VideoObject:
        async with body_of(request, service, owner, videos.FIELDS) as sent:
            fields = lambda: videos.as_job(sent.asked, service.card)
            make = lambda: views.video_object(service.create(sent, owner, "video", idempotency_key, fields), service)
            return await run_in_threadpool(make)

    @app.get("/v1/videos", tags=["videos"], summary="Videos")
    def list_videos(owner: Owner, limit: Limit = 20, order: Order = "desc", after: After = "") -> views.VideoList:
        found, more = service.store.page(owner, "video", after=after, limit=limit, ascending=order == "asc")
        return _page(views.VideoList, [views.video_object(job, service) for job in found], more)

    @app.get("/v1/videos/{video_id}", tags=["videos"], summary="A video")
    def get_video(video_id: str, owner: Owner) -> views.VideoObject:
        return views.video_object(service.job(video_id, owner, "video"), service)

    @app.delete("/v1/videos/{video_id}", tags=["videos"], summary="Remove a video; cancels it first")
    def delete_video(video_id: str, owner: Owner) -> views.Deleted:
        service.delete(service.job(video_id, owner, "video"))
        return views.Deleted(id=video_id, object="video.deleted")

    @app.post("/v1/videos/{video_id}/cancel", tags=["videos"], summary="Stop a video within a latent frame")
    def cancel_video(video_id: str, owner: Owner) -> views.VideoObject:
        return views.video_object(service.cancel(service.job(video_id, owner, "video")), service)

    @app.get("/v1/videos/{video_id}/events", tags=["videos"], response_class=EventSourceResponse, **schema.EVENTS)
    def video_events(video_id: str, owner: Owner) -> EventSourceResponse:
        service.job(video_id, owner, "video")
        return _events(service, video_id, owner, views.job_object)

    @app.get("/v1/videos/{video_id}/content", tags=["videos"], **schema.media("The video, or a sheet of its frames"))
    def video_content(
        video_id: str, owner: Owner, variant: Annotated[str, Query(pattern="^(video|spritesheet)$")] = "video"
    ) -> FileResponse:
        return _content(service, service.job(video_id, owner, "video"), {"video": "", "spritesheet": ".png"}[variant])


def _page(kind: Any, data: list[Any], more: bool) -> Any:
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return kind(data=data, first_id=first, last_id=last, has_more=more)


def _file(path: Path) -> FileResponse:
    return FileResponse(path, media_type=views.media_type(path.name), headers={"cache-control": "private"})


def _content(service: Service, job: Job, suffix: str = "") -> FileResponse:
    names = (job.result or {}).get("files", [""])
    name = next((name for name in names if name.endswith(suffix)), "")
    return _file(service.result(job, name))


def _events(service: Service, job_id: str, owner: str, view: Callable[[Job, Service], Any]) -> EventSourceResponse:
    """Server-sent events: the job at once, whenever something is new, and at its end, which ends them."""

    def now() -> Mapping[str, str] | None:
        job = service.store.get(job_id, owner)
        if job is None:
            return None
        kind = "end" if job.state in ENDED else "progress" if job.state == "running" else "status"
        return {"event": kind, "data": view(job, service).model_dump_json()}

    async def words() -> AsyncIterator[ServerSentEvent]:
        queue = service.hub.listen(job_id)
        service.dispatcher.watch(job_id)
        try:
            while True:
                found = await run_in_threadpool(now)
                if found is None:
                    yield ServerSentEvent(event="deleted", data="{}")
                    return
                yield ServerSentEvent(**found)
                if found["event"] == "end" or await queue.get() is None and service.stopping:
                    return
        finally:
            service.hub.leave(job_id, queue)

    return EventSourceResponse(words(), ping=_PING_S)
