"""`poet` in a process of its own, and a service of the shipped weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from poet.client import Client

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "data/pretrained/lm_arenas"


def poet(*words: str, **more) -> subprocess.Popen:
    command = [sys.executable, "-m", "poet.cli", *words]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}, text=True, **more)


def serve(store: Path, log: Path, checkpoint: Path = WEIGHTS, upscale: bool = False) -> tuple[subprocess.Popen, Client]:
    larger = [f"--upscale={WEIGHTS.parent / 'superres_arenas'}"] * upscale
    words = ["serve", *larger, f"--checkpoint={checkpoint}", f"--store={store}", "--port=0", "--batch=2"]
    process = poet(*words, stdout=subprocess.PIPE, stderr=log.open("a"), cwd=store.parent)
    return process, Client(process.stdout.readline().strip())


def wait_ready(client: Client) -> None:
    while not client.ready:
        time.sleep(0.5)
