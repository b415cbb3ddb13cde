"""What the API says: its objects, as `/openapi.json` declares them."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from poet.server.service import Service
from poet.server.store import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Job, Upload
from poet.server.videos import size_of

# Names of states in the OpenAI videos API.
STATUS = {QUEUED: "queued", RUNNING: "in_progress", DONE: "completed", FAILED: "failed", CANCELLED: "cancelled"}
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str = Field(description="what was sent, what is allowed, what to do")
    type: str = Field(description="invalid_request_error, or server_error")
    code: str | None = None
    param: str | None = Field(None, description="the field at fault")


class Error(BaseModel):
    """Every answer of 400 and above."""

    error: ErrorFacts


class JobError(BaseModel):
    """Why a job failed."""

    code: str = Field(description="bad_request, bad_media, too_large, worker_died or internal")
    message: str


class ResultFile(BaseModel):
    """A file that a job made."""

    name: str
    bytes: int
    media_type: str
    url: str


class JobObject(BaseModel):
    """A job."""

    id: str
    object: Literal["job", "video"]
    model: str
    task: str
    status: Status
    progress: int = Field(ge=0, le=100, description="percent of its work")
    queue_position: int | None = Field(description="jobs before it; null unless it is queued")
    created_at: int
    started_at: int | None
    completed_at: int | None
    expires_at: int | None = Field(description="when it is removed with its files, if nothing makes room earlier")
    seed: int = Field(description="of its noise, fixed when it was accepted")
    request: dict[str, Any] = Field(description="what was asked for")
    cancelling: bool = Field(description="it shall stop, and has not yet")
    latents: int = Field(description="latent frames of its pictures that are whole")
    seconds_left: float | None = Field(description="an estimate while it runs")
    preview: str | None = Field(description="URL of a picture of the newest frames, while it runs")
    error: JobError | None
    files: list[ResultFile] = Field(description="what it made; the film first")
    texts: list[str] = Field(description="texts that it made")


class VideoObject(BaseModel):
    """A job in the words of the OpenAI videos API."""

    id: str
    object: Literal["video"]
    model: str
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    seconds: str
    size: str
    seed: int
    queue_position: int | None
    remixed_from_video_id: None = None
    error: JobError | None


class JobList(BaseModel):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """What was removed."""

    id: str
    object: str
    deleted: Literal[True] = True


class FileObject(BaseModel):
    """An upload."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    kind: Literal["picture", "video", "sound"]
    frames: int
    height: int
    width: int
    seconds: float
    has_sound: bool


class TaskFacts(BaseModel):
    """What a task takes and makes: enough for a form."""

    name: str
    text: bool
    clip: bool
    clip_needed: bool
    clip_medium: str
    conditioning_frames: list[int]
    end: bool
    regions: list[str]
    mask: bool
    depth: bool
    depth_needed: bool
    outputs: list[str]
    formats: list[str]


class ModelObject(BaseModel):
    """The model of the service."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "poet"
    fingerprint: str
    clip: dict[str, float]
    scale: int = Field(1, description="how many times as high and wide super-resolution makes a clip")
    tasks: list[TaskFacts]
    films: list[str]
    sample: dict[str, Any]
    batch: int
    limits: dict[str, Any]
    requests: dict[str, Any] = Field(description="task -> JSON schemas of the fields of its requests")


class ModelList(BaseModel):
    """The models of the service: one."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """Whether the service lives, or works."""

    status: str
    reason: str = ""


def _common(job: Job, service: Service) -> dict[str, Any]:
    word = service.hub.last(job.id) or {}
    expires = job.finished and job.finished + service.settings.keep_hours * 3600
    fraction = 1.0 if job.state == DONE else word.get("fraction", 0.0) if job.state == RUNNING else 0.0
    return {
        "id": job.id,
        "model": service.card["id"],
        "status": STATUS[job.state],
        "progress": 100 if job.state == DONE else min(int(100 * fraction), 99),
        "queue_position": service.store.position(job) if job.state == QUEUED else None,
        "created_at": int(job.created),
        "completed_at": None if job.finished is None else int(job.finished),
        "expires_at": None if expires is None else int(expires),
        "seed": job.seed,
        "error": None if job.error is None else JobError(code=job.error["kind"], message=job.error["message"]),
    }


def job_object(job: Job, service: Service) -> JobObject:
    """A job as it is now."""
    word, result = service.hub.last(job.id) or {}, job.result or {}
    running = job.state == RUNNING
    number = word.get("preview")
    return JobObject(
        **_common(job, service),
        object=job.object,
        task=job.task,
        started_at=None if job.started is None else int(job.started),
        request=dict(job.request["asked"]),
        cancelling=job.cancelling,
        latents=word.get("latents", 0) if running else 0,
        seconds_left=word.get("left_s") if running else None,
        preview=f"/v1/jobs/{job.id}/previews/{number}" if running and number is not None else None,
        files=[result_file(job, name, service) for name in result.get("files", ())],
        texts=list(result.get("texts", ())),
    )


def result_file(job: Job, name: str, service: Service) -> ResultFile:
    """A file of a job that is done."""
    path = service.store.place(job.id) / "out" / name
    size = path.stat().st_size if path.is_file() else 0
    return ResultFile(name=name, bytes=size, media_type=media_type(name), url=f"/v1/jobs/{job.id}/files/{name}")


def media_type(name: str) -> str:
    """The type of a file by its suffix."""
    known = {".mkv": "video/x-matroska", ".webm": "video/webm", ".apng": "image/apng"}
    return known.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


def video_object(job: Job, service: Service) -> VideoObject:
    """A job of `/v1/videos`."""
    asked, clip = job.request["asked"], service.card["clip"]
    seconds = job.request.get("seconds") or clip["seconds"]
    prompt, asked_larger = asked.get("prompt"), job.request.get("request", {}).get("upscale")
    return VideoObject(
        **_common(job, service),
        object="video",
        prompt=prompt if isinstance(prompt, str) else None,
        seconds=f"{seconds:g}",
        size=size_of(clip, service.card.get("scale", 1) if asked_larger else 1),
    )


def file_object(upload: Upload) -> FileObject:
    """An upload."""
    about: Mapping[str, Any] = upload.about
    return FileObject(id=upload.id, bytes=upload.size_bytes, created_at=int(upload.created), **about)


def model_object(service: Service, created: float) -> ModelObject:
    """The model."""
    return ModelObject(**service.card, created=int(created), requests=dict(service.backend.requests))
