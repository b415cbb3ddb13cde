"""Bodies of requests: JSON, or a form whose files become uploads."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from poet.server.fields import Schema
from poet.server.service import Refused, Sent, Service
from poet.server.settings import MIB

# Parts of a form.
_MOST_FILES, _MOST_FIELDS = 16, 64
# The field of a form that holds the others as JSON.
REQUEST = "request"
_READ_BYTES = 2**20


@contextlib.asynccontextmanager
async def body_of(request: Request, service: Service, owner: str, fields: Mapping[str, Schema]) -> AsyncIterator[Sent]:
    """The fields of a request; files of a form are taken in, and stand as ids in their fields.

    Args:
      fields: schemas of fields, by which the texts of a form become numbers.

    Raises Refused for anything else than a JSON object or a form, and for files that are no media.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with _form(request, service, owner, fields) as sent:
            yield sent
        return
    if kind not in ("application/json", ""):
        raise Refused(
            f"content-type {kind}: send application/json or multipart/form-data", 415, "unsupported_media_type"
        )
    body = await request.body()
    yield await run_in_threadpool(lambda: Sent.of(_object(body)))


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON: {error}", code="not_json") from None
    if not isinstance(found, dict):
        raise Refused("the body is no JSON object", code="not_json")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


@contextlib.asynccontextmanager
async def _form(request: Request, service: Service, owner: str, fields: Mapping[str, Schema]) -> AsyncIterator[Sent]:
    try:
        form = await request.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_part_bytes(service))
    except HTTPException as error:
        raise Refused(f"the form cannot be read: {error.detail}", code="bad_form") from None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(form.close)
        values: dict[str, Any] = {}
        files: list[tuple[str, UploadFile]] = []
        for name, part in form.multi_items():
            if isinstance(part, UploadFile):
                files.append((name, part))
            elif name == REQUEST:
                values |= _object(part.encode())
            else:
                values[name] = _value(part, fields.get(name, {}))
        digests = {f"{n}.{name}": await run_in_threadpool(_digest, part) for n, (name, part) in enumerate(files)}
        asked = dict(values)
        for name, part in files:
            upload = await saved(part, service, owner)
            asked[name] = upload.id if name not in asked else [*_listed(asked[name]), upload.id]
        yield Sent(asked, Sent.of(values, digests).digest)


def _part_bytes(service: Service) -> int:
    return int(service.settings.max_body_mib * MIB)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _value(text: str, schema: Schema) -> Any:
    """A field of a form, which is a text, as its schema wants it."""
    wanted = {part.get("type") for part in schema.get("anyOf", [schema])}
    if "string" in wanted and not (text.startswith("[") and "array" in wanted):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _digest(part: UploadFile) -> str:
    part.file.seek(0)
    found = hashlib.sha256()
    while data := part.file.read(_READ_BYTES):
        found.update(data)
    part.file.seek(0)
    return found.hexdigest()


async def saved(part: UploadFile, service: Service, owner: str) -> Any:
    """The upload of a file of a form.  Its name is not used, but for a suffix that helps to know its format."""
    return await anyio.to_thread.run_sync(_save, part, service, owner, limiter=service.intakes)


def _save(part: UploadFile, service: Service, owner: str) -> Any:
    import tempfile

    most = int(service.settings.max_upload_mib * MIB)
    suffix = Path(part.filename or "").suffix[:8].lower()
    suffix = suffix if suffix[1:].isalnum() and suffix.isascii() else ""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        size = 0
        while data := part.file.read(_READ_BYTES):
            size += len(data)
            if size > most:
                raise Refused(f"a file of more than {service.settings.max_upload_mib:g} MiB", 413, "too_large")
            file.write(data)
        file.flush()
        if not size:
            raise Refused("the file is empty", code="bad_media")
        return service.upload(Path(file.name), owner)
