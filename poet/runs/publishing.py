"""A run whose work dir lies in a bucket: it works in a copy on this machine, and what must survive is published.

The copy is at `poet.runs.buckets.mirror.workdir`.  Its name stands in the lease of who publishes it.

**The bucket is the truth.**  Who takes its lease (`poet.runs.buckets.lease`) and was not its last holder begins with an
empty folder and fetches the logs and the newest whole checkpoint.  A copy that was the last to publish goes on with
what it holds, so that nothing is fetched, and what was saved and not yet published still is.

A checkpoint is there once its MANIFEST is, which goes last; the logs go before it, so that who resumes has the lines
up to its step.  Uploads run beside the steps, one checkpoint at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from poet.runs import exits, lease, manifest, retries
from poet.runs.buckets import lease as bucket_lease
from poet.runs.buckets import mirror
from poet.runs.buckets.files import Entry, Place, each
from poet.runs.buckets.lease import Lease, Lost
from poet.runs.buckets.mirror import Copy
from poet.runs.buckets.upload import publish, withdraw
from poet.runs.run import CHECKPOINTS, IDENTITY, SPEC, Run, steps_among
from poet.runs.timeline import FILE as TIMELINE
from poet.spec import Failure

_LOG = logging.getLogger(__name__)
# Metrics of each checkpoint by step -> the steps that stay (`poet.checkpoints.policy.kept`).
Keep = Callable[[Mapping[int, Mapping[str, float]]], Collection[int]]
# Seconds after which logs are published that no checkpoint took along.
LOGS_S = 60.0
# Checkpoints that are uploaded or wait for it, of which a further save waits for one.
_MOST_PENDING = 2
# What a process goes on writing where another one stopped.
_CONTINUED = (SPEC, "metrics.jsonl", TIMELINE, f"{CHECKPOINTS}/{IDENTITY}")


class Unpublished(Failure):
    """What a run wrote did not get into its bucket; it lies in this machine's copy."""

    def __init__(self, run: Run, cause: Exception):
        super().__init__(
            f"{cause}; what is not in the bucket lies in {run.folder}: there the same command goes on from it"
        )
        self.exit_code = exits.of(cause)


class Publisher:
    """What follows from what a run writes: nothing, where its folder is the work dir."""

    copy = ""
    unpublished: Collection[int] = ()

    @property
    def failed(self) -> bool:
        """Whether nothing will be published any more, so that the run ought to end; `finish` says why."""
        return False

    def pending(self) -> Collection[int]:
        """Steps whose checkpoints must stay here, because they are not published yet."""
        return ()

    def saved(self, step: int, keep: Keep) -> None:
        """The checkpoint of a step is whole; of those in the bucket `keep` says which stay.  Returns at once."""

    def room(self, step: int) -> None:
        """Waits until the checkpoint of a step may be written: few others are to be uploaded, and not this one."""

    def finish(self) -> None:
        """Waits until all checkpoints are published.

        Raises:
          Unpublished: one could not be.
          Lost: another machine took over, which goes on from what is published.
        """


@contextlib.contextmanager
def hold(run: Run) -> Iterator[Publisher]:
    """The lease of a run's work dir for the duration of a block, and what publishes what is written there.

    What is behind a URL is fetched first, and all logs are published at the end.

    Raises:
      UserError: another process holds it, or it cannot be written; as `poet.runs.buckets.lease.hold`.
      Unpublished, Lost: the end of it could not be published.
    """
    if not run.url:
        with lease.hold(run.folder):
            yield Publisher()
        return
    place, home = Place(run.url, "--workdir"), run.folder.parent
    with lease.hold(home, called=run.url):
        copy = Copy.of(home)
        with bucket_lease.hold(place, copy.name) as (held, same):
            _fetch(run, place, copy, same)
            held.claim()
            publisher = _BucketPublisher(run, place, held, copy)
            try:
                yield publisher
            except Exception:
                publisher.end(quiet=True)
                raise
            publisher.end()


def sees(run: Run, copy: str) -> bool:
    """Whether this process sees the folder of process 0, which publishes the copy with this name ('': none)."""
    return not copy or Copy.of(run.folder.parent, make=False).name == copy


# --------------------------------------------------------------------------------------------- fetching


def _fetch(run: Run, place: Place, copy: Copy, same: bool) -> None:
    """Brings the folder of a run to what its bucket holds, for who goes on with it."""
    found = place.listed()
    there = {int(name) for name in steps_among(found)}
    if not same:
        shutil.rmtree(run.folder, ignore_errors=True)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    for step in copy.published & set(run.steps()) - there:  # Deleted there, by its user or by CHECKPOINT.keep.
        shutil.rmtree(run.at(step).path)
    for name in _CONTINUED:
        if name in found and not (run.folder / name).exists():
            place.download(name, found[name], run.folder / name)
    _fetch_newest(run, place, found, there)
    _drop_torn(place, found, there | set(run.steps()))
    copy.published = there
    copy.write()


def _fetch_newest(run: Run, place: Place, found: Mapping[str, Entry], there: Collection[int]) -> None:
    """The newest whole checkpoint of the bucket, where there is none as new here; damaged ones are set aside."""
    for step in sorted(there, reverse=True):
        if step <= max(run.steps(), default=-1):
            return
        final = run.at(step)
        prefix = f"{CHECKPOINTS}/{final.path.name}/"
        inside = {name.removeprefix(prefix): entry for name, entry in found.items() if name.startswith(prefix)}
        temporary = final.path.with_suffix(".tmp")
        mirror.fill(Place(f"{place.url}/{prefix[:-1]}", place.field), inside, temporary, final=final.path)
        os.rename(temporary, final.path)
        try:
            final.verify()
        except manifest.Corrupt as error:
            _LOG.warning("%s in %s; falling back to the checkpoint before it", error, place.url)
            run.put_aside(final)
        else:
            return


