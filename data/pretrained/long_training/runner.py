"""Runs stages one after another so that they can be killed at any moment and gone on with.

A finished stage leaves a record, WORK/stages/NAME.json, and is not run again.  An unfinished one is run again
whole: its jobs go on from their checkpoints, or find their work done.  WORK/status.json says where it stands.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

# Exit codes: done or out of time, failed, a mistake in what was given, stopped by a signal (as those of `poet`).
DONE, FAILED, USER, STOPPED = 0, 1, 2, 75
POLL_S = 1.0
# A save of a checkpoint on a busy machine may take minutes.
PATIENCE_S = 600.0
_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 1 << 16


class Mistake(Exception):
    """Something that the user can mend; its text says how."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One command of a stage.

    Attributes:
      command: program and arguments.
      workdir: of a training, whose `metrics.jsonl` and `spec.json` tell how far it is; None for other work.
      cwd: where it runs; None for the code's own folder.
    """

    command: tuple[str, ...]
    workdir: pathlib.Path | None = None
    cwd: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Jobs that belong together, done in order.

    Attributes:
      note: what it does, a few words.
      on_request: run only when it is named.
    """

    name: str
    note: str
    jobs: tuple[Job, ...]
    on_request: bool = False


def progress(workdir: pathlib.Path | None) -> dict[str, Any]:
    """{step, of, loss, seconds} of a training, as far as its work dir tells; {} of other work."""
    if workdir is None:
        return {}
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError):
        found["of"] = json.loads((workdir / "spec.json").read_text())["train"]["steps"]
    for entry in reversed(_last_lines(workdir / "metrics.jsonl")):
        if entry.get("kind") == "train" and "loss" in entry:
            return found | {key: entry.get(key) for key in ("step", "loss", "seconds")}
    return found


def _last_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):  # The first and the last may be torn.
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


