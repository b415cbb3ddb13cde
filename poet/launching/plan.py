"""What launching a job amounts to: files, commands of other programs, and how to undo it."""

from __future__ import annotations

import dataclasses
import enum
import shlex
from collections.abc import Callable, Mapping


class State(enum.Enum):
    """Of a job that runs elsewhere.

    LOST: its hardware is gone, and may be asked for again.  ENDED: nothing of the job is left, so that only its
    exit code can say how.
    """

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost its hardware"
    ENDED = "ended"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A command of another program.

    Attributes:
      argv: its words.
      does: what it does, for people.
      environment: variables beside those of this process.
    """

    argv: tuple[str, ...]
    does: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.argv)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A job on one backend.

    Attributes:
      files: name -> text, written to the folder of the launch before anything is started.
      checks: commands that change nothing; one that fails ends the launch before it has cost anything.
      start: commands that allocate; `stop` undoes each of them, begun or done.
      here: commands that run the job while this process waits, all at once.
      state: prints where a job stands that runs elsewhere, read by `read_state`.
      result: prints the exit code of a job that has ended.
      stop: frees everything; may be run at any time, and again.
      again: whether `stop` and then `start` bring back a job that lost its hardware.
      log: how to read what the job prints.
    """

    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    checks: tuple[Step, ...] = ()
    start: tuple[Step, ...] = ()
    here: tuple[Step, ...] = ()
    state: Step | None = None
    read_state: Callable[[str], State] | None = None
    result: Step | None = None
    stop: tuple[Step, ...] = ()
    again: bool = False
    log: str = ""

    @property
    def steps(self) -> tuple[Step, ...]:
        asked = (step for step in (self.state, self.result) if step)
        return (*self.checks, *self.start, *self.here, *asked, *self.stop)


def by_word(states: Mapping[str, State], *, absent: State) -> Callable[[str], State]:
    """Reads a state from the first word of what a command prints; `absent` where it prints nothing.

    A word that is not in `states` counts as RUNNING: a state between two others.
    """

    def read(output: str) -> State:
        words = output.split()
        return states.get(words[0], State.RUNNING) if words else absent

    return read
