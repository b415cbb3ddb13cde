"""Several processes, and meshes of other sizes."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

from fault_registry import Fault, Outcome, register
from fault_world import World, end, kill, last, wait

from poet.runs import exits
from poet.runs.run import Run

# Seconds within which all processes of a run end once one of them is gone: the heartbeat, and as much again.
BOUND_S = 120.0


def pair(world: World, out: Path, *flags: str) -> list[subprocess.Popen[str]]:
    """Two processes of one training, of two devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    places = [[f"--coordinator={address}", "--processes=2", f"--process={index}"] for index in range(2)]
    return [world.start(world.command("train", out, *flags, *place), devices=2) for place in places]


def losses(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def apart(want: dict[int, float], got: dict[int, float]) -> str:
    """'' where the steps are the same and the losses within one in a thousand."""
    if want.keys() != got.keys():
        return f"steps {len(got)} of {len(want)}"
    worst = max(abs(got[step] - want[step]) / abs(want[step]) for step in want)
    return "" if worst < 1e-3 else f"losses differ by {worst:.2%}"


def gone(number: int, world: World, rng: random.Random, times: int) -> Outcome:
    """One of two gets a signal: both end within a bound, and both go on together."""
    outcome, flags = Outcome(), ("--gin.FAULTS.hang_factor=3", "--gin.FAULTS.hang_least_s=15")
    for turn in range(times):
        out = world.new(f"gone_{number}_{turn}")
        both = pair(world, out, *flags)
        victim = rng.randrange(2)
        wait(lambda: (out / "checkpoints/00000005").exists(), both[victim])
        both[victim].send_signal(number)
        begin = time.monotonic()
        other = end(both[1 - victim])
        took_s = time.monotonic() - begin
        kill(both[victim])
        outcome.times += 1
        outcome.expect(exits.restartable(other.code), f"the other ended with {other.code}: {last(other.text)}")
        outcome.expect(took_s < BOUND_S, f"the other ended after {took_s:.0f} s")
        codes = [end(process) for process in pair(world, out, *flags)]
        outcome.expect([c.code for c in codes] == [0, 0], f"again: {[(c.code, last(c.text)) for c in codes]}")
        if not outcome.lost:
            outcome.expect(not (differs := apart(losses(world.trained), losses(out))), differs)
    return outcome


def meshes(world: World, rng: random.Random, times: int) -> Outcome:
    """A training that is stopped and goes on with 8, 4, 2 and 1 devices: the order of data and the losses of one."""
    outcome, out = Outcome(), world.new("meshes")
    for devices, steps in ((8, 10), (4, 20), (2, 30), (1, 40)):
        process = world.start(world.command("train", out), devices=devices)
        if devices > 1:
            wait(lambda: max(Run(out).steps(), default=0) >= steps, process)
            process.send_signal(signal.SIGTERM)
        ended = end(process)
        outcome.times += 1
        fine = ended.code in ((0, exits.RESTART) if devices > 1 else (0,))
        outcome.expect(fine, f"{devices} devices: {ended.code}: {last(ended.text)}")
    outcome.expect(not (differs := apart(losses(world.trained), losses(out))), differs)
    return outcome


register(
    Fault(
        name="train, two processes: one dies (SIGKILL)",
        wanted=f"the other ends within {BOUND_S:.0f} s; together again, losses within 1e-3",
        do=lambda *rest: gone(signal.SIGKILL, *rest),
        short=1,
        long=10,
    )
)
register(
    Fault(
        name="train, two processes: one stands still (SIGSTOP)",
        wanted=f"the other ends within {BOUND_S:.0f} s; together again, losses within 1e-3",
        do=lambda *rest: gone(signal.SIGSTOP, *rest),
        short=0,
        long=5,
    )
)
register(
    Fault(
        name="train: goes on with 8, 4, 2, 1 devices", wanted="every step once, losses within 1e-3", do=meshes, short=0
    )
)
