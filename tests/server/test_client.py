"""The Python client, and the examples of the service's page, against a service that really listens."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from running import served

from poet import media
from poet.client import ApiError, Client, JobFailed

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "poet/server/README.md").read_text()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with served(tmp_path_factory.mktemp("service") / "store") as found:
        yield found


@pytest.fixture(scope="module")
def client(service):
    return Client(str(service.base_url), retries=1)


@pytest.fixture
def still(tmp_path):
    media.write_png_strip(tmp_path / "frame.png", np.zeros((1, 16, 16, 3), np.uint8))
    return tmp_path / "frame.png"


def test_a_video_is_made_and_downloaded(client, still, tmp_path):
    seen = []
    job = client.wait(client.video("a door", seed=4, image=still), on_progress=seen.append)
    assert (
        job.ended and job.seed == 4 and job.task == "image_to_video" and job.request["input_reference"][:5] == "file_"
    )
    assert {found.status for found in seen} >= {"completed"} and seen[-1] == job
    (path,) = client.download(job, tmp_path / "clips")
    assert path.read_bytes() == client.content(job) and len(client.content(job)) == job.files[0].bytes
    with pytest.raises(ValueError, match="000.png"):
        client.content(job, "other")
    assert next(client.jobs(limit=1)).id == job.id and client.ready
    client.delete(job)
    with pytest.raises(ApiError, match="there is no job") as raised:
        client.job(job)
    assert raised.value.status == 404 and raised.value.code == "not_found" and raised.value.request_id


def test_results_are_taken_on_and_lists_of_jobs_are_whole(client, still):
    first = client.wait(client.submit("image_to_video", clip=still, seed=1))
    second = client.wait(client.submit("image_to_video", clip=first, seed=2))
    assert second.request["clip"] == first.id
    found = [job.id for job in client.jobs(limit=1)]
    assert len(found) == len(set(found)) and found[:2] == [second.id, first.id]
    assert client.models()[0]["requests"]["text_to_video"]["seed"]["type"] == "integer"


def test_failures_cancellations_and_refusals_are_told(client):
    with pytest.raises(JobFailed, match="an error of the service"):
        client.wait(client.submit("text_to_video", fault="raise"))
    job = client.submit("long", steps=500)
    client.cancel(job)
    with pytest.raises(JobFailed, match="cancelled"):
        client.wait(job)
    with pytest.raises(ApiError, match="did you mean prompt") as raised:
        client.submit("text_to_video", promt="x")
    assert raised.value.status == 400
    slow = client.submit("long", steps=500)
    with pytest.raises(TimeoutError, match="it goes on"):
        client.wait(slow, timeout_s=0.1)
    client.delete(slow)


class Shaky(threading.Thread):
    """A door to a service that answers the first requests with nothing, after passing them on."""

    def __init__(self, port: int, failures: int):
        super().__init__(daemon=True)
        self._port, self._failures, self.door = port, failures, socket.create_server(("127.0.0.1", 0))

    def run(self):
        while True:
            ours, _ = self.door.accept()
            request = ours.recv(65_536)
            while b"\r\n\r\n" not in request or len(request.split(b"\r\n\r\n", 1)[1]) < _length(request):
                request += ours.recv(65_536)
            with socket.create_connection(("127.0.0.1", self._port)) as theirs:
                theirs.sendall(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
                answer = b"".join(iter(lambda: theirs.recv(65_536), b""))
            self._failures -= 1
            if self._failures < 0:
                ours.sendall(answer)
            ours.close()


def _length(request: bytes) -> int:
    found = re.search(rb"content-length: (\d+)", request, re.I)
    return int(found[1]) if found else 0


def test_a_request_whose_answer_is_lost_makes_one_job(service):
    door = Shaky(service.base_url.port, failures=2)
    door.start()
    shaky = Client(f"http://127.0.0.1:{door.door.getsockname()[1]}", retries=3)
    before = service.service.store.count("queued", "running", "done")
    job = shaky.submit("text_to_video", steps=1)
    assert service.service.store.count("queued", "running", "done") == before + 1
    assert Client(str(service.base_url)).wait(job).status == "completed"


def test_no_service_is_an_error_in_words():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ApiError, match="does not answer") as raised:
        Client(f"http://127.0.0.1:{port}", retries=0).models()
    assert raised.value.status == 0 and not Client(f"http://127.0.0.1:{port}").ready


def test_the_client_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import poet.client; print([m for m in sys.modules if 'poet' in m])"
    code += "; print({'jax', 'numpy', 'httpx'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT).stdout
    assert "['poet', 'poet.client']" in said and "set()" in said


def test_the_example_of_the_page_runs(service, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert 20 <= len(example.splitlines()) <= 40
    media.write_png_strip(tmp_path / "frame.png", np.zeros((1, 16, 16, 3), np.uint8))
    code = example.replace("http://127.0.0.1:8000", str(service.base_url).rstrip("/"))
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "clips/000.png" in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curls_of_the_page_are_answered(service, tmp_path, still):
    """Each in turn; the ids in one are those that the ones before it gave."""
    lines = [line for line in re.findall(r"```bash\n(.*?)```", PAGE, re.S)[1].splitlines() if line.startswith("curl")]
    assert len(lines) >= 8
    ids = {"file": "", "job": "", "video": ""}
    for line in lines:
        for kind, value in ids.items():
            line = line.replace(f"{kind.upper()}_ID", value)
        line = line.replace("localhost:8000", str(service.base_url).rstrip("/")).replace('"num": 2', '"steps": 200')
        words = [*shlex.split(line), "-sS", "--fail-with-body", "--max-time", "30"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if done.stdout.startswith("{"):
            found = json.loads(done.stdout)["id"]
            ids[found.partition("_")[0]] = found
    assert (tmp_path / "clip.mp4").stat().st_size and all(ids.values())