@contextlib.contextmanager
def held(work: pathlib.Path, wait_s: float = PATIENCE_S) -> Iterator[IO[str]]:
    """The only run of a work dir.  Children inherit the lock, so it lasts until the last of them has ended.

    A run that was killed leaves a child that still saves: that one is waited for.
    Raises Mistake: another run is at work there, or its child is after `wait_s`.
    """
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "a+", encoding="utf-8") as file:
        give_up = time.monotonic() + wait_s
        while not _locks(file):
            file.seek(0)
            holder = file.read().strip()
            if _alive(holder) or time.monotonic() > give_up:
                raise Mistake(
                    f"{work} is in use by another run (process {holder or 'unknown'}): "
                    "stop that one first, or give another --work"
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def _locks(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running(work: pathlib.Path) -> bool:
    """Whether a run, or the last child of one, is at work there."""
    if not (work / "lock").exists():
        return False
    with open(work / "lock", encoding="utf-8") as file:
        return not _locks(file)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """{} without a file, or of a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class Status:
    """WORK/status.json: {state, stage, step, of, loss, seconds, when, stages: {name: the same}, ...}."""

    def __init__(self, work: pathlib.Path, about: Mapping[str, Any]):
        self._path = work / "status.json"
        self.content = read_json(self._path) | dict(about)
        self.content.setdefault("stages", {})

    def stage(self, name: str) -> dict[str, Any]:
        return self.content["stages"].setdefault(name, {"seconds": 0.0})

    def tell(self, state: str, name: str = "", found: Mapping[str, Any] = {}, spent_s: float = 0.0) -> None:
        """`spent_s` more seconds went into the stage `name`, of which `found` is known."""
        told = {"state": state, "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        if name:
            own = self.stage(name)
            known = {key: found[key] for key in ("step", "of", "loss") if found.get(key) is not None}
            own |= {"state": state, "seconds": round(own["seconds"] + spent_s, 1)} | known
            told |= {"stage": name} | {key: own.get(key) for key in ("step", "of", "loss", "seconds")}
        self.content |= told
        write_json(self._path, self.content)


class Runner:
    """Runs stages in a work dir whose lock (`held`) the caller has.

    Args:
      code: the folder that jobs run in and import from.
      about: what the status file says beside the progress.
      deadline: of `time.monotonic()`: then the job at hand is asked to stop, and nothing is begun.
    """

    def __init__(
        self,
        work: pathlib.Path,
        code: pathlib.Path,
        lock: IO[str],
        about: Mapping[str, Any],
        deadline: float | None = None,
    ):
        self.work, self.code, self._lock, self._deadline = work, code, lock, deadline
        self.status = Status(work, about)
        self._signalled = False
        for folder in ("stages", "logs"):
            (work / folder).mkdir(exist_ok=True)

    def record(self, name: str) -> pathlib.Path:
        return self.work / "stages" / f"{name}.json"

    def run(self, stages: Sequence[Stage]) -> int:
        """Runs what is not finished; one of the exit codes above."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for stage in stages:
            if self.record(stage.name).exists():
                print(f"{stage.name}: finished earlier", flush=True)
                continue
            print(f"{stage.name}: {stage.note} (log: {self.work / 'logs' / stage.name}.log)", flush=True)
            code = self._stage(stage)
            if code is not None:
                return code
        self.status.tell("finished")
        return DONE

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signalled = True

    def _over(self) -> bool:
        return self._signalled or (self._deadline is not None and time.monotonic() >= self._deadline)

    def _stage(self, stage: Stage) -> int | None:
        """The exit code to leave with, or None when the stage is finished."""
        for job in stage.jobs:
            returned = None if self._over() else self._job(stage, job)
            if returned == 0:
                continue
            stopped = returned is None or returned == STOPPED or self._over()
            self.status.tell("stopped" if stopped else "failed", stage.name)
            print(self._told(stage, returned, stopped), flush=True)
            if not stopped:
                return FAILED
            return STOPPED if self._signalled or not self._over() else DONE
        self.status.tell("finished", stage.name, {key: v for key, v in progress(stage.jobs[-1].workdir).items()})
        write_json(self.record(stage.name), self.status.stage(stage.name))
        print(f"{stage.name}: finished after {self.status.stage(stage.name)['seconds']:.0f} s", flush=True)
        return None

    def _told(self, stage: Stage, returned: int | None, stopped: bool) -> str:
        own = self.status.stage(stage.name)
        where = f" at step {own['step']} of {own.get('of', '?')}" if "step" in own else ""
        if stopped:
            why = "a signal" if self._signalled or not self._over() else "the time is spent"
            return f"{stage.name}: stopped{where} ({why}); run the same command again to go on"
        log = self.work / "logs" / f"{stage.name}.log"
        lines = log.read_text(errors="replace").splitlines()
        said = [line for line in lines if line and not line.startswith("$ ")][-3:]
        return "\n".join([f"{stage.name}: failed{where} with exit code {returned}; the end of {log}:", *said])

    def _job(self, stage: Stage, job: Job) -> int:
        """Runs a job to its end, or until it has stopped as it was asked to; its exit code."""
        with open(self.work / "logs" / f"{stage.name}.log", "ab") as log:
            log.write(f"\n$ {' '.join(job.command)}\n".encode())
            log.flush()
            child = subprocess.Popen(
                job.command,
                cwd=job.cwd or self.code,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": str(self.code)},
                pass_fds=(self._lock.fileno(),),
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
            return self._watch(stage, job, child)

    def _watch(self, stage: Stage, job: Job, child: subprocess.Popen) -> int:
        asked, before = None, time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_S)
            now = time.monotonic()
            self.status.tell("running", stage.name, progress(job.workdir), now - before)
            before = now
            if child.returncode is not None:
                return child.returncode
            if self._over() and asked is None:
                asked = now
                child.send_signal(signal.SIGTERM)
            elif asked is not None and now - asked > PATIENCE_S:
                child.kill()


def _die_with_parent() -> None:
    """The kernel asks the child to stop, as a user would, when this process is killed."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone knows it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
