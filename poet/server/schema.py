"""What `/openapi.json` says beyond what follows from the routes: bodies, whose fields are those of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from poet.server import videos
from poet.server.backend import Backend
from poet.server.fields import MEDIA, Schema
from poet.server.service import Service

ERRORS = {
    400: "A field is unknown, contradicts another or has a value that is not allowed",
    401: "No API key, or an unknown one",
    403: "Sent by a page of another site",
    404: "There is no such thing, or it is of another key",
    409: "It is in another state, or its idempotency key was used for another request",
    410: "Its files are gone",
    413: "The body is too large",
    415: "Neither JSON nor a form",
    429: "Too many requests, or the queue is full; `retry-after` has seconds",
    500: "An error of the service",
    503: "It is stopping, loads its model, or cannot store anything now",
}
EVENTS: dict[str, Any] = {
    "summary": "Server-sent events: `status`, `progress`, `end`, each with the job as its data",
    "responses": {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events"}},
}
_KEY = "API key"


def media(summary: str) -> dict[str, Any]:
    """What a route says that answers with a file."""
    from fastapi.responses import FileResponse

    content = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    partial = {"description": "The bytes that `Range` asks for", "content": content}
    answers = {
        200: {"content": content, "description": "The file"},
        206: partial,
        416: {"description": "No such bytes"},
    }
    return {"summary": summary, "response_class": FileResponse, "responses": answers}


def install(app: FastAPI, service: Service) -> None:
    """Makes the application describe the bodies that its service takes."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _complete(found, service, bool(app.state.keys))
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi


def _complete(found: dict[str, Any], service: Service, keys: bool) -> None:
    paths, components = found["paths"], found.setdefault("components", {})
    backend = service.backend
    requests = {f"Request_{task}": _request(task, backend) for task in backend.requests}
    components.setdefault("schemas", {}).update(requests)
    names = {task: f"#/components/schemas/Request_{task}" for task in backend.requests}
    job = {
        "oneOf": [{"$ref": name} for name in names.values()],
        "discriminator": {"propertyName": "task", "mapping": names},
    }
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"request": {"type": "string"}, **dict.fromkeys(MEDIA, binary)}}
    of_jobs = {
        "application/json": {"schema": job},
        "multipart/form-data": {"schema": {**form, "required": ["request"]}},
    }
    video = _object(videos.FIELDS, ["prompt"])
    in_form = _object({**videos.FIELDS, "input_reference": binary}, ["prompt"])
    of_videos = {"application/json": {"schema": video}, "multipart/form-data": {"schema": in_form}}
    of_files = {"multipart/form-data": {"schema": _object({"file": binary}, ["file"])}}
    for path, content in (("/v1/jobs", of_jobs), ("/v1/videos", of_videos), ("/v1/files", of_files)):
        paths[path]["post"]["requestBody"] = {"required": True, "content": content}
    for operations in paths.values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # Such answers have 400.
    if keys:
        components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
        found["security"] = [{_KEY: []}]


def _request(task: str, backend: Backend) -> Schema:
    named = {"task": {"type": "string", "enum": [task]}}
    return _object({**named, **backend.requests[task]}, ["task", *backend.required.get(task, ())])


def _object(properties: Mapping[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties), "required": required}