def _drop_torn(place: Place, found: Collection[str], steps: Collection[int]) -> None:
    """Deletes what is left in a bucket of uploads and deletions of checkpoints that did not end."""
    parts = {name: name.split("/")[1] for name in found if name.count("/") > 1 and name.startswith(f"{CHECKPOINTS}/")}
    each(place.delete, (name for name, step in parts.items() if step.isdigit() and int(step) not in steps))


# ------------------------------------------------------------------------------------------- publishing


class _BucketPublisher(Publisher):
    """Publishes the files of a run in a thread."""

    def __init__(self, run: Run, place: Place, held: Lease, copy: Copy):
        self._run, self._place, self._lease, self._copy_of = run, place, held, copy
        self.copy = copy.name
        self.unpublished = sorted(set(run.steps()) - copy.published)
        self._measured = {step: self._metrics_there(step) for step in copy.published}
        # What each log was when it was sent: (size, time of change).
        self._sent: dict[str, tuple[int, int]] = {}
        self._waiting: dict[int, Keep] = {}
        self._failure: Exception | None = None
        self._over = False
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._publish, name="publisher", daemon=True)
        self._thread.start()

    def _metrics_there(self, step: int) -> Mapping[str, float]:
        folder = f"{CHECKPOINTS}/{self._run.at(step).path.name}"
        try:
            return manifest.parse(self._place.read(f"{folder}/{manifest.NAME}"), folder).get("metrics", {})
        except manifest.Corrupt:
            return {}

    # ------------------------------------------------------------------------------- asked by the loop

    @property
    def failed(self) -> bool:
        return bool(self._failure or self._lease.lost)

    def pending(self) -> Collection[int]:
        with self._turn:
            return set(self._waiting)

    def saved(self, step: int, keep: Keep) -> None:
        with self._turn:
            self._waiting[step] = keep
            self._turn.notify_all()

    def room(self, step: int) -> None:
        self._wait(lambda: len(self._waiting) < _MOST_PENDING and step not in self._waiting)

    def finish(self) -> None:
        if waiting := self.pending():
            _LOG.info("step %d is saved; waiting until it is in %s", max(waiting), self._run.url)
        self._wait(lambda: not self._waiting)
        if self._lease.lost:
            raise self._lease.lost
        if self._failure:
            raise Unpublished(self._run, self._failure) from self._failure

    def _wait(self, true: Callable[[], bool]) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self.failed or true())

    def end(self, quiet: bool = False) -> None:
        """Publishes what is left; `quiet`: an error ended the run, which this one must not hide."""
        with self._turn:
            self._over = True
            self._turn.notify_all()
        self._thread.join()
        if quiet and self.failed:
            return
        try:
            self.finish()
            self._send_logs()
            if (self._run.tokenizer / manifest.NAME).is_file():
                publish(self._run.tokenizer, Place(f"{self._place.url}/tokenizer"), manifest.NAME, self._lease.check)
        except Exception as error:
            if not quiet:
                raise error if isinstance(error, (Unpublished, Lost)) else Unpublished(self._run, error) from error
            _LOG.error("%s", error)

    # ------------------------------------------------------------------------------------- the thread

    def _publish(self) -> None:
        while not self.failed:
            with self._turn:
                self._turn.wait_for(lambda: self._waiting or self._over, LOGS_S)
                step = next(iter(self._waiting), None)
                if step is None and self._over:
                    return
            try:
                self._send(step)
            except Exception as error:  # Told by `finish`, to whom the run belongs.
                _LOG.error("%s", error)
                self._failure = error
            with self._turn:
                if not self._failure:
                    self._waiting.pop(step, None)
                self._turn.notify_all()

    def _send(self, step: int | None) -> None:
        try:
            self._send_logs()
        except retries.ReadFailed as error:  # They are sent again; a checkpoint will say if it lasts.
            _LOG.warning("%s", error)
        if step is not None and self._run.at(step).path.is_dir():  # Else it was found damaged, and set aside.
            self._send_checkpoint(step, self._waiting[step])

    def _send_logs(self) -> None:
        for path in sorted(self._run.folder.rglob("*")):
            name = path.relative_to(self._run.folder).as_posix()
            try:
                state = path.stat()
                mark = (state.st_size, state.st_mtime_ns)
                if not path.is_file() or not state.st_size or not _is_log(name) or self._sent.get(name) == mark:
                    continue
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            self._lease.check()
            self._place.write(name, data)
            self._sent[name] = mark

    def _send_checkpoint(self, step: int, keep: Keep) -> None:
        begin, folder = time.monotonic(), self._run.at(step)
        size = publish(folder.path, self._step(step), manifest.NAME, self._lease.check)
        self._measured[step] = folder.metrics
        for old in sorted(self._measured.keys() - set(keep(self._measured))):
            self._lease.check()
            withdraw(self._step(old), manifest.NAME)
            del self._measured[old]
        self._copy_of.published = set(self._measured)
        self._copy_of.write()
        _LOG.info("published step %d: %.1f MB in %.1f s", step, size / 1e6, time.monotonic() - begin)

    def _step(self, step: int) -> Place:
        return Place(f"{self._place.url}/{CHECKPOINTS}/{self._run.at(step).path.name}", self._place.field)


def _is_log(name: str) -> bool:
    """Whether a file is published as it grows: not checkpoints and tokenizers, which are when they are whole."""
    first = name.partition("/")[0]
    return (first not in (CHECKPOINTS, "tokenizer") or name in _CONTINUED) and not name.endswith((".tmp", ".partial"))
