"""Several processes, and meshes of other sizes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fault_registry import Fault, Outcome, register
from fault_world import World, end, kill, last, wait

from poet.runs import exits
from poet.runs.run import Run

# Seconds within which all processes of a run end once one of them is gone: the heartbeat, and as much again.
BOUND_S = 120.0


def free_address(host: str = "127.0.0.1") -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"{host}:{probe.getsockname()[1]}"


def pair(
    world: World, out: Path, *flags: str, host: str = "127.0.0.1", within: Sequence[Sequence[str]] = ((), ())
) -> list[subprocess.Popen[str]]:
    """Two processes of one training, of two devices each."""
    address = free_address(host)
    places = [[f"--coordinator={address}", "--processes=2", f"--process={index}"] for index in range(2)]
    commands = [world.command("train", out, *flags, *place) for place in places]
    return [world.start(command, devices=2, within=own) for command, own in zip(commands, within)]


@dataclasses.dataclass(frozen=True)
class Network:
    """Two machines, as far as their network goes, with one wire between them."""

    names: tuple[str, str]
    hosts: tuple[str, str] = ("10.213.7.1", "10.213.7.2")

    @property
    def within(self) -> list[list[str]]:
        return [["ip", "netns", "exec", name] for name in self.names]

    def wire(self, state: str) -> None:
        """'up' or 'down'."""
        for name in self.names:
            _ip("-n", name, "link", "set", "wire", state)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """CalledProcessError or OSError where this user may not make one."""
    made = Network((f"poet{os.getpid()}a", f"poet{os.getpid()}b"))
    with contextlib.ExitStack() as ends:
        for name, host in zip(made.names, made.hosts):
            _ip("netns", "add", name)
            ends.callback(_ip, "netns", "del", name)
            own = Path("/etc/netns", name)  # `ip netns exec` puts what is here over /etc.
            own.mkdir(parents=True)
            ends.callback(shutil.rmtree, own)
            (own / "hosts").write_text(f"127.0.0.1 localhost\n{host} {socket.gethostname()}\n")
        one, other = made.names
        _ip("link", "add", "wire", "netns", one, "type", "veth", "peer", "name", "wire", "netns", other)
        for name, host in zip(made.names, made.hosts):
            _ip("-n", name, "address", "add", f"{host}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "lo", "up")
        made.wire("up")
        yield made


def cut_off(world: World, rng: random.Random, times: int) -> Outcome:
    """The wire between two machines is cut: both end within a bound, and with it back they go on together."""
    outcome = Outcome()
    try:
        with network() as made:
            for turn in range(times):
                _cut_off(world, made, rng, outcome, turn)
    except (OSError, subprocess.CalledProcessError) as error:
        outcome.skipped = f"no network namespaces here ({error})"
    return outcome


def _cut_off(world: World, made: Network, rng: random.Random, outcome: Outcome, turn: int) -> None:
    out = world.new(f"cut_off_{turn}")
    start = functools.partial(pair, world, out, host=made.hosts[0], within=made.within)
    both = start()
    wait(lambda: (out / "checkpoints/00000005").exists(), both[0])
    time.sleep(rng.uniform(0, 1))
    made.wire("down")
    begin = time.monotonic()
    ended = [end(process) for process in both]
    took_s = time.monotonic() - begin
    made.wire("up")
    outcome.times += 1
    for one in ended:
        outcome.expect(exits.restartable(one.code), f"one ended with {one.code}: {last(one.text)}")
    outcome.expect(took_s < BOUND_S, f"they ended after {took_s:.0f} s")
    again = [end(process) for process in start()]
    outcome.expect([c.code for c in again] == [0, 0], f"again: {[(c.code, last(c.text)) for c in again]}")
    if not outcome.lost:
        outcome.expect(not (differs := apart(losses(world.trained), losses(out))), differs)


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
        name="train, two processes: one is cut off (network namespaces)",
        wanted=f"both end within {BOUND_S:.0f} s; together again, losses within 1e-3",
        do=cut_off,
        short=0,
        long=5,
    )
)
register(
    Fault(
        name="train: goes on with 8, 4, 2, 1 devices", wanted="every step once, losses within 1e-3", do=meshes, short=0
    )
)
