"""An emulator of Google Cloud Storage as a process of its own, which fails where it is asked to.

    python tests/runs/buckets/emulator.py FOLDER BUCKET    keeps objects in FOLDER, prints its port, ends with its input

gcp-storage-emulator answers, with some additions: it keeps to `ifGenerationMatch`, uploads may be empty or given up,
and faults that were posted to /_faults come before its answers.  A fault is {"path": a regular expression that the
request's line contains, "times": N, "skip": how many it lets through before (0), "answer": 429, 503, ..., "reset" (the
connection breaks), "hang" (no answer), "slow" (after half a second), or "after" (done, and the answer is lost)}.
/_log returns all requests since it was last asked.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
import time
import urllib.parse
from http.server import ThreadingHTTPServer
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import Request, RequestHandler
from gcp_storage_emulator.storage import Storage

# It takes an empty body for none.
_data = Request.data.fget
Request.data = property(lambda self: b"" if (found := _data(self)) is None and self.method == "POST" else found)
HANG_S, SLOW_S = 3600.0, 0.5


class Bucket:
    """The objects, the faults that are still to come, and the requests so far."""

    def __init__(self, folder: str, bucket: str):
        self.storage = Storage(data_dir=folder)
        create_bucket(bucket, self.storage)
        self.lock = threading.RLock()
        self.faults: list[dict[str, Any]] = []
        self.log: list[str] = []

    def fault(self, line: str) -> Any:
        with self.lock:
            for fault in self.faults:
                if fault["times"] > 0 and re.search(fault["path"], line):
                    if fault.get("skip", 0) > 0:
                        fault["skip"] -= 1
                        continue
                    fault["times"] -= 1
                    return fault["answer"]
        return None

    def generation(self, bucket: str, name: str) -> str:
        try:
            return str(self.storage.get_file_obj(bucket, name)["generation"])
        except NotFound:
            return "0"


class Handler(RequestHandler):
    def __init__(self, bucket: Bucket, *args: Any):
        self.bucket = bucket
        super().__init__(bucket.storage, *args)

    def _handle(self) -> None:
        line = f"{self.command} {urllib.parse.unquote(self.path)}"
        if line.endswith("/_faults"):
            with self.bucket.lock:
                self.bucket.faults = json.loads(self._body())
            return self._answer(200, {})
        if line.endswith("/_log"):
            with self.bucket.lock:
                log, self.bucket.log = self.bucket.log, []
            return self._answer(200, log)
        self.bucket.log.append(line)
        answer = self.bucket.fault(line)
        if answer == "hang":
            time.sleep(HANG_S)
        if answer == "slow":
            time.sleep(SLOW_S)
        if answer == "reset":
            return self._reset()
        if self.command == "DELETE" and "upload_id=" in line:  # Google's answer to an upload that is given up.
            answer = 499
        if isinstance(answer, int):
            self._body()
            return self._answer(answer, {"error": {"code": answer, "message": "injected"}})
        with self.bucket.lock:
            if not self._met():
                self._body()
                return self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            if answer == "after":
                self.wfile = open("/dev/null", "wb")
            getattr(super(), f"do_{self.command}")()
        if answer == "after":
            self._reset()
        return None

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _met(self) -> bool:
        """Whether the object has the generation that the request names, if it names one."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        found = re.search(r"/b/([^/]+)/o(?:/(.+))?$", url.path)
        if "ifGenerationMatch" not in query or not found:
            return True
        name = query.get("name") or urllib.parse.unquote(found[2] or "")
        return self.bucket.generation(found[1], name) == query["ifGenerationMatch"]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, code: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.connection.close()
        self.wfile = self.rfile = open("/dev/null", "r+b")


def main(folder: str, bucket: str) -> None:
    logging.disable(logging.CRITICAL)
    known = Bucket(folder, bucket)
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Handler(known, *args))
    server.handle_error = lambda *args: None  # Clients that are killed.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
