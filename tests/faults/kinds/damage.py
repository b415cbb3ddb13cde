"""Files that are flipped, cut, deleted or zeroed: each is found and named, and what is whole is used instead."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_registry import Fault, Outcome, register
from fault_world import World, difference, left_by

from poet.runs import exits
from poet.runs.run import Checkpoint, Run
from poet.spec import UserError


def flipped(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def cut(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def zeroed(file: Path, rng: random.Random) -> None:
    """All of it, as a disk that lost its cache leaves it; a file of zeros gets a one."""
    data = bytes(file.stat().st_size)
    file.write_bytes(data if data != file.read_bytes() else b"\1" + data[1:])


def deleted(file: Path, rng: random.Random) -> None:
    file.unlink()


HURTS: tuple[Callable[[Path, random.Random], None], ...] = (flipped, cut, zeroed, deleted)


def hurt(folder: Path, rng: random.Random, times: int) -> Iterator[tuple[Path, str]]:
    """Each file of a folder in each way (as many as `times`, sampled), one at a time; it is whole again afterwards."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    pairs = [(file, way) for file in files for way in HURTS if file.stat().st_size or way is deleted]
    for file, way in rng.sample(pairs, min(times, len(pairs))):
        kept = file.read_bytes()
        way(file, rng)
        yield file, f"{file.relative_to(folder)} {way.__name__}"
        file.write_bytes(kept)


def found(make: Callable[[World], Path], check: Callable[[Path], object], world: World, rng, times: int) -> Outcome:
    """Reading what is damaged raises an error that names the file, or its folder's manifest."""
    outcome, folder = Outcome(), make(world)
    check(folder)
    for file, what in hurt(folder, rng, times):
        outcome.times += 1
        try:
            check(folder)
        except UserError as error:
            named = file.name in str(error) or "manifest" in str(error).lower() or "token store" in str(error)
            outcome.expect(named, f"{what}: not named: {str(error)[:200]}")
        except Exception as error:
            outcome.lost.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        else:
            outcome.lost.append(f"{what}: not found")
    check(folder)
    return outcome


def checkpoint(world: World) -> Path:
    return Run(world.copy(world.trained, "damaged_checkpoint")).newest().path


def weights(world: World) -> Path:
    def make(out: Path) -> None:
        ended = world.run(["checkpoint", "convert", str(world.trained), f"--out={out}"])
        assert ended.code == 0, ended.text

    return world.copy(world.once("weights", make), "damaged_weights")


def store(world: World) -> Path:
    return world.copy(world.undisturbed("tokenize"), "damaged_store")


def export(world: World) -> Path:
    return world.copy(world.undisturbed("export"), "damaged_export")


def evaluation(world: World) -> Path:
    folder = world.copy(world.undisturbed("eval"), "damaged_evaluation")
    shutil.rmtree(folder / "parts")  # See `measured_again`.
    return folder


def read_store(folder: Path) -> None:
    from poet.store import reader

    reader.verify(str(folder))


def read_export(folder: Path) -> None:
    from poet.serving import format

    format.open_folder(folder)


def read_evaluation(folder: Path) -> None:
    """As `poet report` does; all that it does not read is in the manifest."""
    from poet.evaluation.report import artifacts
    from poet.runs import manifest

    assert artifacts.read_evaluation(folder)
    manifest.check_listed(folder)


def measured_again(world: World, rng: random.Random, times: int) -> Outcome:
    """A finished table, which an evaluation would go on from, is read only where it is whole."""
    from poet.evaluation.parts import Parts

    outcome, folder = Outcome(), world.copy(world.undisturbed("eval") / "parts", "damaged_tables")
    read = lambda key: Parts(folder).read(key, folder.parent / "media")
    outcome.expect(all(read(table.name) for table in folder.iterdir()), "whole ones are not read")
    for file, what in hurt(folder, rng, times):
        outcome.times += 1
        outcome.expect(read(file.parent.name) is None, f"{what}: read all the same")
    return outcome


def healed(world: World, rng: random.Random, times: int) -> Outcome:
    """The newest checkpoint is damaged: the same command falls back and ends as undisturbed.  All are: it stops."""
    outcome, want = Outcome(), left_by("train", world.trained)
    for number in range(times):
        out = world.copy(world.trained, f"healed_{number}")
        newest = Run(out).newest().path
        file = rng.choice([path for path in sorted(newest.rglob("*")) if path.is_file() and path.stat().st_size])
        rng.choice(HURTS)(file, rng)
        ended = world.run(world.command("train", out))
        outcome.times += 1
        outcome.expect(ended.code == 0 and "falling back" in ended.text, f"{file.name}: {ended.code}")
        outcome.expect(not (differs := difference(want, left_by("train", out))), f"{file.name}: {differs}")
        shutil.rmtree(out)
    out = world.copy(world.trained, "all_damaged")
    for step in Run(out).steps():
        flipped(Run(out).at(step).path / "clock.json", rng)
    for _ in range(min(times, 2)):
        ended = world.run(world.command("train", out))
        stopped = ended.code == exits.PERMANENT and "every checkpoint in" in ended.text
        outcome.expect(stopped, f"all damaged: exit code {ended.code}")
    return outcome


def verify_checkpoint(folder: Path) -> None:
    Checkpoint(folder).verify()


for name, make, check, short in (
    ("a checkpoint", checkpoint, verify_checkpoint, 400),
    ("released weights", weights, verify_checkpoint, 40),
    ("a token store", store, read_store, 60),
    ("an export", export, read_export, 40),
    ("an evaluation", evaluation, read_evaluation, 40),
):
    register(
        Fault(
            name=f"damage: a file of {name} flipped, cut, zeroed or deleted",
            wanted="found and named",
            do=functools.partial(found, make, check),
            short=short,
            long=10**6,
        )
    )
register(
    Fault(
        name="damage: a finished table of an evaluation flipped, cut, zeroed or deleted",
        wanted="measured again",
        do=measured_again,
        short=40,
        long=10**6,
    )
)
register(
    Fault(
        name="train: its newest checkpoint, then every one, is damaged",
        wanted="falls back and ends as undisturbed; stops with code 74 at every start",
        do=healed,
        short=1,
        long=12,
    )
)
