"""`poet serve` as a user runs it, on the shipped weights."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import numpy as np
import pytest
from shipped import poet, serve, wait_ready

from poet import media

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def test_jobs_outlive_a_kill_and_repeat_by_generate(tmp_path):
    store, still = tmp_path / "store", tmp_path / "still.png"
    media.write_png_strip(still, np.full((1, 64, 64, 3), 90, np.uint8))
    process, client = serve(store, tmp_path / "log")
    wait_ready(client)
    first = client.video("the player walks forward in a red hall", seed=7)
    while not client.job(first).latents:
        time.sleep(0.1)
    second = client.submit("image_to_video", prompt="a door opens", clip=still, seed=8)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process, client = serve(store, tmp_path / "log")
    seen = []
    first = client.wait(first, on_progress=seen.append, timeout_s=600)
    second = client.wait(second, timeout_s=600)
    assert [file.name for file in first.files][0] == "000.mp4" and any(job.preview for job in seen)
    film = client.wait(client.submit("long", prompt="a hall", seconds=3, clip=second, seed=1), timeout_s=600)
    text = client.wait(client.submit("captioning", clip=first), timeout_s=600).texts
    assert film.files[0].name == "film.mp4" and text and text[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)
    for job in (first, second, film):
        again = tmp_path / f"again_{job.id}"
        record = store / "jobs" / job.id / "out/generation.json"
        replayed = poet("generate", f"--replay={record}", f"--out={again}", stdout=subprocess.PIPE, cwd=tmp_path)
        said = replayed.communicate()[0]
        assert replayed.returncode == 0 and "the same bytes" in said, said
    for line in (tmp_path / "log").read_text().splitlines():
        assert json.loads(line)["level"] in ("info", "warning"), line
