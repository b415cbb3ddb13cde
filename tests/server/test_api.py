"""The API over HTTP, with a stand-in for the model: lives of jobs, errors, keys, limits, what survives a death."""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import stand_in
from PIL import Image
from running import served

from poet import media
from poet.server import dispatcher
from poet.server.access import Keys, Rates, foreign
from poet.server.run import serve
from poet.spec import ClipSpec, UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with served(tmp_path_factory.mktemp("service") / "store") as found:
        yield found


def events(client, job_id: str) -> list[tuple[str, dict]]:
    """(kind, job) of every event until the end."""
    found, kind = [], ""
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                found.append((kind, json.loads(value)))
    return found


def picture(seed: int, prompt: str = "", steps: int = 4) -> bytes:
    """The file that the stand-in makes."""
    strip, file = media.frame_strip(stand_in.frames_of(seed, prompt, steps)), io.BytesIO()
    Image.fromarray(strip).save(file, "png")
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# ------------------------------------------------------------------------------------ lives of jobs


def test_a_video_is_made_followed_fetched_and_removed(client):
    answer = client.post("/v1/videos", json={"prompt": "a door", "seed": 5, "seconds": "1", "size": "16x16"})
    video = answer.json()
    assert answer.status_code == 200 and video["object"] == "video" and video["status"] in ("queued", "in_progress")
    told = events(client, video["id"])
    assert [kind for kind, _ in told][-1] == "end" and told[-1][1]["status"] == "completed"
    progress = [job["progress"] for kind, job in told if kind == "progress"]
    assert progress == sorted(progress) and max(progress) < 100
    found = client.get(f"/v1/videos/{video['id']}").json()
    assert found["status"] == "completed" and found["progress"] == 100 and found["seed"] == 5
    content = client.get(f"/v1/videos/{video['id']}/content")
    assert content.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels(content.content), pixels(picture(5, "a door")))
    part = client.get(f"/v1/videos/{video['id']}/content", headers={"range": "bytes=1-3"})
    assert part.status_code == 206 and part.content == b"PNG"
    assert client.delete(f"/v1/videos/{video['id']}").json() == {
        "id": video["id"],
        "object": "video.deleted",
        "deleted": True,
    }
    assert client.get(f"/v1/videos/{video['id']}").status_code == 404
    assert not client.service.store.place(video["id"]).exists()


def test_events_have_pictures_of_new_frames(client):
    job_id = client.make(prompt="a hall", seed=1, steps=12)
    urls = [job["preview"] for kind, job in events(client, job_id) if job["preview"]]
    assert urls
    number = int(urls[-1].rsplit("/", 1)[1])
    shown = pixels(client.get(urls[-1]).content)
    np.testing.assert_array_equal(shown, stand_in.frames_of(1, "a hall", 12)[number])


def test_a_longer_video_is_a_film_and_a_seed_is_fixed_at_acceptance(client):
    video = client.post("/v1/videos", json={"prompt": "x", "seconds": 2.5}).json()
    job = client.until(video["id"])
    assert job["task"] == "long" and job["status"] == "completed" and job["seed"] == video["seed"]
    other = client.post("/v1/videos", json={"prompt": "x"}).json()
    assert other["seed"] != video["seed"]


def test_a_form_with_a_picture_and_a_result_as_the_next_one_s_clip(client):
    still = picture(3)
    form = {"prompt": "go on", "seed": "7", "guidance_scale": "1.5"}
    video = client.post("/v1/videos", data=form, files={"input_reference": ("../../etc/x.png", still, "image/png")})
    job = client.until(video.json()["id"])
    assert job["task"] == "image_to_video" and job["status"] == "completed" and job["seed"] == 7
    again = client.until(client.make("image_to_video", clip=job["id"], seed=1))
    assert again["status"] == "completed" and again["request"]["clip"] == job["id"]
    inputs = [path.name for path in (client.service.store.place(again["id"]) / "inputs").iterdir()]
    assert inputs == ["0.png"]


