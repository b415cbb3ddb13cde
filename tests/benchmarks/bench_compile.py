"""Times compiling the 59 M train step, cold and warm, beside torch.compile; on one core.

    python tests/benchmarks/bench_compile.py --peer_python=PEER/bin/python

PEER is made as for bench_train_step.py.  Seconds from nothing compiled to the end of the first step,
less a later step; tracing counts, loading the packages and drawing weights does not.  `cold` starts
with an empty compile cache of its own, `warm` is another process with the cache that this one left:
JAX's persistent cache, and torch's Inductor and FX graph caches.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from typing import Any

import bench_train_step
import harness

SHAPE = "59m"


def poet_case(folder: str) -> dict[str, Any]:
    import jax

    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    bench_train_step.CASES[SHAPE]["runs"] = 1
    return bench_train_step.poet_case(SHAPE, folder, export=False)


def peer_case(folder: str) -> dict[str, Any]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "cache")
    bench_train_step.CASES[SHAPE]["runs"] = 1
    return bench_train_step.peer_case("qwen3 compiled", SHAPE, folder)


def measured(python: str, who: str, folder: str, core: int) -> dict[str, Any]:
    """Seconds of compilation in the place of those of a run."""
    result = harness.child(python, __file__, (who, folder), core)
    seconds = result["compile_s"]
    return {"wall": [seconds], "cpu": [result["compile_cpu_s"]], "versions": result["versions"]}


def compare(flags: Any) -> None:
    pythons = {"poet": sys.executable}
    if flags.peer_python:
        pythons["qwen3 compiled"] = flags.peer_python
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"cold": {}, "warm": {}}
    for _ in range(flags.rounds):
        for who, python in pythons.items():
            with tempfile.TemporaryDirectory() as folder:
                if who != "poet":
                    bench_train_step_export(folder, flags.core)
                for what in found:
                    result = measured(python, who, folder, flags.core)
                    found[what].setdefault(who, []).append(result)
                    print(f"{who} {what}: {result['wall'][0]:.1f} s", flush=True)
    for what, results in found.items():
        harness.save("compile", what, results, unit=f"compiling the 59 M train step, {what}")


def bench_train_step_export(folder: str, core: int) -> None:
    """What the peer's case reads: weights and batch of the same shape."""
    harness.child(sys.executable, bench_train_step.__file__, ("export", SHAPE, folder), core)


CASES = {"poet": poet_case, "qwen3 compiled": peer_case}

if __name__ == "__main__":
    flags = harness.arguments(__doc__, ()).parse_args()
    if not flags.case:
        compare(flags)
    else:
        who, folder = flags.case.split(",")
        print(json.dumps(CASES[who](folder)))
