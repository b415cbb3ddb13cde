"""What is new of jobs, for those who listen: the last word of each is kept while it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

# A listener that is further behind misses what is between; the last word always reaches it.
_MOST_WAITING = 64

Word = Mapping[str, Any]


class Hub:
    """Words about jobs, said by any thread and heard in one event loop."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # A signal may come while this thread has it.
        self._last: dict[str, Word] = {}
        self._listeners: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[Word | None]]]] = {}
        self._closed = False

    def say(self, job_id: str, word: Word, *, last: bool = False) -> None:
        """Tells all who listen to a job; `last`: nothing follows."""
        with self._lock:
            self._last[job_id] = word
            if last:
                del self._last[job_id]
            listeners = [*self._listeners.get(job_id, ())]
        for loop, queue in listeners:
            loop.call_soon_threadsafe(_put, queue, word)
            if last:
                loop.call_soon_threadsafe(_put, queue, None)

    def last(self, job_id: str) -> Word | None:
        """The last word of a job that runs."""
        with self._lock:
            return self._last.get(job_id)

    def listen(self, job_id: str) -> asyncio.Queue[Word | None]:
        """A queue of the words that follow; None ends it.  Call it in the event loop, and `leave` afterwards."""
        queue: asyncio.Queue[Word | None] = asyncio.Queue()
        with self._lock:
            if self._closed:
                queue.put_nowait(None)
            self._listeners.setdefault(job_id, set()).add((asyncio.get_running_loop(), queue))
        return queue

    def listeners(self, job_id: str) -> int:
        """How many listen to a job."""
        with self._lock:
            return len(self._listeners.get(job_id, ()))

    def leave(self, job_id: str, queue: asyncio.Queue[Word | None]) -> None:
        """Ends a `listen`."""
        with self._lock:
            kept = {entry for entry in self._listeners.get(job_id, ()) if entry[1] is not queue}
            if kept:
                self._listeners[job_id] = kept
            else:
                self._listeners.pop(job_id, None)

    def close(self) -> None:
        """Ends all listening: the service stops."""
        with self._lock:
            self._closed = True
            every = [entry for entries in self._listeners.values() for entry in entries]
        for loop, queue in every:
            loop.call_soon_threadsafe(_put, queue, None)


def _put(queue: asyncio.Queue[Word | None], word: Word | None) -> None:
    if word is not None and queue.qsize() >= _MOST_WAITING:
        queue.get_nowait()
    queue.put_nowait(word)
