"""SIGKILL at random moments: the command is started again until it ends, and leaves what it leaves undisturbed."""

from __future__ import annotations

import functools
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fault_registry import Fault, Outcome, register
from fault_world import Ended, World, difference, kill, last, left_by, wait

from poet.runs import manifest

# Seconds in which a command's own work, behind its start, is done on an idle core: kills lie there or in the start.
WORK_S = {
    "train": 4.0,
    "tokenize": 3.0,
    "tokenizer-train": 8.0,
    "eval": 3.0,
    "export": 10.0,
    "generate": 6.0,
    "upscale": 6.0,
}
# Changes of files and folders that Python makes for an output of a command: at most all of them.
CHANGES = {"tokenizer-train": 230, "eval": 50, "export": 27, "generate": 72, "upscale": 33}


def grown(out: Path) -> tuple[int, int]:
    """What is there of a command's output, as something that grows."""
    files = [path for path in [*out.rglob("*"), *out.parent.glob(f".{out.name}*/**/*")] if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files if path.exists())


def at_a_moment(world: World, command: str, out: Path, rng: random.Random) -> Ended:
    process, before = world.start(world.command(command, out)), grown(out)
    if rng.random() < 0.8:  # Else at any moment of the start.
        wait(lambda: grown(out) != before, process)
    time.sleep(rng.uniform(0, WORK_S[command]))
    return kill(process)


def at_a_change(world: World, command: str, out: Path, rng: random.Random) -> Ended:
    """Before it makes, renames or removes something: where a half of an output could be left."""
    fault = {"below": str(out.parent), "at": rng.randint(1, CHANGES[command])}
    return world.run(world.command(command, out), fault={"kill": fault})


def killed(strike: Callable[..., Ended], command: str, world: World, rng: random.Random, times: int) -> Outcome:
    outcome, want = Outcome(), left_by(command, world.undisturbed(command))
    out, kept = world.new(f"killed_{command}"), {}
    while outcome.times < times and not outcome.lost:
        ended = strike(world, command, out, rng)
        outcome.times += ended.code == -signal.SIGKILL
        if ended.code == -signal.SIGKILL and not (out / manifest.NAME).exists():
            kept = expect_kept(outcome, command, out, kept)
            continue
        expect_whole(outcome, command, out, want, None if ended.code == -signal.SIGKILL else ended)
        out, kept = world.new(f"killed_{command}"), {}
    if not outcome.lost:
        expect_whole(outcome, command, out, want, world.run(world.command(command, out)))
    return outcome


def expect_whole(outcome: Outcome, command: str, out: Path, want: dict[str, str], ended: Ended | None) -> None:
    """The output is as undisturbed, and so the command said where it could."""
    after = f"after kill {outcome.times}"
    if ended is not None:
        outcome.expect(ended.code == 0, f"exit code {ended.code} {after}: {last(ended.text)}")
    if not outcome.lost:
        differs = difference(want, left_by(command, out))
        outcome.expect(not differs, f"{after}: {differs}")


def expect_kept(outcome: Outcome, command: str, out: Path, before: dict[str, bytes]) -> dict[str, bytes]:
    """Every folder that says that it is whole is, and what was whole before is there as it was; what is whole now."""
    if "train" in command:  # Its policy removes checkpoints, and every start verifies them.
        return {}
    whole = [f.parent for f in out.rglob(manifest.NAME) if "partial" not in str(f.relative_to(out))]
    try:
        names = [folder / name for folder in whole for name in manifest.check_listed(folder)["files"]]
    except manifest.Corrupt as error:
        outcome.lost.append(str(error))
        return {}
    now = {str(name): name.read_bytes() for name in names}
    gone = [name for name, data in before.items() if now.get(name) != data]
    outcome.expect(not gone, f"finished before kill {outcome.times}, and not as it was: {', '.join(gone[:4])}")
    return now


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
    outcome.expect(not (differs := difference(want, left_by("train", out))), differs)
    outcome.expect(not [*out.glob("checkpoints/*.tmp")], "a torn checkpoint is still there")
    return outcome


for command, moments, changes in (
    ("train", (5, 50), None),
    ("tokenize", (2, 50), None),
    ("tokenizer-train", (0, 10), (0, 30)),
    ("eval", (0, 10), (1, 30)),
    ("export", (0, 10), (0, 30)),
    ("generate", (0, 10), (1, 30)),
    ("upscale", (0, 10), (0, 30)),
):
    for when, strike, forms in (
        ("at random moments", at_a_moment, moments),
        ("as it changes a file", at_a_change, changes),
    ):
        if forms:
            register(
                Fault(
                    name=f"{command}: kill -9 {when}",
                    wanted="ends as undisturbed, bit for bit" if "train" in command else "the same bytes",
                    do=functools.partial(killed, strike, command),
                    short=forms[0],
                    long=forms[1],
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
