"""Runs everything of this folder, one process after the other, and says which bars are met.

    python tests/gpu/run_all.py --out=results/h100
    python tests/gpu/run_all.py --out=results/h100 --sweep=1b       # what to tune, instead

Each run leaves OUT/NAME.json and OUT/NAME.log; a run that fails or takes longer than `--limit_s` is
named at the end and does not keep the others from running.  OUT/summary.json holds the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

HERE = pathlib.Path(__file__).parent
# name -> arguments; the script is the part of the name before the first dot.
RUNS: Mapping[str, Sequence[str]] = {
    "kernels": (),
    "train_step.300m": ("--size=300m", "--batch=16", "--profile={out}/trace_300m"),
    "train_step.300m_all": ("--size=300m", "--batch=8", "--steps=5", "--groups"),
    "train_step.1b": ("--size=1b", "--batch=8", "--profile={out}/trace_1b"),
    "train_step.8b_slice": ("--size=8b_slice", "--batch=4", "--profile={out}/trace_8b"),
    "train_step.8b_slice_2": ("--size=8b_slice", "--batch=4", "--layers=2"),
    "decode.300m": ("--size=300m", "--steps=3"),
    "decode.1b": ("--size=1b", "--steps=3"),
    "decode.1b_guided": ("--size=1b", "--steps=3", "--guidance=2"),
    "tokenizer_fps.float32": ("--batch=8",),
    "tokenizer_fps.bfloat16": ("--batch=8", "--dtype=bfloat16"),
}
TOY = ("--size=tiny", "--batch=2", "--steps=2")
SWEEP = {
    "attention": ("auto", "xla"),
    "remat": ("dots", "full"),
    "batch": ("4", "8", "16"),
    "xla_flags": ("", "--xla_gpu_enable_latency_hiding_scheduler=true"),
}
# What a result must reach: (run, what it is called, how it is read, bar).
BARS: Sequence[tuple[str, str, Callable[[dict[str, Any]], float], float]] = (
    ("kernels", "kernels equal the oracle", lambda r: float(r["passes"]), 1.0),
    ("train_step.1b", "MFU of 1b", lambda r: r["groups"][0]["mfu"] or 0.0, 0.45),
    ("train_step.8b_slice", "MFU of an 8b slice", lambda r: r["groups"][0]["mfu"] or 0.0, 0.50),
    ("decode.1b", "share of memory rate, decoding 1b", lambda r: r["fraction_of_memory"], 0.60),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--only", nargs="*", default=[], help="runs; none: all")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see on a CPU that all of it works")
    parser.add_argument("--sweep", default="", help="a size whose step is measured in every combination")
    parser.add_argument("--limit_s", type=float, default=1200)
    flags = parser.parse_args(argv)
    runs = sweep(flags.sweep) if flags.sweep else RUNS
    runs = {name: runs[name] for name in flags.only or runs}
    out = pathlib.Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    failed = [name for name, given in runs.items() if not run(name, given, out, flags)]
    print(summary(out, runs, bars=not flags.tiny and not flags.sweep))
    print("failed: " + (", ".join(failed) or "none"))
    return 1 if failed else 0


def run(name: str, given: Sequence[str], out: pathlib.Path, flags: argparse.Namespace) -> bool:
    """Whether a script ended well within its time."""
    arguments = [a.format(out=out) for a in given] + [*(TOY if flags.tiny else ())]
    command = [sys.executable, str(HERE / f"{name.partition('.')[0]}.py"), *arguments]
    with (out / f"{name}.log").open("w") as log:
        try:
            done = subprocess.run(
                [*command, f"--out={out}", f"--name={name}"], stdout=log, stderr=log, timeout=flags.limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return False
    print(f"{name}: {'done' if done.returncode == 0 else f'exit {done.returncode}'}", flush=True)
    return done.returncode == 0


def sweep(size: str) -> dict[str, Sequence[str]]:
    """A run of the train step for every combination of SWEEP."""
    runs = {}
    for number, values in enumerate(itertools.product(*SWEEP.values())):
        chosen = [f"--{flag}={value}" for flag, value in zip(SWEEP, values) if value]
        runs[f"train_step.{size}_{number:02d}"] = (f"--size={size}", "--steps=10", *chosen)
    return runs


def summary(out: pathlib.Path, runs: Mapping[str, Sequence[str]], bars: bool) -> str:
    """A line for each train step, the fastest first, then one for each bar; also as summary.json."""
    found = {n: json.loads((out / f"{n}.json").read_text()) for n in runs if (out / f"{n}.json").exists()}
    steps = [
        (row["fraction_of_matmul"], row["mfu"], name, row["group"], " ".join(runs[name]))
        for name, result in found.items()
        if "groups" in result
        for row in result["groups"]
    ]
    lines = [
        f"{name} {group}: {100 * share:.1f} % of the measured products"
        + (f", MFU {100 * mfu:.1f} %" if mfu else "")
        + f"  ({given})"
        for share, mfu, name, group, given in sorted(steps, key=lambda step: -step[0])
    ]
    reached = [
        {"what": what, "value": read(found[name]), "bar": bar, "met": read(found[name]) >= bar}
        for name, what, read, bar in BARS
        if bars and name in found
    ]
    lines += [f"{r['what']}: {r['value']:.3f}, bar {r['bar']}: {'met' if r['met'] else 'MISSED'}" for r in reached]
    (out / "summary.json").write_text(json.dumps({"lines": lines, "bars": reached}, indent=1) + "\n")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
