"""How the benchmarks beside other packages run their cases, and what they write.

A case runs in a process of its own, pinned to one core, with one thread.  Rounds visit all cases in
turn (A B A B ...), so that what else the machine does falls on each alike; a ratio is one of two
cases of the same round.  Needs numpy alone: the peers' interpreter imports it as well.

Results are JSON files in `results/`, from which `table.py` makes the table of README.md.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
ROUNDS = 3
LIMIT_S = 1800
SINGLE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
}
PACKAGES = (
    "jax",
    "jaxlib",
    "orbax-checkpoint",
    "torch",
    "transformers",
    "magvit2-pytorch",
    "vector-quantize-pytorch",
    "tensorflow",
    "seqio",
    "grain",
)

# {"wall": seconds of each run, "cpu": CPU seconds of each run, ...}
Times = dict[str, Any]


def timed(call: Callable[[], Any], runs: int, warm: int = 1) -> Times:
    """Runs `call`, which blocks until it is done, `warm` times off the clock, then `runs` on it."""
    for _ in range(warm):
        call()
    wall, cpu = [], []
    for _ in range(runs):
        start, cpu_start = time.perf_counter(), cpu_s()
        call()
        wall.append(time.perf_counter() - start)
        cpu.append(cpu_s() - cpu_start)
    return {"wall": wall, "cpu": cpu}


def cpu_s() -> float:
    """CPU seconds of this process and of those that it started and that have ended (compilers)."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def restart_peak() -> None:
    """Gives freed memory back to the system and lets the peak of resident memory start anew (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    # 5 resets the high-water mark: proc(5), /proc/pid/clear_refs.
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """MiB of resident memory at their most since the process began, or since `restart_peak`."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def peak_of(call: Callable[[], Any]) -> float:
    """MiB that are resident at most while `call` runs once: what it uses, and all that is loaded."""
    restart_peak()
    call()
    return peak_mb()


def peaks(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The `peak_mb` of each competitor, the least of its rounds, for the table."""
    least = {who: min(r["peak_mb"] for r in rounds) for who, rounds in found.items()}
    return "peak memory: " + ", ".join(f"{who} {mib:,.0f} MiB" for who, mib in least.items())


def child(python: str, script: str, case: Sequence[str], core: int) -> dict[str, Any]:
    """What `script` prints last, as JSON, for `--case`, in a fresh process on one core."""

    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})

    # The path is the interpreter's own: what this process finds there may suit this one alone.
    keep = (
        os.environ
        if python == sys.executable
        else {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    )
    peer_path = os.environ.get("PEER_PYTHONPATH", "")
    extra = {"PYTHONPATH": peer_path} if peer_path and python != sys.executable else {}
    done = subprocess.run(
        [python, script, f"--case={','.join(case)}"],
        preexec_fn=pin,
        timeout=LIMIT_S,
        capture_output=True,
        text=True,
        env={**keep, **extra, **SINGLE_THREAD},
    )
    if done.returncode:
        raise RuntimeError(f"case {case} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def interleave(cases: Mapping[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every case once a round -> the results of each, by round; says how far it is."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for number in range(rounds):
        for name, run in cases.items():
            found[name].append(run())
            shown = " ".join(f"{value:.4g}" for value in found[name][-1]["wall"][:6])
            print(f"round {number + 1}/{rounds}  {name}: {shown} s", flush=True)
    return found


def save(benchmark: str, case: str, found: Mapping[str, list[dict[str, Any]]], **notes: Any) -> None:
    """Writes the rounds of one case as results/<benchmark>.<case>.json.

    Args:
      found: of each competitor the results by round; the first is this project's, to which the
        others are compared.
      notes: what else the table is to show, among them `unit`, what one run does.
    """
    RESULTS.mkdir(exist_ok=True)
    script = f"python tests/benchmarks/{pathlib.Path(sys.argv[0]).name}"
    value = {
        "benchmark": benchmark,
        "case": case,
        "command": " ".join([script, *shown(sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {processor()}, {platform.system()}",
        "load": os.getloadavg()[0],
        "versions": versions([v for results in found.values() for v in results]),
        **notes,
        "rounds": {name: [strip(result) for result in results] for name, results in found.items()},
    }
    path = RESULTS / f"{benchmark}.{case}.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(f"wrote {path}", flush=True)


def shown(arguments: Sequence[str]) -> list[str]:
    """Arguments as typed in a shell, without the paths of this machine."""
    paths = {"--peer_python": "PEER/bin/python", "--stores": "STORES"}
    named = (a.partition("=") for a in arguments)
    return [
        f"{flag}={paths[flag]}" if flag in paths else shlex.quote(flag + equals + value)
        for flag, equals, value in named
    ]


def strip(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "versions"}


def versions(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for result in results:
        merged |= result.get("versions", {})
    return merged


def installed() -> dict[str, str]:
    """Versions of what the competitors are made of, in this interpreter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((s.split(":")[1].strip() for s in text.splitlines() if s.startswith("model name")), "")


def arguments(doc: str, cases: Sequence[str]) -> argparse.ArgumentParser:
    """The flags that all of these scripts take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--peer_python", default="", help="interpreter that has the peer")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--core", type=int, default=(os.cpu_count() or 1) - 1)
    parser.add_argument("--cases", nargs="*", default=list(cases), choices=list(cases))
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    return parser
