"""Times compiling a train step, cold and warm, beside torch.compile; on one core.

    python tests/benchmarks/bench_compile.py --peer_python=PEER/bin/python [--cases 7m 59m]

PEER is made as for bench_train_step.py.  Seconds from nothing compiled to the end of the first step,
less a later step; tracing counts, loading the packages and drawing weights does not.  `cold` starts
with an empty compile cache of its own, `warm` is another process with the cache that this one left:
JAX's persistent cache, and torch's Inductor and FX graph caches.  CPU seconds count the C++ compiler
that Inductor starts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

import bench_train_step
import harness

SHAPES = {"7m": "7 M", "59m": "59 M"}  # of bench_train_step.py


def poet_case(shape: str, folder: str) -> dict[str, Any]:
    import jax

    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    bench_train_step.CASES[shape]["runs"] = 1
    return bench_train_step.poet_case(shape, folder, export=False)


def peer_case(shape: str, folder: str) -> dict[str, Any]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "cache")
    # One core compiles: workers would only share it, and hide their CPU seconds.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    bench_train_step.CASES[shape]["runs"] = 1
    return bench_train_step.peer_case("qwen3 compiled", shape, folder)


def measured(python: str, who: str, shape: str, folder: str, core: int) -> dict[str, Any]:
    """Seconds of compilation in the place of those of a run."""
    result = harness.child(python, __file__, (who, shape, folder), core)
    seconds = result["compile_s"]
    return {"wall": [seconds], "cpu": [result["compile_cpu_s"]], "versions": result["versions"]}


def compare(flags: Any, shape: str) -> None:
    pythons = {"poet": sys.executable}
    if flags.peer_python:
        pythons["qwen3 compiled"] = flags.peer_python
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"cold": {}, "warm": {}}
    for _ in range(flags.rounds):
        for who, python in pythons.items():
            with tempfile.TemporaryDirectory() as folder:
                if who != "poet":
                    harness.child(sys.executable, bench_train_step.__file__, ("export", shape, folder), flags.core)
                for what in found:
                    result = measured(python, who, shape, folder, flags.core)
                    found[what].setdefault(who, []).append(result)
                    print(f"{who} {what}: {result['wall'][0]:.1f} s", flush=True)
    for what, results in found.items():
        unit = f"compiling the {SHAPES[shape]} train step, {what}"
        harness.save("compile", f"{what}_{shape}", results, unit=unit)


CASES = {"poet": poet_case, "qwen3 compiled": peer_case}

if __name__ == "__main__":
    flags = harness.arguments(__doc__, SHAPES).parse_args()
    if flags.case:
        who, shape, folder = flags.case.split(",")
        print(json.dumps(CASES[who](shape, folder)))
    else:
        for shape in flags.cases:
            compare(flags, shape)
