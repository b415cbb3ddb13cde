"""What a fault is: something done to a command, so many times, and what of the undisturbed result is lost by it.

A file of `kinds/` declares faults by `register`; the table and the tests are over all of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]
import fault_world  # noqa: E402

# What the names of faults of a bucket hold.
AT_GS = "at gs://"
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
BEGIN, END = "<!-- table: python -m tests.faults -->", "<!-- end of the table -->"


@dataclasses.dataclass
class Outcome:
    """What came of a fault.

    Attributes:
      times: how often it was done.
      lost: what is not as it should be, in words; [] is what is wanted.
      skipped: why it could not be done here.
    """

    times: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    skipped: str = ""

    def expect(self, true: object, otherwise: str) -> None:
        """Notes a loss unless something is true."""
        if not true:
            self.lost.append(otherwise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of one command.

    Attributes:
      name: unique, `<command>: <what happens to it>`.
      wanted: what must come of it, for the table.
      do: does it `times` times.
      short, long: how often, in the two forms; 0: not in that form.
    """

    name: str
    wanted: str
    do: Callable[[fault_world.World, random.Random, int], Outcome]
    short: int = 1
    long: int = 1

    def run(self, world: fault_world.World, times: int, seed: int) -> dict:
        """A line of the results."""
        begin = time.monotonic()
        outcome = self.do(world, random.Random(f"{self.name} {seed}"), times)
        line = {"fault": self.name, "wanted": self.wanted, **dataclasses.asdict(outcome), "seed": seed}
        return line | {"seconds": round(time.monotonic() - begin)}


FAULTS: dict[str, Fault] = {}


def register(fault: Fault) -> None:
    assert fault.name not in FAULTS, fault.name
    FAULTS[fault.name] = fault


def load() -> dict[str, Fault]:
    """All faults, by name."""
    for module in pkgutil.iter_modules([str(HERE / "kinds")]):
        importlib.import_module(f"kinds.{module.name}")
    return FAULTS


def nothing_is_lost(name: str, world: fault_world.World) -> None:
    """The short form of a fault, as a test."""
    import pytest

    outcome = FAULTS[name].do(world, random.Random(name), FAULTS[name].short)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.times and not outcome.lost


# ----------------------------------------------------------------------------------------- results


def read() -> list[dict]:
    """The lines of all runs that were kept."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def keep(line: dict) -> None:
    """Adds a line, and writes the table anew."""
    with open(RESULTS, "a") as file:
        file.write(json.dumps(line) + "\n")
    page = PAGE.read_text()
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n{table(read())}{END}{tail}")


def table(lines: list[dict]) -> str:
    """Markdown: for each fault how often it was done over all kept runs, and what was lost."""
    rows = ["| fault | what must come of it | times | lost |", "|---|---|---:|---|"]
    for name in dict.fromkeys(line["fault"] for line in lines):
        own = [line for line in lines if line["fault"] == name]
        lost = [each for line in own for each in line["lost"]]
        skipped = next((line["skipped"] for line in own if line["skipped"]), "")
        times = sum(line["times"] for line in own)
        said = "; ".join(lost) if lost else (f"not run: {skipped}" if skipped and not times else "nothing")
        rows.append(f"| {name} | {own[-1]['wanted']} | {times} | {said} |")
    return "\n".join(rows) + "\n"
