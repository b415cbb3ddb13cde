"""Serves a store alone until it is killed: takes jobs in order, and writes a result that follows from the seed.

python store_process.py FOLDER
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

from poet.server.store import QUEUED, Store


def result(seed: int) -> bytes:
    """What a job of this seed makes."""
    return hashlib.sha256(str(seed).encode()).digest() * 64


def work(store: Store) -> None:
    """Does every queued job, slowly enough that kills hit all of its steps."""
    for job in store.jobs(QUEUED):
        store.start(job.id)
        print(f"started {job.id}", flush=True)
        folder = store.place(job.id) / "out"
        folder.mkdir(exist_ok=True)
        data = result(job.seed)
        with open(folder / "made.bin", "wb") as file:
            for start in range(0, len(data), 512):
                file.write(data[start : start + 512])
                file.flush()
                time.sleep(0.002)
        store.finish(job.id, {"files": ["made.bin"]})


if __name__ == "__main__":
    with Store.opened(Path(sys.argv[1])) as store:
        print("open", flush=True)
        work(store)
        print("all done", flush=True)
        if sys.argv[2:] == ["hold"]:
            time.sleep(60)
