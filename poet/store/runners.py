"""Runners that encode the ranges of a store: this process, several on this machine, or several machines.

All of them call `encode_range`, which leaves a file and its index; a range whose index stands is done,
whoever did it.  So every runner takes up the work of any other, and the stores are equal byte by byte.
`poet.store.beam` and `poet.store.ray` are two more.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from poet.distributed.processes import check_index
from poet.spec import Failure
from poet.store.encode import PartialShard, encode_range
from poet.store.manifest import Plan, SkippedInfo
from poet.store.merge import check_skipped
from poet.store.ranges import Range
from poet.store.raw import Source
from poet.streams.base import Encoders

Factory = Callable[[], Encoders]
# Seconds between two looks at what other processes have done.
POLL_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """All work of a store; picklable, so that any process can do a part of it."""

    plan: Plan
    sources: Mapping[str, Source]
    ranges: tuple[Range, ...]
    max_skipped: float

    def encode(
        self, todo: Range, encoders: Encoders, on_progress: Callable[[int], Any] = lambda clips: None
    ) -> PartialShard:
        items = self.sources[todo.split].read(todo.start, todo.stop, todo.part)
        return encode_range(items, self.plan, encoders, todo.file, on_progress)

    def partials(self) -> dict[str, list[PartialShard]]:
        """The results of every split in order.  All ranges must be done."""
        found: dict[str, list[PartialShard]] = {split: [] for split in self.sources}
        for item in self.ranges:
            partial = item.partial()
            if partial is None:
                raise Failure(f"the range {item} was not encoded: {item.file} is missing")
            found[item.split].append(partial)
        return found


@functools.lru_cache(maxsize=1)
def encoders_of(factory: Factory) -> Encoders:
    """The encoders of a worker process, one set for all of its threads and tasks."""
    return factory()


class Progress(Protocol):
    """The progress of a runner."""

    def clips(self, count: int) -> Any:
        """So many clips more of a range were done here, skipped ones among them."""

    def finished(self, done: Range, counted: bool = False) -> Any:
        """A range is complete; `counted`: its clips were reported before.

        Raises UserError where too many clips are unusable.
        """


class Runner(Protocol):
    """Brings ranges into their files."""

    merges: bool
    """Whether this process writes the final shards."""

    def __call__(self, job: Job, ranges: Sequence[Range], progress: Progress) -> None: ...


@dataclasses.dataclass(frozen=True)
class Serial:
    """One range after another in this process."""

    encoders: Encoders
    merges: bool = True

    def __call__(self, job: Job, ranges: Sequence[Range], progress: Progress) -> None:
        for item in ranges:
            job.encode(item, self.encoders, progress.clips)
            progress.finished(item, counted=True)


# ---------------------------------------------------------------------------------- one machine


@dataclasses.dataclass(frozen=True)
class Workers:
    """Processes on this machine, each with encoders of its own.

    `factory` is picklable and makes them.  Devices are shared as the encoders share them: several
    processes make sense where decoding takes longer than encoding, or encoding runs on the CPU.
    """

    factory: Factory
    count: int
    merges: bool = True

    def __call__(self, job: Job, ranges: Sequence[Range], progress: Progress) -> None:
        if not ranges:
            return
        with concurrent.futures.ProcessPoolExecutor(
            min(self.count, len(ranges)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(job, self.factory),
        ) as pool:
            futures = {pool.submit(_work, item): item for item in ranges}
            try:
                for future in concurrent.futures.as_completed(futures):
                    future.result()
                    progress.finished(futures[future])
            except concurrent.futures.process.BrokenProcessPool:
                raise Failure(_death(ranges)) from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Job, Factory] | None = None


def _start_worker(job: Job, factory: Factory) -> None:
    global _worker
    _worker = job, factory
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A worker that outlived a killed parent would write into the next run's files."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


@functools.cache
def _own_encoders() -> Encoders:
    return _worker[1]()


def _work(item: Range) -> None:
    _worker[0].encode(item, _own_encoders())


def _death(ranges: Iterable[Range]) -> str:
    """Names the ranges that were in work: those with a file that was not renamed."""
    begun = [r for r in ranges if any(r.file.parent.glob(f".{r.file.name}.*.tmp"))]
    what = ", ".join(map(str, begun)) or "no range (it was loading its encoders)"
    return (
        f"a worker process died, killed or out of memory; in work were: {what}. Finished ranges are "
        "kept: run the same command again, with fewer STORE.workers if memory was short"
    )


# ----------------------------------------------------------------------------------- many machines


@dataclasses.dataclass(frozen=True)
class Distributed:
    """One of `count` processes that see the same STORE.path: takes the ranges index::count.

    Process 0 waits for the others and merges; they wait until it has.  `inner` does the own share.
    A range that nobody does is waited for `wait_s` seconds after the last sign of progress.
    """

    inner: Runner
    index: int
    count: int
    wait_s: float

    def __post_init__(self) -> None:
        check_index(self.index, self.count)

    @property
    def merges(self) -> bool:
        return self.index == 0

    def __call__(self, job: Job, ranges: Sequence[Range], progress: Progress) -> None:
        mine = set(job.ranges[self.index :: self.count])
        self.inner(job, [item for item in ranges if item in mine], progress)
        if not self.merges:
            return
        others = [item for item in ranges if item not in mine]
        for batch in self._arrivals(others):
            for item in batch:
                progress.finished(item)

    def _arrivals(self, ranges: Sequence[Range]) -> Iterator[list[Range]]:
        """Ranges as others finish them, until all are."""
        missing = list(ranges)
        since = time.monotonic()
        while missing:
            arrived = [item for item in missing if item.done]
            missing = [item for item in missing if item not in arrived]
            yield arrived
            since = time.monotonic() if arrived else since
            if missing and time.monotonic() - since > self.wait_s:
                raise Failure(
                    f"no other process has finished a range for {self.wait_s:g} s; missing are "
                    f"{', '.join(map(str, missing[:5]))}{', ...' if missing[5:] else ''}. Finished "
                    "ranges are kept: start all processes again, or raise STORE.wait_s"
                )
            if missing:
                time.sleep(POLL_S)


def wait_for_any(files: Sequence[pathlib.Path], signs: Callable[[], Any], wait_s: float) -> None:
    """Returns when one of the files stands.

    Raises:
        RuntimeError: for `wait_s` seconds neither that nor any change of what `signs` returns.
    """
    seen, since = signs(), time.monotonic()
    while not any(file.exists() for file in files):
        now = signs()
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > wait_s:
            raise Failure(
                f"{files[0]} did not appear, and nothing else has changed for {wait_s:g} s: process 0 "
                "failed or was not started; look at its messages, start all processes again, or "
                "raise STORE.wait_s"
            )
        time.sleep(POLL_S)


# ---------------------------------------------------------------------------------------- progress


class Bar:
    """A progress bar over all clips, with the time that is left; stops a run with too much damage.

    Until a range is done its clips are those that the files' headers promise.
    """

    def __init__(self, job: Job, bar: Any) -> None:
        self._job, self._bar = job, bar
        self._skipped: dict[str, list[SkippedInfo]] = {split: [] for split in job.sources}
        self._clips = {split: 0 for split in job.sources}
        for item in job.ranges:
            self._clips[item.split] += item.clips

    def clips(self, count: int) -> None:
        self._bar.update(count)

    def finished(self, done: Range, counted: bool = False) -> None:
        partial, split = done.partial(), done.split
        given = len(partial.clips) + len(partial.skipped)
        self._clips[split] += given - done.clips
        self._bar.total += given - done.clips
        self._bar.update(0 if counted else given)
        self._skipped[split] += partial.skipped
        check_skipped(split, self._skipped[split], self._clips[split], self._job.max_skipped)
        self._bar.set_description(f"{split}, {len(self._skipped[split])} skipped")
