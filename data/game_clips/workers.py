"""Renders clips in several worker processes, each of them the `render.py` of a recipe run as a program."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import pathlib
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

_QUEUE_CLIPS = 64


def check_engine() -> None:
    """Raises ImportError, with the command that helps, if ViZDoom is not installed."""
    if importlib.util.find_spec("vizdoom") is None:
        raise ImportError(
            "rendering game clips needs the package vizdoom, which is not installed; run: pip install -e '.[freedoom]'"
        )


def sound_available() -> bool:
    """Whether OpenAL, which the engine loads when its sound is on, can be loaded here."""
    try:
        ctypes.CDLL("libopenal.so.1")
    except OSError:
        return False
    return True


def render_jobs(
    program: pathlib.Path, jobs: Sequence[dict[str, Any]], workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields `(key, example)` of every job, in no fixed order between jobs.

    Args:
      program: the `render.py` of a recipe, which ends in `recording.serve`.
      jobs: fields of its `Job`, one dict a map.
      workers: worker processes; each runs one engine process at a time.

    Raises:
      RuntimeError: a worker failed; its traceback is the message.
    """
    check_engine()
    todo: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)
    done: queue.Queue[Any] = queue.Queue(_QUEUE_CLIPS)
    with tempfile.TemporaryDirectory(prefix="game_clips_") as scratch:
        processes = [_start_worker(program, scratch) for _ in range(min(workers, len(jobs)))]
        for process in processes:
            threading.Thread(target=_serve, args=(process, todo, done), daemon=True).start()
        try:
            yield from _collect(done, len(processes))
        finally:
            for process in processes:
                _stop_group(process)


def _start_worker(program: pathlib.Path, scratch: str) -> subprocess.Popen[bytes]:
    """The engine makes files in its working folder, and dies if another makes them meanwhile."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(program.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        cwd=tempfile.mkdtemp(dir=scratch),
    )


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker together with the engine process it may have running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended by itself
    process.wait()


def _serve(process: subprocess.Popen[bytes], todo: queue.SimpleQueue, done: queue.Queue) -> None:
    """Feeds one worker until no job is left; puts clips, then None, or one exception."""
    try:
        while True:
            try:
                job = todo.get_nowait()
            except queue.Empty:
                break
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            while (answer := pickle.load(process.stdout)) is not None:
                if isinstance(answer, str):
                    raise RuntimeError(f"rendering {job}:\n{answer}")
                done.put(answer)
        done.put(None)
    except EOFError:
        done.put(RuntimeError(f"the worker process died while rendering {job}"))
    except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
        done.put(error)


def _collect(done: queue.Queue, workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    while workers:
        item = done.get()
        if isinstance(item, Exception):
            raise item
        if item is None:
            workers -= 1
        else:
            yield item
