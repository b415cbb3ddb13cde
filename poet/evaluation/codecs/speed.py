"""How fast an audio tokenizer is on one core, measured in a process of its own.

A process that has begun to compute cannot be held to one core: XLA makes its threads once.  The
child is pinned before it loads anything heavy.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from poet.media.sound_streams import decode_opus, encode_opus
from poet.tokenizers.audio.base import AudioTokenizer

RUNS = 15
LIMIT_S = 1800
# One thread for XLA and for what NumPy calls, beside the pinning.
SINGLE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def measure(
    tokenizer: AudioTokenizer, samples: int, levels: Sequence[int], bit_rates: Sequence[int] = (), runs: int = RUNS
) -> dict[str, Any]:
    """Real-time factors on one core: seconds of sound per second on the clock, one sound at a time.

    Returns what the JSON holds: 'seconds' of sound, 'runs', 'core', and 'tokenizer' and 'opus',
    each level or bit rate (as text) -> {'encode': F, 'decode': F}, where F has the 'median', the
    'least' and the 'greatest' factor of the runs after a first one, and 'cpu_median', by the CPU
    time of the process, which other programs on the core do not lengthen.

    Raises:
      RuntimeError: the process that measures failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        task = {
            "folder": folder,
            "samples": samples,
            "levels": list(levels),
            "bit_rates": list(bit_rates),
            "runs": runs,
        }
        done = subprocess.run(
            [sys.executable, "-m", "poet.evaluation.codecs.speed", json.dumps(task)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env={**os.environ, **SINGLE_THREAD},
            cwd=pathlib.Path(__file__).parents[3],
        )
    if done.returncode:
        raise RuntimeError(f"the speed could not be measured:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def pin() -> int | None:
    """Holds this process to the first core it may use; None where a system cannot do that."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def factors(run: Callable[[], Any], seconds: float, runs: int) -> dict[str, float]:
    """Seconds of sound per second on the clock, and per CPU second, of runs after a first one."""
    run()
    found, cpu = [], []
    for _ in range(runs):
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        found.append(seconds / (time.perf_counter() - start))
        cpu.append(seconds / (time.process_time() - cpu_start))
    return {
        "median": statistics.median(found),
        "least": min(found),
        "greatest": max(found),
        "cpu_median": statistics.median(cpu),
    }


def _child(task: dict[str, Any]) -> dict[str, Any]:
    core = pin()
    tokenizer = AudioTokenizer.load(task["folder"], batch=1)
    samples, runs = task["samples"], task["runs"]
    rate_hz = tokenizer.spec.sample_rate_hz
    seconds = samples / rate_hz
    sound_1xS = np.random.default_rng(0).integers(-3000, 3000, (1, samples)).astype(np.int16)
    result: dict[str, Any] = {"seconds": seconds, "runs": runs, "core": core, "tokenizer": {}, "opus": {}}
    for count in task["levels"]:
        ids = tokenizer.encode(sound_1xS, levels=count)
        result["tokenizer"][str(count)] = {
            "encode": factors(lambda: tokenizer.encode(sound_1xS, levels=count), seconds, runs),
            "decode": factors(lambda: tokenizer.decode(ids, samples), seconds, runs),
        }
    for bit_rate in task["bit_rates"]:
        stream = encode_opus(sound_1xS[0], rate_hz, bit_rate)
        result["opus"][str(bit_rate)] = {
            "encode": factors(lambda: encode_opus(sound_1xS[0], rate_hz, bit_rate), seconds, runs),
            "decode": factors(lambda: decode_opus(stream, samples), seconds, runs),
        }
    return result


if __name__ == "__main__":
    print(json.dumps(_child(json.loads(sys.argv[1]))))
