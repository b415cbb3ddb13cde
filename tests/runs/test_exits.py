from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from poet.checkpoints.checkpoint import SaveError
from poet.runs import exits, manifest
from poet.spec import Failure, UserError
from poet.training.loop import Outcome, TrainingDiverged

PAGE = Path(__file__).parents[2] / "poet/runs/README.md"


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
OF_TENSORSTORE = ValueError("RESOURCE_EXHAUSTED: Error writing x: [OS error 28: ENOSPC No space left on device]")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("device lost"), exits.FAILED),
        (MemoryError(), exits.FAILED),
        (Failure("x"), exits.FAILED),
        (OSError(errno.EIO, "x"), exits.FAILED),
        (UserError("x"), exits.USER),
        (manifest.Corrupt("x"), exits.USER),
        (OSError(errno.EROFS, "x"), exits.USER),
        (FileNotFoundError(errno.ENOENT, "x"), exits.USER),
        (FULL, exits.PERMANENT),
        (chained(UserError("cannot be written"), FULL), exits.PERMANENT),
        (chained(SaveError("x"), OF_TENSORSTORE), exits.PERMANENT),
        (chained(SaveError("x"), ValueError("UNAVAILABLE")), exits.FAILED),
        (exits.Permanent("x"), exits.PERMANENT),
        (TrainingDiverged("x", 3), exits.PERMANENT),
        (KeyboardInterrupt(), exits.INTERRUPTED),
    ],
)
def test_an_error_has_the_code_of_what_another_start_would_meet(error: BaseException, code: int) -> None:
    assert exits.of(error) == code


def test_a_signal_s_death_may_be_cured_and_a_mistake_or_an_interrupt_may_not() -> None:
    killed = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).returncode
    assert exits.restartable(killed) and exits.restartable(128 + signal.SIGSEGV)
    assert exits.restartable(Outcome.PREEMPTED.exit_code) and exits.restartable(exits.HUNG)
    never = (Outcome.FINISHED.exit_code, exits.USER, exits.PERMANENT, exits.INTERRUPTED, -signal.SIGINT, 17)
    assert not any(map(exits.restartable, never))


def test_codes_in_words() -> None:
    assert exits.describe(-signal.SIGKILL) == exits.describe(137) == "killed by SIGKILL"
    assert exits.describe(exits.RESTART) == "exit code 75 (restart)" and exits.describe(17) == "exit code 17"


def test_the_page_has_every_code_as_it_is() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (yes|no) \|$", PAGE.read_text(), re.M)
    assert rows == [
        (str(code), each.name, each.happened, "yes" if each.restart else "no")
        for code, each in sorted(exits.MEANINGS.items())
    ]
