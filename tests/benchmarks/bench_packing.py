"""Reads the pretraining mixture on one core, beside seqio's packing and grain's first-fit.

    pip install grain          # array_record comes with TFDS; nothing else of this project needs grain
    python tests/benchmarks/bench_packing.py
    python tests/benchmarks/bench_packing.py --soak=10000     # memory over that many batches, instead

A store holds clips of the paper's sizes (17 frames of 128x128 with sound) with drawn codes and captions
of 8 to 64 pieces; the mixture is that of `gin/experiments/pretrain_300m.gin` after its images, a tenth
of the captions hidden.  `poet` alternates between groups of one layout and pads captions alone; the
peers pack rows of any tasks (`loader_peers.py`).  All carry ids, but `poet, T5-XL states`, whose batches
hold 2,048 numbers for each piece of a caption as well.

One run reads about a million tokens that are no padding; seconds are those of exactly a million.
Fill is the share of positions that hold such a token, state what a checkpoint of the position takes,
restore the seconds until a fresh iterator has given the batch that followed: it must be the same.
"""

from __future__ import annotations

import functools
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import bench_loader
import harness
import numpy as np
from loader_peers import Reader, grain_reader, seqio_reader, write_array_record

from poet.spec import Experiment, config
from poet.tasks.resolved import Resolved

TOKENS, RUNS, CLIPS = 1_000_000, 3, 512
BATCH, SOAK_BATCH = 8, 1  # Sequences of the longest group; few, so that many batches cost little.
WIDTHS = {"ids": 8, "states": 2048}  # Numbers of a text state in the two stores.
SAMPLES = 200  # Of the memory, in a soak.


def experiment_of(folder: str, store: str, batch: int = BATCH) -> Experiment:
    """The mixture over a store of `folder`, without networks."""
    run = config.load(["gin/experiments/pretrain_300m.gin"])
    data = run.data.replace(store=f"{folder}/{store}", batch=batch, batch_multiple=1)
    return run.replace(data=data, text=run.text.replace(width=WIDTHS[store]))


def poet_reader(experiment: Experiment) -> Reader:
    """Batches of all groups in the order of the training loop."""
    from poet.data.loader import batches
    from poet.training.schedule import PhasedSchedule

    iterators, table = batches(Resolved(experiment)), Resolved(experiment).groups
    phases = Resolved(experiment).phases
    schedule = PhasedSchedule(phases, experiment.train.seed)
    step = phases[-2][0]  # The last phase begins.
    for iterator in iterators.values():  # A group's pipeline is built with its first batch.
        next(iterator)

    def take() -> tuple[int, int, np.ndarray]:
        nonlocal step
        group = schedule(step)
        batch, layout = next(iterators[group]), table[group][0]
        step += 1
        empty = 0
        if layout.text_span:
            pieces = layout.text_span.stop - layout.text_span.start
            empty = len(batch["tokens"]) * pieces - int(batch["text_length"].sum())
        return batch["tokens"].size - empty, batch["tokens"].size, batch["tokens"]

    def state() -> bytes:
        states = {name: it.get_state().decode() for name, it in iterators.items()}
        return json.dumps({"step": step, "iterators": states}).encode()

    def restore(value: bytes) -> None:
        nonlocal step
        saved = json.loads(value)
        step = saved["step"]
        for name, it in iterators.items():
            it.set_state(saved["iterators"][name].encode())

    return Reader(take, state, restore)


def longest(experiment: Experiment) -> int:

    return max(layout.length for layout in Resolved(experiment).layouts.values())


def seqio_case(rows: int, shuffle: bool, experiment: Experiment) -> Reader:
    return seqio_reader(experiment, rows * longest(experiment), shuffle)


def grain_case(rows: int, experiment: Experiment) -> Reader:
    return grain_reader(experiment, rows * longest(experiment))


# name -> (store, reader of an experiment); rows hold one or two of the longest sequences.
CASES: dict[str, tuple[str, Callable[[Experiment], Reader]]] = {
    "poet": ("ids", poet_reader),
    "poet with T5-XL states": ("states", poet_reader),
    "seqio pack": ("ids", functools.partial(seqio_case, 1, False)),
    "seqio pack twice as long": ("ids", functools.partial(seqio_case, 2, False)),
    "seqio pack shuffled": ("ids", functools.partial(seqio_case, 1, True)),
    "grain first-fit": ("ids", functools.partial(grain_case, 1)),
    "grain first-fit twice as long": ("ids", functools.partial(grain_case, 2)),
}


