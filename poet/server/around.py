"""Around each request: its id, its log line and count, the size of its body, and what goes wrong inside."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from poet.server.access import foreign
from poet.server.service import Refused, Service
from poet.server.settings import MIB

_LOG = logging.getLogger(__name__)
_FORM_FILES = 4

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def error_response(message: str, status: int, code: str, param: str = "", retry_s: float = 0) -> JSONResponse:
    """An answer of the form that clients of the OpenAI API know."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "code": code, "param": param or None}}
    headers = {"retry-after": str(max(round(retry_s), 1))} if retry_s else {}
    headers |= {"www-authenticate": "Bearer"} if status == 401 else {}
    headers |= {"connection": "close"} if status == 413 else {}
    return JSONResponse(body, status, headers)


def refusal(error: Refused) -> JSONResponse:
    """The answer to a request that is not taken."""
    return error_response(str(error), error.status, error.code, error.param, error.retry_s)


class Around:
    """ASGI middleware of a service.

    Args:
      listens_on: the address of the service.
    """

    def __init__(self, app: Any, service: Service, listens_on: str):
        self._app, self._service, self._listens_on = app, service, listens_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, begun, status = f"req_{secrets.token_hex(8)}", time.monotonic(), 0

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("x-content-type-options", "nosniff")
                if scope["path"].startswith("/v1/"):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        try:
            why = foreign(headers, self._listens_on)
            most = self._most_bytes(headers)
            if why:
                await refusal(Refused(why, 403, "foreign"))(scope, receive, sending)
            elif _stated(headers) > most:
                await refusal(_too_large(most))(scope, receive, sending)
            else:
                await self._app(scope, _counted(receive, most), sending)
        except Exception:
            _LOG.exception("request failed", extra={"request": request_id})
            if status:  # The answer has begun: all that is left is to break it off.
                raise
            message = f"an error of the service; its log has it as {request_id}"
            await error_response(message, 500, "internal")(scope, receive, sending)
        finally:
            self._note(scope, request_id, status, time.monotonic() - begun)

    def _most_bytes(self, headers: Headers) -> int:
        settings, kind = self._service.settings, headers.get("content-type", "").lower()
        files = _FORM_FILES * settings.max_upload_mib if kind.startswith("multipart/") else 0
        return int((settings.max_body_mib + files) * MIB)

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        where = getattr(scope.get("route"), "path", "other")
        self._service.metrics.requests.labels(scope["method"], where, status).inc()
        facts = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": round(seconds, 4)}
        _LOG.info("request", extra={"request": request_id, **facts})


def _stated(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def _too_large(most: int) -> Refused:
    return Refused(f"a body of more than {most} bytes", 413, "too_large")


def _counted(receive: Receive, most: int) -> Receive:
    size = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise _too_large(most)
        return message

    return counted
