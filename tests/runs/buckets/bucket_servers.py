"""A bucket for a test: the emulator's process, what is in it, and the faults that it is to answer with."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poet.runs.buckets.files import Place

BUCKET = "testing"
EMULATOR = "STORAGE_EMULATOR_HOST"


class Server:
    """A running emulator.  `address` is what gcsfs takes from STORAGE_EMULATOR_HOST."""

    def __init__(self, port: int):
        self.address = f"http://127.0.0.1:{port}"

    def fail(self, path: str, answer: int | str, times: int = 1) -> None:
        """The next requests whose line 'METHOD /path?query' contains a regular expression fail."""
        self.faults([{"path": path, "answer": answer, "times": times}])

    def faults(self, faults: list[dict[str, Any]]) -> None:
        self._post("_faults", faults)

    def requests(self) -> list[str]:
        """All since the last call."""
        return self._post("_log", None)

    def _post(self, path: str, value: Any) -> Any:
        request = urllib.request.Request(f"{self.address}/{path}", json.dumps(value).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The emulator with one empty bucket, `BUCKET`."""
    argv = [sys.executable, str(Path(__file__).with_name("emulator.py")), str(folder), BUCKET]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Server(int(process.stdout.readline()))
        process.stdin.close()
        process.wait(30)


def put(url: str, folder: Path) -> None:
    """Uploads all files of a folder."""
    place = Place(url)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        place.upload(file, file.relative_to(folder).as_posix())


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
