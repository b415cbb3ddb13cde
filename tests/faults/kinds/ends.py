"""Signals, a second writer, bad numbers, reads that fail or never return: the exit code says what comes next."""

from __future__ import annotations

import json
import random
import signal

from fault_registry import Fault, Outcome, register
from fault_world import World, difference, end, kill, last, left_by, wait

from poet.runs import exits


def terminated(world: World, rng: random.Random, times: int) -> Outcome:
    """SIGTERM after a random number of logged steps; then the same command again."""
    outcome, want = Outcome(), left_by("train", world.trained)
    for number in range(times):
        out = world.new(f"terminated_{number}")
        process, lines = world.start(world.command("train", out)), rng.randint(1, 20)
        wait(lambda: logged(out) >= lines, process)
        process.send_signal(signal.SIGTERM)
        ended = end(process)
        outcome.times += 1
        outcome.expect(ended.code == exits.RESTART, f"exit code {ended.code}: {last(ended.text)}")
        again = world.run(world.command("train", out))
        outcome.expect(again.code == 0, last(again.text))
        outcome.expect(not (differs := difference(want, left_by("train", out))), differs)
    return outcome


def logged(out) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def two_writers(world: World, rng: random.Random, times: int) -> Outcome:
    """A second training in the work dir of a live one; then one where the lease of a dead one is left."""
    outcome, out = Outcome(), world.new("two_writers")
    want = left_by("train", world.trained)
    first = world.start(world.command("train", out))
    wait(lambda: logged(out) > 0, first)
    first.send_signal(signal.SIGSTOP)
    second = world.run(world.command("train", out))
    outcome.times += 1
    refused = second.code == exits.USER and f"in use by another process (pid {first.pid}" in second.text
    outcome.expect(refused, f"a second writer got exit code {second.code}: {last(second.text)}")
    kill(first)
    # As a machine that lost its power leaves it: the file of a process that is no more, of another boot.
    (out / "lease.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "2020-01-01T00:00:00+0000"}))
    third = world.run(world.command("train", out))
    outcome.times += 1
    outcome.expect(third.code == 0, f"a stale lease: exit code {third.code}: {last(third.text)}")
    outcome.expect(not (differs := difference(want, left_by("train", out))), differs)
    return outcome


def not_finite(world: World, rng: random.Random, times: int) -> Outcome:
    """Batches whose text states are NaN: stopped by default; skipped; rewound; in a second turn killed after that."""
    outcome, fault = Outcome(times=times), {"not_finite": [12, 13, 14]}
    stopped = world.run(world.command("train", world.new("nan_stops")), fault=fault)
    outcome.expect(
        stopped.code == exits.PERMANENT and "loss" in stopped.text, f"stops with {stopped.code}: {last(stopped.text)}"
    )
    out = world.new("nan_skips")
    skipped = world.run(world.command("train", out, "--gin.FAULTS.skips=3"), fault=fault)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    counted = [line["step"] for line in lines if line.get("skipped_updates")]
    outcome.expect(skipped.code == 0 and counted == [13, 14, 15], f"skipped {counted}: {last(skipped.text)}")
    left = []
    for number in range(min(times, 2)):
        out = world.new(f"nan_rewinds_{number}")
        command = world.command("train", out, "--gin.FAULTS.rewinds=1", "--gin.FAULTS.rewind_steps=4")
        if number:
            process = world.start(command, fault=fault)
            wait(lambda: out.joinpath("checkpoints/00000020").exists(), process)
            kill(process)
        rewound = world.run(command, fault=fault)
        outcome.expect(rewound.code == 0, f"rewound: {last(rewound.text)}")
        left.append(left_by("train", out))
    outcome.expect(not (differs := difference(left[0], left[-1])), f"killed after a rewind: {differs}")
    return outcome


def failing_reads(world: World, rng: random.Random, times: int) -> Outcome:
    """The first three reads of the store fail."""
    outcome, out = Outcome(times=1), world.new("failing_reads")
    fault = {"read_error": {"match": "tfrecord", "times": 3}}
    ended = world.run(world.command("train", out), fault=fault)
    outcome.expect(ended.code == 0 and "trying again" in ended.text, last(ended.text))
    outcome.expect(not (differs := difference(left_by("train", world.trained), left_by("train", out))), differs)
    return outcome


def hung(world: World, rng: random.Random, times: int) -> Outcome:
    """A read that never returns: the watchdog ends the process, with stacks; the same command goes on."""
    outcome, out = Outcome(times=1), world.new("hung")
    flags = ["--gin.FAULTS.hang_factor=3", "--gin.FAULTS.hang_least_s=8", "--verbose"]
    command = world.command("train", out, *flags)
    ended = world.run(command, fault={"read_hang": {"match": "tfrecord", "after": 150}})
    said = "hangs" in ended.text and "_next_batch" in ended.text
    outcome.expect(ended.code == exits.HUNG and said, f"exit code {ended.code}: {last(ended.text)}")
    again = world.run(command)
    outcome.expect(again.code == 0, last(again.text))
    outcome.expect(not (differs := difference(left_by("train", world.trained), left_by("train", out))), differs)
    return outcome


def clock_jumps(world: World, rng: random.Random, times: int) -> Outcome:
    """The clock is set forward or back by a day in the middle of a run."""
    outcome = Outcome()
    for number in range(times):
        out = world.new(f"clock_{number}")
        jump = {"when": str(out / "checkpoints/00000005"), "by_s": (1 - 2 * (number % 2)) * 86_400}
        command = world.command("train", out, "--gin.FAULTS.hang_factor=3", "--gin.CHECKPOINT.every_minutes=30")
        ended = world.run(command, fault={"clock": jump})
        outcome.times += 1
        outcome.expect(ended.code == 0, f"exit code {ended.code}: {last(ended.text)}")
        outcome.expect(not (differs := difference(left_by("train", world.trained), left_by("train", out))), differs)
        status = world.run(["status", str(out), "--json"])
        outcome.expect(status.code == 0, last(status.text))
    return outcome


register(Fault(name="train: SIGTERM", wanted="saved, code 75; then as undisturbed", do=terminated, short=1, long=20))
register(
    Fault(
        name="train: a second writer, a stale lease",
        wanted="the second is refused by name, the lease of a dead process stops nobody",
        do=two_writers,
        short=0,
    )
)
register(
    Fault(
        name="train: batches that are not finite",
        wanted="code 74 by default; skipped and counted; rewound, the same after a kill",
        do=not_finite,
        long=2,
    )
)
register(Fault(name="train: the clock jumps by a day", wanted="ends as undisturbed", do=clock_jumps, short=0, long=6))
register(Fault(name="train: reads that fail three times", wanted="tried again, as undisturbed", do=failing_reads))
register(Fault(name="train: a read that never returns", wanted="code 70 with stacks; then as undisturbed", do=hung))
