"""The time of a range by stage: reading, encoding of each kind, writing; one-time work of a process is separate."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from poet.runs import compile_cache

STAGES = ("read", "encode video", "encode sound", "text", "write")
# Compiling, and loading what the first range of a process needs.
START = "start"

T = TypeVar("T")


class Stages:
    """Seconds by stage.  What a stage compiles counts as START alone."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        with compile_cache.counted() as count:
            yield
        self.seconds[START] += count.seconds
        self.seconds[stage] += max(time.monotonic() - began - count.seconds, 0.0)

    def reading(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time that they make their taker wait counts as 'read'."""
        items, end = iter(items), object()
        while True:
            began = time.monotonic()
            item = next(items, end)
            self.seconds["read"] += time.monotonic() - began
            if item is end:
                return
            yield item