def test_a_key_makes_one_job_of_a_request_that_is_sent_twice(client):
    body, key = {"prompt": "once", "steps": 1, "task": "text_to_video"}, {"idempotency-key": "k1"}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/jobs", json=body, headers=key).json()["id"], range(8)))
    assert len(set(answers)) == 1
    other = client.post("/v1/jobs", json={**body, "prompt": "twice"}, headers=key)
    assert other.status_code == 409 and other.json()["error"]["code"] == "idempotency_conflict"


def test_places_in_the_queue_and_what_runs(client):
    slow = [client.make(steps=60, seed=n) for n in range(3)]  # They fill the batch.
    client.until(slow[0], "in_progress")
    waiting = [client.make(prompt="w", steps=2 + n, seed=n) for n in range(3)]
    states = [client.job(job_id) for job_id in [*slow, *waiting]]
    assert [job["status"] for job in states] == ["in_progress"] * 3 + ["queued"] * 3
    assert [job["queue_position"] for job in states] == [None] * 3 + [0, 1, 2]
    assert all(job["started_at"] is None for job in states[3:])
    assert client.post(f"/v1/jobs/{waiting[0]}/cancel").json()["status"] == "cancelled"
    assert client.job(waiting[1])["queue_position"] == 0
    begun = time.monotonic()
    for job_id in slow:
        client.post(f"/v1/jobs/{job_id}/cancel")
    assert {client.until(job_id)["status"] for job_id in slow} == {"cancelled"}
    assert time.monotonic() - begun < 0.9  # Their work would take 1.2 s and more.
    assert {client.until(job_id)["status"] for job_id in waiting[1:]} == {"completed"}
    assert client.post(f"/v1/jobs/{waiting[1]}/cancel").status_code == 409


def test_jobs_of_a_company_share_a_batch_and_one_may_join(client):
    first = client.make(steps=20, seed=1)
    client.until(first, "in_progress")
    second = client.make(steps=20, seed=2)
    client.until(second, "in_progress", seconds=5)
    assert client.job(first)["status"] == "in_progress"
    for job_id, seed in ((first, 1), (second, 2)):
        client.until(job_id)
        shown = pixels(client.get(f"/v1/jobs/{job_id}/content").content)
        np.testing.assert_array_equal(shown, pixels(picture(seed, steps=20)))


def test_requests_that_come_at_the_same_time_begin_together(tmp_path, monkeypatch):
    """An idle worker waits for a moment, unless its batch is full."""
    for name in ("_QUIET_S", "_GATHER_S"):
        monkeypatch.setattr(dispatcher, name, 1.5)
    with served(tmp_path) as client:
        waits = []
        for count in (2, 3):
            names = [client.make(seed=n) for n in range(count)]
            [client.until(name) for name in names]
            jobs = [client.service.store.get(name) for name in names]
            waits.append([job.started - jobs[0].created for job in jobs])
    few, full = waits
    assert min(few) >= 1.5 and max(full) < 1.5


def test_a_long_job_is_cancelled_within_a_step_and_a_client_that_leaves_loses_nothing(client):
    film = client.make("long", seconds=3, steps=500)
    with client.stream("GET", f"/v1/jobs/{film}/events") as answer:
        next(answer.iter_lines())  # And away.
    assert client.until(film, "in_progress")["status"] == "in_progress"
    client.delete(f"/v1/jobs/{film}")
    after = client.make(seed=1)
    assert client.until(after, seconds=5)["status"] == "completed"
    assert client.get(f"/v1/jobs/{film}").status_code == 404


def test_lists_have_pages(client):
    ids = [client.make(steps=1, seed=n) for n in range(5)]
    for job_id in ids:
        client.until(job_id)
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    second = client.get("/v1/jobs", params={"limit": 2, "after": first["last_id"]}).json()
    assert [job["id"] for job in first["data"] + second["data"]] == ids[:0:-1] and first["has_more"]
    assert all(job["id"].startswith("video_") for job in client.get("/v1/videos").json()["data"])


# ------------------------------------------------------------------------------------------- errors

