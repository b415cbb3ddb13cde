"""Many clients at once: no job is lost, none is made twice, and memory stays as it was."""

from __future__ import annotations

import asyncio
import io
import re
import signal
from pathlib import Path

import httpx
import numpy as np
import pytest
import stand_in
from PIL import Image
from test_api import Process

from poet import media


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


async def one(client: httpx.AsyncClient, seed: int) -> str:
    """A whole life of a job; its id."""
    body, key = {"task": "text_to_video", "seed": seed, "steps": 1}, {"idempotency-key": f"key {seed}"}
    answers = [await client.post("/v1/jobs", json=body, headers=key) for _ in range(1 + seed % 2)]
    assert {answer.status_code for answer in answers} == {201}, answers[0].text
    (job_id,) = {answer.json()["id"] for answer in answers}
    while (await client.get(f"/v1/jobs/{job_id}")).json()["status"] in ("queued", "in_progress"):
        await asyncio.sleep(0.2)
    shown = await client.get(f"/v1/jobs/{job_id}/content")
    expected = media.frame_strip(stand_in.frames_of(seed, "", 1))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown.content)).convert("RGB")), expected)
    return job_id


async def crowd(url: str, clients: int, seeds: range) -> list[str]:
    """So many clients, which share the jobs of these seeds."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    waiting, ids = iter(seeds), []

    async def member(client: httpx.AsyncClient) -> None:
        for seed in waiting:
            ids.append(await one(client, seed))

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=300) as client:
        await asyncio.gather(*(member(client) for _ in range(clients)))
    return ids


SOME = pytest.mark.slow
MANY = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("clients, jobs", [pytest.param(20, 50, marks=SOME), pytest.param(500, 500, marks=MANY)])
def test_a_crowd_loses_nothing_and_leaves_no_memory_behind(tmp_path, clients, jobs, record_property):
    running, ids, sizes = Process(tmp_path, step_s=0), [], []
    for part in range(4):
        ids += asyncio.run(crowd(running.url, clients, range(part * jobs, (part + 1) * jobs)))
        sizes.append(resident_mib(running.process.pid))
    assert len(set(ids)) == 4 * jobs
    page = httpx.get(f"{running.url}/metrics").text
    made = re.search(r'poet_jobs_total\{state="done",task="text_to_video"\} (\S+)', page)
    assert float(made[1]) == 4 * jobs
    record_property("resident_mib", [round(size) for size in sizes])
    print("MiB after each quarter:", [round(size) for size in sizes])
    assert sizes[3] < sizes[0] + 32
    assert running.end(signal.SIGTERM) in (0, -signal.SIGTERM)
