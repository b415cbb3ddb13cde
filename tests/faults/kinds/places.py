"""Disks that are full, and folders that cannot be written."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from fault_registry import Fault, Outcome, register
from fault_world import World, difference, last, left_by

from poet.runs import exits


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[str]:
    """A file system of its own at a folder; gives why it cannot be had, or ''."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        yield f"no right to mount a tmpfs ({done.stderr.strip()[:80]})"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full(world: World, rng: random.Random, times: int) -> Outcome:
    """The disk of the work dir fills up at another place each time; with more of it the same command goes on."""
    outcome, want = Outcome(), left_by("train", world.trained)
    for number in range(times):
        out = world.new(f"full_{number}")
        with small_disk(out, "size=64m") as reason:
            if reason:
                return Outcome(skipped=reason)
            (out / "checkpoints").mkdir()
            whole = sum(p.stat().st_size for p in world.trained.rglob("*") if p.is_file())
            size = rng.randint(whole // 20, whole // 3)
            subprocess.run(["mount", "-o", f"remount,size={max(size >> 10, 64)}k", str(out)], check=True)
            ended = world.run(world.command("train", out))
            outcome.times += 1
            outcome.expect(ended.code == exits.PERMANENT, f"exit code {ended.code}: {last(ended.text)}")
            outcome.expect("No space left" in ended.text or "could not be written" in ended.text, last(ended.text))
            subprocess.run(["mount", "-o", "remount,size=256m", str(out)], check=True)
            again = world.run(world.command("train", out))
            outcome.expect(again.code == 0, last(again.text))
            outcome.expect(not (differs := difference(want, left_by("train", out))), differs)
    return outcome


def read_only(world: World, rng: random.Random, times: int) -> Outcome:
    """A work dir on a file system that is mounted for reading: refused in one line."""
    out = world.new("read_only")
    with small_disk(out, "size=1m") as reason:
        if reason:
            return Outcome(skipped=reason)
        subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        outcome = Outcome(times=1)
        ended = world.run(world.command("train", out))
        refused = ended.code == exits.USER and str(out) in ended.text and os.strerror(30) in ended.text
        outcome.expect(refused, f"exit code {ended.code}: {last(ended.text)}")
    return outcome


register(
    Fault(name="train: the disk fills up", wanted="code 74; with more of it as undisturbed", do=full, short=1, long=8)
)
register(Fault(name="train: a read-only work dir", wanted="refused, code 2", do=read_only))