BAD = [
    ("/v1/jobs", {"task": "text_to_video", "promt": "x"}, 400, "no field 'promt' (did you mean prompt?)"),
    ("/v1/jobs", {"task": "dance"}, 400, "text_to_video, image_to_video, long"),
    ("/v1/jobs", {"task": "image_to_video", "clip": "/etc/passwd"}, 400, "expected the id of an upload"),
    ("/v1/jobs", {"task": "image_to_video", "clip": "file_" + "0" * 32}, 404, "there is no file"),
    ("/v1/jobs", [1], 400, "no JSON object"),
    ("/v1/videos", {"prompt": ""}, 400, "prompt"),
    ("/v1/videos", {"prompt": "x", "model": "sora-2"}, 404, "this service has stand_in"),
    ("/v1/videos", {"prompt": "x", "size": "1280x720"}, 400, "the model makes 16x16"),
    ("/v1/videos", {"prompt": "x", "size": "16x16", "width": 32}, 400, "contradicts"),
    ("/v1/videos", {"prompt": "x", "seconds": 4, "num_frames": 4}, 400, "contradict each other"),
    ("/v1/videos", {"prompt": "x", "seconds": "soon"}, 400, "expected a number"),
    ("/v1/videos", {"prompt": "x", "fps": 24}, 400, "4 frames a second"),
    ("/v1/videos", {"prompt": "x", "num_inference_steps": 30}, 400, "no steps to choose"),
    ("/v1/videos", {"prompt": "x", "seed": "seven"}, 400, "expected a integer"),
]


