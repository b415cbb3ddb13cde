"""Work dirs and stores at gs://: kills in the middle of uploads, lost disks, requests that fail, a second machine.

The bucket is an emulator (`tests/runs/buckets`).  A machine is a cache of its own; one that is lost loses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import bucket_servers
from fault_registry import Fault, Outcome, register
from fault_world import SETTINGS, Ended, World, difference, end, kill, last, left_by, wait
from kinds import spread

from poet.runs import exits, lease
from poet.runs.buckets import mirror

# So that nobody waits a minute for a machine that was lost.
QUICK = {
    "constants": {
        "poet.runs.buckets.lease": {"RENEW_S": 0.5, "STALE_S": 3.0, "LOOK_S": 0.2},
        "poet.store.publishing": {"_SEND_S": 0.1},
    }
}
# Requests that send files of checkpoints and of stores.
UPLOAD = "POST /upload.*name=.*(checkpoints/0|tfrecord|examples)"

# How many a command makes within a part of its run that is worth its kill: at most all of them.
MOST_UPLOADS = {"train": 80, "tokenize": 8}


class Cloud:
    """A bucket for one fault, and machines that use it."""

    def __init__(self, world: World, server: bucket_servers.Server, folder: Path, command: str):
        self.server, self.url = server, f"gs://{bucket_servers.BUCKET}/mine"
        self._world, self._folder, self._command = world, folder, world.command(command, self.url)
        self._variables = {bucket_servers.EMULATOR: server.address}

    def start(self, machine: str = "machine", *flags: str, devices: int = 1) -> subprocess.Popen[str]:
        variables = self._variables | {mirror.CACHE: str(self._folder / machine)}
        return self._world.start([*self._command, *flags], devices=devices, fault=QUICK, variables=variables)

    def run(self, machine: str = "machine") -> Ended:
        return end(self.start(machine))

    def lose(self, machine: str = "machine") -> None:
        shutil.rmtree(self._folder / machine, ignore_errors=True)

    def uploads(self) -> int:
        """How many were begun since this was last asked."""
        return sum(bool(re.search(UPLOAD, line)) for line in self.server.requests())

    def holds(self) -> Path:
        """What the bucket holds, for who reads it from elsewhere."""
        variables = self._variables | {mirror.CACHE: str(self._folder / "reader")}
        with mock.patch.dict(os.environ, variables):
            return mirror.fetch(self.url)


@contextlib.contextmanager
def cloud(world: World, name: str, command: str = "train") -> Iterator[Cloud]:
    folder = world.new(name.replace(" ", "_"))
    with bucket_servers.running(folder / "bucket") as server:
        yield Cloud(world, server, folder, command)


def expect_whole(outcome: Outcome, world: World, there: Cloud, ended: Ended, command: str = "train") -> None:
    """The command ended well, and the bucket has what it leaves undisturbed; of a training with every line once."""
    outcome.expect(ended.code == 0, f"exit code {ended.code}: {last(ended.text)}")
    if outcome.lost:
        return
    held = there.holds()
    got = {name: value for name, value in left_by(command, held).items() if name != lease.FILE}
    differs = difference(left_by(command, world.undisturbed(command)), got)
    outcome.expect(not differs, differs)
    if command == "train":
        lines = [json.loads(line)["step"] for line in (held / "metrics.jsonl").read_text().splitlines()]
        outcome.expect(lines == [*range(1, SETTINGS["TRAIN.steps"] + 1)], f"the log has the steps {lines}")


def killed(command: str, world: World, rng: random.Random, times: int) -> Outcome:
    """In the middle of an upload, which the bucket holds up; the next start is on a machine with an empty disk.  A run
    that ended is whole, and another one begins."""
    outcome, runs = Outcome(), 0
    while outcome.times < times and not outcome.lost:
        with cloud(world, f"uploading {command} {runs}", command) as there:
            expect_whole(outcome, world, there, _killed_until(there, command, rng, outcome, times), command)
        runs += 1
    return outcome


def _killed_until(there: Cloud, command: str, rng: random.Random, outcome: Outcome, times: int) -> Ended:
    """The end of a run that is killed while the bucket holds an upload up, until it ends before, or there were so many
    kills."""
    while outcome.times < times:
        most, seen = rng.randint(1, MOST_UPLOADS[command]), [there.uploads()]
        there.server.faults([{"path": UPLOAD, "answer": "hang", "skip": most - 1, "times": 10**6}])
        process = there.start()
        wait(lambda: seen.append(there.uploads()) or sum(seen[1:]) >= most, process)
        finished = process.poll() is not None
        ended = kill(process)
        there.server.faults([])
        if finished:
            return ended
        outcome.times += 1
        there.lose()
    return there.run()


def apart(world: World, rng: random.Random, times: int) -> Outcome:
    """Two machines with nothing but the bucket between them, one of which is lost; both begin anew, one on an empty
    disk."""
    outcome = Outcome()
    for number in range(times):
        with cloud(world, f"apart {number}") as there:
            both, victim, seen = _both(there), rng.randrange(2), [there.uploads()]
            most = rng.randint(1, MOST_UPLOADS["train"] // 2)
            wait(lambda: seen.append(there.uploads()) or sum(seen[1:]) >= most, both[victim])
            kill(both[victim])
            other = end(both[1 - victim])
            outcome.times += 1
            outcome.expect(exits.restartable(other.code), f"the other ended with {other.code}: {last(other.text)}")
            there.lose(f"machine {victim}")
            again = [end(process) for process in _both(there)]
            outcome.expect([c.code for c in again] == [0, 0], f"again: {[(c.code, last(c.text)) for c in again]}")
            if not outcome.lost:
                differs = spread.apart(spread.losses(world.trained), spread.losses(there.holds()))
                outcome.expect(not differs, differs)
    return outcome


def _both(there: Cloud) -> list[subprocess.Popen[str]]:
    places = [[f"--coordinator={spread.free_address()}", "--processes=2"]] * 2
    return [there.start(f"machine {k}", *place, f"--process={k}", devices=2) for k, place in enumerate(places)]


def failing(world: World, rng: random.Random, times: int) -> Outcome:
    """Requests of every kind answered by 429 and 503, not at all, or broken off, done or not."""
    outcome = Outcome()
    for number in range(times):
        with cloud(world, f"failing {number}") as there:
            paths = [UPLOAD, "POST .*lease", "POST .*metrics", "GET .*/o", "DELETE|batch"]
            answers = [429, 503, "reset", "after"]
            faults: list[dict[str, Any]] = []
            for path in paths:
                faults.append({"path": path, "answer": rng.choice(answers), "times": rng.randint(1, 4)})
            there.server.faults(faults)
            ended = there.run()
            outcome.times += sum(fault["times"] for fault in faults)
            expect_whole(outcome, world, there, ended)
    return outcome


def refused(world: World, rng: random.Random, times: int) -> Outcome:
    """The bucket takes nothing any more, in the middle of the run: named, saved here; later it goes on."""
    outcome = Outcome()
    for number in range(times):
        with cloud(world, f"refused {number}") as there:
            process, most, seen = there.start(), rng.randint(1, 80), [there.uploads()]
            wait(lambda: seen.append(there.uploads()) or sum(seen[1:]) >= most, process)
            there.server.fail("POST", 403, times=10**6)
            ended = end(process)
            outcome.times += 1
            named = ended.code == exits.USER and "the bucket refuses this account" in last(ended.text)
            outcome.expect(named, f"exit code {ended.code}: {last(ended.text)}")
            there.server.faults([])
            expect_whole(outcome, world, there, there.run())
    return outcome


def terminated(world: World, rng: random.Random, times: int) -> Outcome:
    """SIGTERM: all is in the bucket when the process ends, so that another machine goes on at that step."""
    outcome = Outcome()
    for number in range(times):
        with cloud(world, f"terminated {number}") as there:
            process = there.start()
            wait(lambda: there.uploads() > 0, process)
            process.send_signal(signal.SIGTERM)
            ended = end(process)
            outcome.times += 1
            outcome.expect(ended.code == exits.RESTART, f"exit code {ended.code}: {last(ended.text)}")
            there.lose()
            again = there.run()
            stopped = ended.text.rpartition("stopped by a signal at step ")[2].split()[0]
            outcome.expect(f"resuming from step {stopped}" in again.text, f"stopped at step {stopped}: {again.text}")
            expect_whole(outcome, world, there, again)
    return outcome


def two_machines(world: World, rng: random.Random, times: int) -> Outcome:
    """A second machine with the work dir of the first one, which lives."""
    outcome = Outcome()
    with cloud(world, "two machines") as there:
        first = there.start("one")
        wait(lambda: there.uploads() > 0, first)
        there.server.fail(UPLOAD, "slow", times=40)  # It does not end meanwhile.
        second = there.run("two")
        outcome.times += 1
        named = (
            second.code == exits.USER and f"{there.url} is in use by another process (pid {first.pid}" in second.text
        )
        outcome.expect(named, f"the second got exit code {second.code}: {last(second.text)}")
        there.server.faults([])
        expect_whole(outcome, world, there, end(first))
    return outcome


SAME = "ends as undisturbed, bit for bit, each line of the log once"
for name, wanted, do, short, long in (
    ("kill -9 in an upload, then an empty disk", SAME, lambda *args: killed("train", *args), 3, 50),
    ("requests fail by 429, 503, resets", SAME, failing, 1, 10),
    ("the bucket refuses uploads", "named, code 2, saved here; later as undisturbed", refused, 1, 5),
    ("SIGTERM, then an empty disk", "code 75 with all published; then as undisturbed", terminated, 1, 5),
    ("one of two machines dies (SIGKILL)", "the other ends; together again, losses within 1e-3", apart, 0, 5),
    ("a second machine", "refused by name; the first ends as undisturbed", two_machines, 1, 1),
):
    register(Fault(name=f"train at gs://: {name}", wanted=wanted, do=do, short=short, long=long))
register(
    Fault(
        name="tokenize at gs://: kill -9 in an upload, then an empty disk",
        wanted="the same bytes",
        do=lambda *args: killed("tokenize", *args),
        short=2,
        long=20,
    )
)
