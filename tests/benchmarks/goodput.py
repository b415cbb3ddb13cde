"""Goodput of a job of 1,000 hosts that fails every three hours: the page poet/planning/reliability.md.

    python tests/benchmarks/goodput.py --measure=WORKDIR     # restart and snapshot times of a run -> results_goodput.json
    python tests/benchmarks/goodput.py --page                # the page, from these and from what is supposed

WORKDIR is a run with CHECKPOINT.local that was killed and started again at least once; its timeline has the times.
The simulation is that of `poet.planning.reliability`; its seed is fixed, so that the page is repeated bit by bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
from typing import Any

from poet.planning import reliability
from poet.planning.reliability import Job
from poet.runs import timeline
from poet.spec import read_object

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results_goodput.json"
PAGE = HERE.parent.parent / "poet/planning/reliability.md"
HOSTS, FAILURE_H, DAYS, AIM = 1000, 3.0, 200.0, 0.98
INTERVALS_S, RESTARTS_S, PROCESSES = (3600, 1000, 300, 60), (600, 180, 60), (0.0, 0.5, 0.9)
# Supposed of a machine with accelerators: seconds of a step; seconds that a save holds training up, and takes.
STEP_S, BLOCKED_S, SAVE_S = 2.0, 0.5, 30.0
# 1 % of ten steps.
LOCAL_S, LOCAL_BLOCKED_S = 10 * STEP_S, 0.2


def measure(workdir: pathlib.Path) -> dict[str, Any]:
    """Medians over the restarts of a run, and what a snapshot costs of its steps."""
    lines = list(timeline.read(workdir / timeline.FILE))
    starts = [line for line in lines if line["event"] == timeline.START]
    restarts = starts[1:]
    if not restarts:
        raise SystemExit(f"{workdir} was never started again")
    steps = [(a, b) for a, b in itertools.pairwise(lines) if b["event"] == timeline.PROGRESS]
    every = read_object(workdir / "spec.json")["checkpoint"]["local_every"]
    stretches = [(b["step"] - a["step"], b["elapsed_s"] - a["elapsed_s"], b.get("save_s", 0.0)) for a, b in steps]
    count, seconds, held = (sum(column) for column in zip(*stretches))
    return {
        "restart_s": sorted(line["elapsed_s"] for line in restarts)[len(restarts) // 2],
        "of_it_compile_s": restarts[-1].get("compile_s", 0.0),
        "of_it_restore_s": restarts[-1].get("restore_s", 0.0),
        "step_s": (seconds - held) / count,
        "local_every": every,
        "local_blocked_s": held / (count / every),
        "local_share": held / seconds,
        "steps": count,
    }


def goodput(**fields: float) -> float:
    job = Job(failure_s=FAILURE_H * 3600, step_s=STEP_S, save_blocked_s=BLOCKED_S, save_s=SAVE_S, **fields)
    return reliability.simulate(job, DAYS)["steps"]


def cell(share: float) -> str:
    """Bold where it reaches the aim."""
    mark = "**" * (share >= AIM)
    return f"{mark}{100 * share:.1f} %{mark}"


def table() -> str:
    head = "| checkpoint every | " + " | ".join(f"restart {s} s" for s in RESTARTS_S) + " |"
    rows = [head, "|---" * (len(RESTARTS_S) + 1) + "|"]
    for interval in INTERVALS_S:
        found = [goodput(save_every_s=interval, restart_s=restart) for restart in RESTARTS_S]
        rows.append(f"| {interval} s | " + " | ".join(map(cell, found)) + " |")
    return "\n".join(rows)


def local_table() -> str:
    head = "| failures that leave the memory | " + " | ".join(f"restart {s} s" for s in RESTARTS_S) + " |"
    rows = [head, "|---" * (len(RESTARTS_S) + 1) + "|"]
    for share in PROCESSES:
        local = {"local_every_s": LOCAL_S, "local_blocked_s": LOCAL_BLOCKED_S, "process_failures": share}
        found = [goodput(save_every_s=1000, restart_s=restart, **local) for restart in RESTARTS_S]
        rows.append(f"| {100 * share:.0f} % | " + " | ".join(map(cell, found)) + " |")
    return "\n".join(rows)


def page(measured: dict[str, Any]) -> str:
    restart, step, share = measured["restart_s"], measured["step_s"], 100 * measured["local_share"]
    job = Job(
        failure_s=FAILURE_H * 3600,
        step_s=step,
        save_every_s=1000 * step,
        save_blocked_s=BLOCKED_S,
        save_s=SAVE_S,
        restart_s=restart,
        local_every_s=measured["local_every"] * step,
        local_blocked_s=measured["local_blocked_s"],
        process_failures=1.0,
    )
    return f"""# What failures cost a large job

Made by `python tests/benchmarks/goodput.py --page`. {HOSTS:,} hosts that fail once in {HOSTS * FAILURE_H / 24:.0f} days each are a job that fails every {FAILURE_H:.0f} hours.
`poet.planning.reliability` simulates {DAYS:.0f} days of it, failure by failure. Supposed: a save holds training up for {BLOCKED_S:g} s and is whole after {SAVE_S:.0f} s; a step takes {STEP_S:g} s.
No job of that size has run. Bold: at least {100 * AIM:.0f} %.

Goodput with checkpoints alone:

{table()}

With local snapshots (`CHECKPOINT.local`) every {LOCAL_S:.0f} s that hold training up for {LOCAL_BLOCKED_S:g} s, and a checkpoint every 1000 s. They survive the death of a process (a crash, a hang, a bad batch), not that of a machine:

{local_table()}

The time of a restart weighs as much as the interval: with both kept short, what is left is what the lost machines take along. `reliability.best_interval_s` gives the interval of checkpoints that loses the least.

## Measured

On two CPU cores that other jobs kept busy, the language model of `gin/experiments/arenas_small.gin`, {measured["steps"]} steps of {step:.2f} s, killed and started again:

- A restart took {restart:.1f} s from the start of training's work to the first step ({measured["of_it_compile_s"]:.1f} s of it compilation from the cache, {measured["of_it_restore_s"]:.1f} s reading the snapshot).
- A snapshot every {measured["local_every"]} steps held training up for {measured["local_blocked_s"]:.3f} s, {share:.2f} % of the time.
- A job with these times, a failure every {FAILURE_H:.0f} hours that leaves the memory, and a checkpoint every 1,000 steps: {100 * reliability.simulate(job, DAYS)["steps"]:.1f} % goodput in the simulation.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=pathlib.Path)
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    if args.measure:
        RESULTS.write_text(json.dumps(measure(args.measure), indent=1) + "\n")
    if args.page:
        PAGE.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