@pytest.mark.parametrize("path, body, status, said", BAD, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_said_before_anything_is_queued(client, path, body, status, said):
    before = client.service.store.count("queued", "running", "done", "failed", "cancelled")
    answer = client.post(path, json=body)
    assert answer.status_code == status and said in answer.json()["error"]["message"], answer.text
    assert client.service.store.count("queued", "running", "done", "failed", "cancelled") == before


def test_bodies_that_are_no_json_or_too_large_and_other_types(client):
    post = lambda **request: client.post("/v1/jobs", **request)
    assert post(content=b"{", headers={"content-type": "application/json"}).json()["error"]["code"] == "not_json"
    assert post(content=b'{"a": NaN}', headers={"content-type": "application/json"}).status_code == 400
    assert post(content=b"[" * 100_000, headers={"content-type": "application/json"}).status_code == 400
    assert post(content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    assert post(content=bytes(2**20 + 1), headers={"content-type": "application/json"}).status_code == 413
    chunks = (bytes(2**16) for _ in range(40))
    assert post(content=chunks, headers={"content-type": "application/json"}).status_code == 413
    assert client.put("/v1/jobs").status_code == 405 and client.get("/v1/nothing").status_code == 404


def test_failures_are_told_without_the_inside_of_the_service(client, caplog):
    answer = client.post("/v1/jobs", json={"task": "text_to_video", "prompt": "break the service"})
    assert answer.status_code == 500 and answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret" not in answer.text and "Traceback" not in answer.text
    raised, refused = client.make(fault="raise"), client.make(fault="refuse", steps=5)
    assert client.until(raised)["error"] == {
        "code": "internal",
        "message": "an error of the service, which its log describes",
    }
    told = client.until(refused)["error"]
    assert told == {"code": "bad_request", "message": "inputs/x.png: it does not show what the task takes"}


def test_pages_of_other_sites_are_refused_and_none_is_let_in(client):
    post = lambda **headers: client.post("/v1/jobs", json={"task": "text_to_video"}, headers=headers)
    assert post(origin="https://evil.example").status_code == 403
    assert post(host="evil.example").status_code == 403
    own = str(client.base_url).rstrip("/")
    answer = post(origin=own)
    assert answer.status_code == 201 and "access-control-allow-origin" not in answer.headers
    assert foreign({"host": "poet.example", "origin": "https://poet.example"}, "0.0.0.0") == ""


def test_health_models_and_numbers(client):
    assert client.get("/healthz").json()["status"] == "ok" and client.get("/readyz").status_code == 200
    (model,) = client.get("/v1/models").json()["data"]
    assert client.get(f"/v1/models/{model['id']}").json() == model and "prompt" in model["requests"]["text_to_video"]
    client.until(client.make(steps=1))
    page = client.get("/metrics").text
    for name in ("queue_depth", "jobs_running", "batch_fill", "wait_seconds_count", "first_frame_seconds_count"):
        assert f"\npoet_{name}" in page, name
    assert 'poet_jobs_total{state="done",task="text_to_video"}' in page
    assert "poet_video_seconds_per_second " in page and "poet_busy_seconds_total " in page


def test_the_first_frame_s_part_of_a_job_is_a_number(client):
    """Of twenty equal steps the first one; a job may wait for half a step of others."""

    def total() -> float:
        found = re.search(
            r'^poet_first_frame_share_sum.task="text_to_video". (\S+)$', client.get("/metrics").text, re.M
        )
        return float(found[1]) if found else 0.0

    before = total()
    client.until(client.make(steps=20))
    assert 1 / 40 < total() - before < 0.3


# --------------------------------------------------------------------------------- hostile uploads


def png_of(width: int, height: int) -> bytes:
    """A picture of a few kilobytes with many pixels."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "png")
    return file.getvalue()


HOSTILE = {
    "empty.png": b"",
    "noise.mp4": np.random.default_rng(0).bytes(5000),
    "cut.png": picture(0)[:200],
    "bomb.png": png_of(20_000, 20_000),
    "list.m3u8": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
    "list.ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "page.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "text.wav": b"RIFF\xff\xff\xff\xffWAVEfmt ",
    "archive.zip": b"PK\x03\x04" + bytes(200),
    "large.png": bytes(70 * 2**20),
}


# Those that another kind of them stands for.
FURTHER = ("list.ffconcat", "page.svg", "archive.zip", "text.wav")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in FURTHER else name for name in HOSTILE]
)
def test_hostile_uploads_are_refused_and_nothing_stays(client, name):
    answer = client.post("/v1/files", files={"file": (name, HOSTILE[name])})
    assert answer.status_code == (413 if name == "large.png" else 400), answer.text
    said = answer.json()["error"]["message"]
    assert "/tmp" not in said and "poet_" not in said and "Traceback" not in said
    assert not [*(client.service.store.folder / "incoming").glob("*")]
    assert client.get("/healthz").status_code == 200


def test_uploads_are_decoded_once_and_kept_in_files_of_our_own(client, tmp_path):
    rng = np.random.default_rng(0)
    frames, sound = rng.integers(0, 256, (12, 24, 32, 3), np.uint8), (1000 * rng.normal(size=24_000)).astype(np.int16)
    media.write_mp4(tmp_path / "a.mp4", frames, 8.0, sound, 16_000)
    found = client.post("/v1/files", files={"file": ("a.mp4", (tmp_path / "a.mp4").read_bytes())}).json()
    assert (found["kind"], found["frames"], found["height"], found["width"]) == ("video", 12, 24, 32)
    assert found["has_sound"] and found["seconds"] == pytest.approx(1.5)
    clip = ClipSpec(frames=11, height=16, width=16, rate_hz=8.0, sample_rate_hz=16_000)
    kept = client.service.store.folder / client.service.store.upload(found["id"]).file
    theirs, ours = (media.read_clip(path, clip) for path in (tmp_path / "a.mp4", kept))
    np.testing.assert_array_equal(theirs.video, ours.video)
    np.testing.assert_array_equal(theirs.audio, ours.audio)
    assert client.get(f"/v1/files/{found['id']}").json() == found
    client.delete(f"/v1/files/{found['id']}")
    assert client.get(f"/v1/files/{found['id']}").status_code == 404 and not kept.exists()


# ------------------------------------------------------------------------------------ keys and limits


def test_keys_keep_owners_apart_and_limits_hold(tmp_path):
    keys = Keys({"a": "a" * 20, "b": "b" * 20})
    a, b = ({"authorization": f"Bearer {name * 20}"} for name in "ab")
    with served(tmp_path, keys=keys, ready=False, rate_per_minute=6, max_queue_per_key=4, max_queue=5) as client:
        client.service.dispatcher.ready.wait(20)
        for headers in ({}, {"authorization": "Bearer " + "c" * 20}, {"authorization": "Basic " + "a" * 20}):
            answer = client.get("/v1/jobs", headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz").status_code == 200 and client.get("/metrics").status_code == 401
        blocker = client.make("long", a, steps=1000)
        while client.service.store.count("running") == 0:
            time.sleep(0.01)
        ids = [client.make(headers=a, steps=2) for _ in range(4)]
        full = client.post("/v1/jobs", json={"task": "text_to_video"}, headers=a)
        assert full.status_code == 429 and full.json()["error"]["code"] == "queue_full" and full.headers["retry-after"]
        fast = client.post("/v1/jobs", json={"task": "text_to_video"}, headers=a)
        assert fast.status_code == 429 and fast.json()["error"]["code"] == "rate_limited"
        client.make(headers=b)
        whole = client.post("/v1/jobs", json={"task": "text_to_video"}, headers=b)
        assert whole.status_code == 429 and "5 jobs wait already" in whole.text
        for path in ("", "/events", "/content"):
            assert client.get(f"/v1/jobs/{ids[0]}{path}", headers=b).status_code == 404
        for path in ("/cancel",):
            assert client.post(f"/v1/jobs/{ids[0]}{path}", headers=b).status_code == 404
        assert client.delete(f"/v1/jobs/{blocker}", headers=b).status_code == 404
        taken = client.post("/v1/jobs", json={"task": "image_to_video", "clip": ids[0]}, headers=b)
        assert taken.status_code in (404, 429) and (taken.status_code == 429 or "there is no job" in taken.text)
        assert [job["id"] for job in client.get("/v1/jobs", headers=b).json()["data"]] != ids


def test_keys_are_read_and_checked(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nme " + "k" * 16 + "\n")
    assert Keys.read(str(file)).owner("Bearer " + "k" * 16) and Keys.read(str(file)).owner("Bearer k") is None
    assert Keys.read("", {}).owner("") == "" and Keys.read("", {"POET_API_KEYS": "me:" + "k" * 16}).owner("") is None
    for text in ("me short", "me " + "k" * 16 + "\nme " + "l" * 16, "a " + "k" * 16 + "\nb " + "k" * 16, ""):
        file.write_text(text)
        with pytest.raises(UserError, match="key"):
            Keys.read(str(file))


def test_a_bucket_fills_at_its_rate():
    now = [0.0]
    rates = Rates(60, lambda: now[0])
    assert [rates.wait_s("a") for _ in range(60)] == [0] * 60 and rates.wait_s("a") == pytest.approx(1)
    assert rates.wait_s("b") == 0
    now[0] = 2.5
    assert [rates.wait_s("a") for _ in range(3)] == [0, 0, pytest.approx(0.5)]


# ------------------------------------------------------------------------------------ deaths and ends


def test_a_worker_s_death_costs_its_cause_alone(tmp_path):
    with served(tmp_path, max_deaths=2) as client:
        good = [client.make(steps=30, seed=n) for n in range(2)]
        bad = client.make(steps=30, fault="die")
        failed = client.until(bad)
        assert failed["status"] == "failed" and failed["error"]["code"] == "worker_died"
        for seed, job_id in enumerate(good):
            assert client.until(job_id)["status"] == "completed"
            shown = pixels(client.get(f"/v1/jobs/{job_id}/content").content)
            np.testing.assert_array_equal(shown, pixels(picture(seed, steps=30)))
        assert "poet_worker_deaths_total 2.0" in client.get("/metrics").text


@pytest.mark.parametrize("jump_s", [10 * 365 * 86_400, -10 * 365 * 86_400])
def test_a_clock_that_is_set_expires_nothing_and_makes_no_time_negative(tmp_path, monkeypatch, jump_s):
    """The machine's clock is set by ten years while a job runs, and is still wrong when the service starts again."""
    right = time.time
    with served(tmp_path) as client:
        before = client.until(client.make(seed=1))
        running = client.make(seed=2, steps=50)
        client.until(running, "in_progress")
        monkeypatch.setattr(time, "time", lambda: right() + jump_s)
        client.service.dispatcher._next_upkeep_s = 0.0
        after = client.until(running)
        page = client.get("/metrics").text
        assert client.job(before["id"])["status"] == after["status"] == "completed"
    assert before["created_at"] <= after["created_at"] <= after["started_at"] <= after["completed_at"] <= right() + 60
    for name in ("wait", "first_frame", "job"):
        (total,) = re.findall(rf'^poet_{name}_seconds_sum\{{task="text_to_video"\}} (\S+)$', page, re.MULTILINE)
        assert 0 <= float(total) < 60
    if jump_s < 0:
        with served(tmp_path) as client:
            again = client.until(client.make(seed=3))
            assert after["completed_at"] <= again["created_at"] <= again["completed_at"]
            assert client.job(before["id"])["status"] == "completed"


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    """The store can write nothing for a while, in which one job ends and another is sent."""
    with served(tmp_path / "store") as client:
        job_id = client.make(steps=20, seed=1)
        client.until(job_id, "in_progress")
        store, changes = client.service.store, client.service.store._changes

        def full():
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(store, "_changes", full)
        answer = client.post("/v1/jobs", json={"task": "text_to_video", "seed": 2})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "not_stored"
        assert int(answer.headers["retry-after"]) > 0
        time.sleep(1.0)  # Its twenty steps are over.
        assert client.job(job_id)["status"] == "in_progress"
        monkeypatch.setattr(store, "_changes", changes)
        assert client.until(job_id)["status"] == "completed"
        shown = pixels(client.get(f"/v1/jobs/{job_id}/content").content)
        np.testing.assert_array_equal(shown, pixels(picture(1, steps=20)))
        assert client.until(client.make(seed=2))["status"] == "completed"


def test_a_model_that_cannot_be_loaded_is_told_and_jobs_wait(tmp_path):
    with served(tmp_path, stand_in.Unloadable(), ready=False) as client:
        end = time.monotonic() + 20
        while "damaged" not in client.get("/readyz").text and time.monotonic() < end:
            time.sleep(0.05)
        answer = client.get("/readyz")
        assert answer.status_code == 503 and "the weights are damaged" in answer.text
        assert client.job(client.make())["status"] == "queued"


class Process:
    """`stand_in.py` as a process."""

    def __init__(self, folder: Path, port: int = 0, step_s: float = 0.03):
        command = [sys.executable, stand_in.__file__, str(folder), str(port), str(step_s)]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(stand_in.__file__).parent}"}
        self.errors = tempfile.TemporaryFile("w+")  # A pipe that nobody reads fills up.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment)
        self.url = self.process.stdout.readline().strip()

    def end(self, sign: int) -> int:
        self.process.send_signal(sign)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.fault)])