def measure(name: str, folder: str) -> dict[str, Any]:
    """Seconds per million tokens of each run, with fill, and size and times of the state."""
    store, make = CASES[name]
    experiment = experiment_of(folder, store)
    reader, read = make(experiment), []

    def run() -> None:
        tokens, positions = 0, 0
        while tokens < TOKENS:
            taken, size, _ = reader.take()
            tokens, positions = tokens + taken, positions + size
        read.append((tokens, positions))

    times = harness.timed(run, RUNS)
    tokens, positions = np.array(read).T
    scaled = {key: (np.array(times[key]) * TOKENS / tokens[1:]).tolist() for key in ("wall", "cpu")}
    return {
        **scaled,
        "fill": tokens.sum() / positions.sum(),
        **resumed(reader, make(experiment)),
        "versions": harness.installed(),
    }


def resumed(reader: Reader, fresh: Reader) -> dict[str, Any]:
    """What it takes to save a position and to go on from it elsewhere."""
    begin = time.perf_counter()
    state = reader.state()
    saved_s = time.perf_counter() - begin
    expected = reader.take()[2]
    begin = time.perf_counter()
    fresh.restore(state)
    found = fresh.take()[2]
    return {
        "state_bytes": len(state),
        "save_s": saved_s,
        "restore_s": time.perf_counter() - begin,
        "exact": bool(np.array_equal(expected, found)),
    }


def soak(folder: str, batches: int) -> None:
    """Resident memory of the loader in `batches` batches with T5-XL states, for the table.

    The slope is that of a line through the second half.
    """
    reader, found = poet_reader(experiment_of(folder, "states", SOAK_BATCH)), []
    every = max(1, batches // SAMPLES)

    def run() -> None:
        for number in range(1, batches + 1):
            reader.take()
            if number % every == 0:
                found.append((number, resident_mb()))

    times = harness.timed(run, runs=1, warm=0)
    numbers, sizes = np.array(found[len(found) // 2 :]).T
    slope = float(np.polyfit(numbers, sizes, 1)[0]) * 1000
    checked = (
        f"resident memory: {found[len(found) // 10][1]:.0f} MiB after a tenth, {sizes[0]:.0f} after "
        f"half, {sizes[-1]:.0f} at the end; {slope:+.2f} MiB per 1,000 batches in the second half"
    )
    print(checked)
    results = {"poet with T5-XL states": [{**times, "versions": harness.installed()}]}
    unit = f"{batches:,} small batches of the pretraining mixture"
    harness.save("loader", "soak", results, unit=unit, agreement=checked, megabytes=found)


def resident_mb() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def write_stores(folder: str) -> None:
    for store in WIDTHS:
        path = pathlib.Path(folder) / store
        if not path.exists():
            bench_loader.write(path, experiment_of(folder, store), CLIPS)
    write_array_record(experiment_of(folder, "ids"), pathlib.Path(folder) / "ids")


def compare(flags: Any, folder: str) -> None:
    cases = {
        name: functools.partial(harness.child, sys.executable, __file__, (name, folder), flags.core)
        for name in flags.cases
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(flags.rounds):  # Each takes minutes, so it is kept as soon as it is done.
        for name, results in harness.interleave(cases, 1).items():
            found[name] += results
        exact = [name for name, results in found.items() if all(r["exact"] for r in results)]
        harness.save(
            "loader",
            "mixture",
            found,
            unit=f"{TOKENS:,} tokens of the pretraining mixture",
            agreement=f"exact resumption: {', '.join(exact)}",
        )


if __name__ == "__main__":
    parser = harness.arguments(__doc__, CASES)
    parser.add_argument("--stores", default="", help="folder to keep the stores in for another run")
    parser.add_argument("--soak", type=int, default=0, help="batches to watch the memory over")
    flags = parser.parse_args()
    if flags.case:
        print(json.dumps(measure(*flags.case.split(","))))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = flags.stores or scratch
            write_stores(folder)
            if flags.soak:
                soak(folder, flags.soak)
            else:
                compare(flags, folder)
