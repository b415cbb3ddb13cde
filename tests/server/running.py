"""A service over the stand-in backend that really listens, and a small client of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from stand_in import StandIn

from poet.server import api
from poet.server.access import Keys
from poet.server.run import listening
from poet.server.service import Service
from poet.server.settings import ServeSpec
from poet.server.store import Store

ENDED = ("completed", "failed", "cancelled")


class Client(httpx.Client):
    """With what tests do again and again."""

    service: Service

    def make(self, task: str = "text_to_video", headers: dict[str, str] | None = None, **fields: Any) -> str:
        """The id of a new job."""
        answer = self.post("/v1/jobs", json={"task": task, **fields}, headers=headers)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self.get(f"/v1/jobs/{job_id}").json()

    def until(self, job_id: str, *states: str, seconds: float = 60) -> dict[str, Any]:
        """A job when it has come to one of these states (default: its end)."""
        end = time.monotonic() + seconds
        while (found := self.job(job_id))["status"] not in (states or ENDED):
            assert time.monotonic() < end, found
            time.sleep(0.02)
        return found


@contextlib.contextmanager
def served(
    folder: Path, backend: Any = None, keys: Keys | None = None, ready: bool = True, **settings: Any
) -> Iterator[Client]:
    """A service in this process, on a free port."""
    with Store.opened(folder) as store, listening("127.0.0.1", 0) as listener:
        service = Service(store, backend or StandIn(), ServeSpec(**{"grace_seconds": 0.0, **settings}))
        config = uvicorn.Config(api.create(service, keys), log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
                client.service = service
                while ready and service.not_ready:
                    time.sleep(0.01)
                yield client
        finally:
            service.hub.close()
            server.should_exit = True
            thread.join()
