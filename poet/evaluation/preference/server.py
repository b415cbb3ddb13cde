"""`poet prefer serve`: the page of a study on this machine alone, by the standard library.

It answers requests that name a loopback host, so that no page of another site can reach it by a name of its own.
"""

from __future__ import annotations

import http.server
import json
import mimetypes
import re
import threading
import urllib.parse
from http import HTTPStatus
from pathlib import Path
from typing import Any

from poet.evaluation.preference import answers, study
from poet.evaluation.preference.answers import Answers, Writer
from poet.evaluation.preference.study import Study

HOST = "127.0.0.1"
API = "/api/answers"
_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
# An answer is a short object.
_MOST_BYTES = 4096
_POLICY = "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class Server(http.server.ThreadingHTTPServer):
    """Serves a study until it is shut down.

    Args:
      folder: of the study.
      port: 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, folder: Path, found: Study, port: int = 0) -> None:
        self.study, self.page = found, folder / study.PAGE
        file = folder / answers.FILE
        self.lock = threading.Lock()
        self.known: Answers = answers.read(found, [file]).answers if file.is_file() else {}
        self.served = {path.relative_to(self.page).as_posix() for path in self.page.rglob("*") if path.is_file()}
        super().__init__((HOST, port), _Handler)
        self.writer = Writer(file)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def of_rater(self, rater: int) -> dict[str, dict[str, str]]:
        """Trial -> question -> answer."""
        found: dict[str, dict[str, str]] = {}
        with self.lock:
            for (who, trial, question), answer in self.known.items():
                if who == rater:
                    found.setdefault(trial, {})[question] = answer
        return found

    def keep(self, said: dict[str, Any]) -> None:
        """Writes an answer that was checked, then knows it."""
        key = said["rater"], said["trial"], said["question"]
        self.writer.add(self.study, *key, said["answer"])
        with self.lock:
            self.known[key] = said["answer"]

    def server_close(self) -> None:
        super().server_close()
        self.writer.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:  # noqa: N802, the name that the library calls
        if not self._is_local():
            return
        url = urllib.parse.urlsplit(self.path)
        if url.path == API:
            text = urllib.parse.parse_qs(url.query).get("rater", [""])[0]
            known = text.isascii() and text.isdigit() and 1 <= int(text) <= len(self.server.study.raters)
            if not known:
                return self._problem(HTTPStatus.BAD_REQUEST, f"rater must be 1 to {len(self.server.study.raters)}")
            return self._json(HTTPStatus.OK, {"answers": self.server.of_rater(int(text))})
        name = urllib.parse.unquote(url.path).lstrip("/") or "index.html"
        if name not in self.server.served:
            return self._problem(HTTPStatus.NOT_FOUND, "no such file")
        self._file(self.server.page / name)

    def do_POST(self) -> None:  # noqa: N802
        if not self._is_local():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MOST_BYTES:
            self.close_connection = True
            return self._problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an answer has {_MOST_BYTES} bytes at most")
        body = self.rfile.read(int(length))
        if self.path != API or self.headers.get_content_type() != "application/json":
            return self._problem(HTTPStatus.NOT_FOUND, f"answers go to {API} as application/json")
        try:
            said = json.loads(body)
        except ValueError:
            return self._problem(HTTPStatus.BAD_REQUEST, "the answer is no JSON")
        if why := answers.problem(self.server.study, said):
            return self._problem(HTTPStatus.BAD_REQUEST, why)
        self.server.keep(said)
        self._json(HTTPStatus.OK, {"kept": True})

    def _is_local(self) -> bool:
        """Whether the request names a loopback host, and comes from a page of one, if from any."""
        origin = urllib.parse.urlsplit(self.headers.get("Origin", "")).netloc
        if all(_LOOPBACK.fullmatch(name) for name in (self.headers.get("Host", ""), origin or HOST)):
            return True
        self.close_connection = True
        self._problem(HTTPStatus.FORBIDDEN, "this server answers this machine alone")
        return False

    # ---------------------------------------------------------------------------------- replies

    def _file(self, path: Path) -> None:
        data = path.read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(part[1]) if part else 0
        last = min(int(part[2] or len(data)), len(data) - 1) if part else len(data) - 1
        if first > last:
            return self._reply(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", {"Content-Range": f"bytes */{len(data)}"}
            )
        kind = {".js": "text/javascript"}.get(path.suffix) or mimetypes.guess_type(path.name)[0]
        more = {"Content-Type": kind or "application/octet-stream", "Accept-Ranges": "bytes"}
        if part:
            more["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._reply(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK, data[first : last + 1], more)

    def _json(self, status: HTTPStatus, content: Any) -> None:
        self._reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _problem(self, status: HTTPStatus, why: str) -> None:
        self._json(status, {"error": why})

    def _reply(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        every = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        for name, value in (headers | every | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: answers are kept elsewhere."""
