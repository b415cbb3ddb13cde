"""SIGKILL at random moments: the command is started again until it ends, and leaves what it leaves undisturbed."""

from __future__ import annotations

import functools
import random
import time
from pathlib import Path

from fault_registry import Fault, Outcome, register
from fault_world import World, difference, kill, last, left_by, wait

# Seconds in which a command's own work, behind its start, is done on an idle core: kills lie there or in the start.
WORK_S = {"train": 4.0, "tokenize": 3.0, "tokenizer-train": 8.0, "eval": 3.0, "export": 10.0, "generate": 3.0}


def grown(out: Path) -> tuple[int, int]:
    """What is there of a command's output, as something that grows."""
    files = [path for path in [*out.rglob("*"), *out.parent.glob(f".{out.name}*/**/*")] if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files if path.exists())


def killed(command: str, world: World, rng: random.Random, times: int) -> Outcome:
    outcome, want = Outcome(), left_by(command, world.undisturbed(command))
    out = world.new(f"killed_{command}")
    while outcome.times < times:
        process, before = world.start(world.command(command, out)), grown(out)
        if rng.random() < 0.8:  # Else at any moment of the start.
            wait(lambda: grown(out) != before, process)
        time.sleep(rng.uniform(0, WORK_S[command]))
        finished = process.poll() is not None
        ended = kill(process)
        outcome.times += not finished
        if finished:
            outcome.expect(ended.code == 0, f"exit code {ended.code} after kill {outcome.times}: {last(ended.text)}")
            outcome.expect(*compared(command, out, want))
            out = world.new(f"killed_{command}")
        if outcome.lost:
            return outcome
    ended = world.run(world.command(command, out))
    outcome.expect(ended.code == 0, f"exit code {ended.code} after {times} kills: {last(ended.text)}")
    if not outcome.lost:
        outcome.expect(*compared(command, out, want))
    return outcome


def compared(command: str, out: Path, want: dict[str, str]) -> tuple[bool, str]:
    differs = difference(want, left_by(command, out))
    return not differs, differs


def in_a_save(world: World, rng: random.Random, times: int) -> Outcome:
    """While the temporary folder of a checkpoint is there."""
    outcome, want = Outcome(), left_by("train", world.trained)
    out = world.new("killed_in_a_save")
    for _ in range(times):
        process = world.start(world.command("train", out))
        if wait(lambda: any(out.glob("checkpoints/*.tmp")), process):
            time.sleep(rng.uniform(0, 0.05))
            outcome.times += any(out.glob("checkpoints/*.tmp"))
        kill(process)
    ended = world.run(world.command("train", out))
    outcome.expect(ended.code == 0, last(ended.text))
    outcome.expect(*compared("train", out, want))
    outcome.expect(not [*out.glob("checkpoints/*.tmp")], "a torn checkpoint is still there")
    return outcome


for command, short, long in (
    ("train", 5, 50),
    ("tokenize", 2, 50),
    ("tokenizer-train", 0, 10),
    ("eval", 0, 10),
    ("export", 0, 10),
    ("generate", 0, 10),
):
    register(
        Fault(
            name=f"{command}: kill -9 at random moments",
            wanted="ends as undisturbed, bit for bit" if "train" in command else "the same bytes",
            do=functools.partial(killed, command),
            short=short,
            long=long,
        )
    )
register(
    Fault(
        name="train: kill -9 inside a checkpoint's write",
        wanted="ends as undisturbed, bit for bit",
        do=in_a_save,
        short=1,
        long=20,
    )
)