def test_kills_and_stops_of_the_service_lose_nothing(tmp_path, kills):
    """kill -9 and SIGTERM in turn: every job ends as done, with the bytes of its seed, and only once."""
    import httpx
    from running import Client

    seeds: dict[str, int] = {}
    for number in range(kills + 1):
        running = Process(tmp_path)
        with Client(base_url=running.url, timeout=30) as client:
            seeds |= {client.make(steps=8, seed=seed): seed for seed in range(10 * number, 10 * number + 6)}
            time.sleep(0.3 if number else 1.5)
            if number == kills:
                states = {client.until(job_id)["status"] for job_id in seeds}
                for job_id, seed in seeds.items():
                    shown = pixels(client.get(f"/v1/jobs/{job_id}/content").content)
                    np.testing.assert_array_equal(shown, pixels(picture(seed, steps=8)))
                assert states == {"completed"} and len(client.get("/v1/jobs?limit=100").json()["data"]) == min(
                    len(seeds), 100
                )
        code = running.end(signal.SIGTERM if number % 2 or number == kills else signal.SIGKILL)
        assert code in (0, -signal.SIGKILL, -signal.SIGTERM), code
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url)


def test_a_port_in_use_is_refused(tmp_path, client):
    port = client.base_url.port
    with pytest.raises(UserError, match=f"--port={port} cannot be listened on"):
        serve(stand_in.StandIn(), tmp_path / "other", port=port)


@pytest.mark.slow
def test_a_store_in_use_is_refused_by_the_service(client):
    running = Process(client.service.store.folder)
    assert running.process.wait(30) == 1
    running.errors.seek(0)
    assert "is in use by another process" in running.errors.read()
