"""Carrying a plan out: printing it, starting it, following it to its end, and freeing what it took."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from poet.launching import shell
from poet.launching.plan import Plan, State, Step
from poet.runs import exits
from poet.spec import Failure, UserError

_LOG = logging.getLogger(__name__)
# How often the state of a job elsewhere is asked for.
POLL_S = 15.0
# So many questions in a row without an answer, and the launch gives up: the job goes on.
_MOST_UNANSWERED = 20
# A command that frees something may wait for the job to save.
_STOP_S = 3600.0


def new_name(job: str) -> str:
    """A name that no other launch has: what is allocated is found, and freed, by it."""
    return f"{job}-{time.strftime('%m%d%H%M')}-{secrets.token_hex(2)}"


def text(plan: Plan, folder: Path) -> Iterator[str]:
    """Everything that carrying a plan out would write and run, line by line."""
    for name, content in plan.files.items():
        yield f"# ---- {folder / name}"
        yield content.rstrip("\n")
    parts: dict[str, Sequence[Step]] = {
        "checks": plan.checks,
        "starts": plan.start,
        "runs here": plan.here,
        "asks again and again": [plan.state] if plan.state else [],
        "asks at the end": [plan.result] if plan.result else [],
        "stops, at the end, at Ctrl-C and at a failure": plan.stop,
    }
    for title, steps in parts.items():
        if steps:
            yield f"# ---- {title}"
            yield from (f"{step}  # {step.does}" for step in steps)


def require_programs(programs: Sequence[str], where: str) -> None:
    """Raises UserError for programs that are not installed."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise UserError(f"{where} needs {', '.join(missing)}, which is not installed here; --dry_run prints the plan")


def write(plan: Plan, folder: Path) -> None:
    """Writes the files of a plan."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in plan.files.items():
        (folder / name).write_text(content, encoding="utf-8")


def run(plan: Plan, *, restarts: int, wait_s: float, grace_s: float, detach: bool = False) -> int:
    """Carries a plan out and returns the exit code of the job.

    Whatever happens, Ctrl-C and SIGTERM included, what was started is freed; with `detach` what runs elsewhere goes
    on when it was started.

    Raises:
      UserError: a check failed; nothing was started.
      Failure: starting failed, or the state cannot be asked for.
    """
    for step in plan.checks:
        _check(step)
    with _Interrupts() as interrupts:
        try:
            _start(plan)
            if detach:
                return exits.FINISHED
            code = _here(plan.here, grace_s) if plan.here else _follow(plan, restarts, wait_s)
        except BaseException:
            interrupts.ignore()
            stop(plan)
            raise
        interrupts.ignore()
        stop(plan)
        return code


class _Interrupts:
    """Within, SIGTERM is a KeyboardInterrupt as SIGINT is; after `ignore` both are ignored, so that freeing ends."""

    def __init__(self) -> None:
        self._previous: dict[int, object] = {}

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._interrupt)
        return self

    @staticmethod
    def _interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def ignore(self) -> None:
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def stop(plan: Plan) -> None:
    """Frees everything; what cannot be freed is said, with the command that would."""
    for step in plan.stop:
        done = _quietly(step, _STOP_S)
        if done is None or (done.returncode and not _is_gone(done)):
            _LOG.warning("could not stop: run %s", step)


def _is_gone(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command failed because there is nothing of the name any more."""
    said = done.stderr.lower().replace("_", " ")
    return "not found" in said or "no such" in said


def _check(step: Step) -> None:
    done = _quietly(step)
    if done is None or done.returncode:
        said = _last_line(done)
        raise UserError(f"{step.does}: {step} failed{said}; nothing was started")


def _last_line(done: subprocess.CompletedProcess[str] | None) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines() if done else []
    return f" ({lines[-1]})" if lines else ""


def _quietly(step: Step, limit_s: float = 600.0) -> subprocess.CompletedProcess[str] | None:
    """What a command said; None where it could not be run or did not end."""
    try:
        return subprocess.run(
            step.argv,
            capture_output=True,
            text=True,
            timeout=limit_s,
            stdin=subprocess.DEVNULL,
            env=os.environ | step.environment,
            start_new_session=True,  # Ctrl-C is for this process, which then frees.
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _LOG.warning("%s: %s", step.argv[0], error)
        return None


def _start(plan: Plan) -> None:
    for step in plan.start:
        _LOG.info("%s: %s", step.does, step)
        done = _quietly(step)
        if done is None or done.returncode:
            raise Failure(f"{step.does}: {step} failed{_last_line(done)}")


# ------------------------------------------------------------------------------------------ here


def _here(steps: Sequence[Step], grace_s: float) -> int:
    """Runs commands together; when one of them fails the others are asked to stop.  The first failure is the code."""
    processes = [_open(step) for step in steps]
    try:
        code = _first_failure(processes)
        if code:
            _LOG.warning("a process ended: %s; stopping the others", exits.describe(code))
            _end(processes, grace_s)
        return code
    except BaseException:
        _end(processes, grace_s)
        raise


def _open(step: Step) -> subprocess.Popen[bytes]:
    _LOG.info("%s: %s", step.does, step)
    return subprocess.Popen(step.argv, env=os.environ | step.environment, start_new_session=True)


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits until all have ended well (0), or one has not: its code, as a shell reports it."""
    while True:
        codes = [process.poll() for process in processes]
        if failed := next((code for code in codes if code), 0):
            return 128 - failed if failed < 0 else failed
        if all(code == 0 for code in codes):
            return exits.FINISHED
        time.sleep(0.2)


def _end(processes: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """Asks all to save and stop; after `grace_s` the rest is killed, with what they started."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace_s
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.1))
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ------------------------------------------------------------------------------------- elsewhere


def _follow(plan: Plan, restarts: int, wait_s: float, sleep: Callable[[float], None] = time.sleep) -> int:
    """Asks where the job stands until it ends; lost hardware is asked for again, up to `restarts` times."""
    before = None
    while True:
        state = _ask(plan, sleep)
        if state is not before:
            _LOG.info("the job is %s", state.value)
        before = state
        if state is State.LOST and plan.again and restarts:
            restarts -= 1
            stop(plan)
            sleep(wait_s)
            _start(plan)
        elif state is State.FINISHED:
            return exits.FINISHED
        elif state is State.ENDED:
            return _result(plan)
        elif state in (State.FAILED, State.LOST):
            return exits.FAILED
        else:
            sleep(POLL_S)


def _result(plan: Plan) -> int:
    """The exit code of a job of which nothing is left.  Raises Failure where it is not known."""
    done = _quietly(plan.result) if plan.result else None
    if done is None or not done.stdout.strip().isdigit():
        raise Failure("the job has ended, and left no exit code: its log says how")
    return int(done.stdout)


def _ask(plan: Plan, sleep: Callable[[float], None]) -> State:
    """The state of the job.  An answer that fails is asked for again: networks fail more often than jobs."""
    assert plan.state and plan.read_state
    for _ in range(_MOST_UNANSWERED):
        done = _quietly(plan.state)
        if done is not None and done.returncode == 0:
            return plan.read_state(done.stdout)
        if done is not None and _is_gone(done):
            return plan.read_state("")
        _LOG.warning("%s failed%s", plan.state, _last_line(done))
        sleep(POLL_S)
    raise Failure(f"{plan.state} gave no answer {_MOST_UNANSWERED} times; the job is being stopped")


def outcome(code: int) -> str:
    """How the job ended, in words."""
    return "its hours are over; it has saved" if code == shell.TIMED_OUT else exits.describe(code)
