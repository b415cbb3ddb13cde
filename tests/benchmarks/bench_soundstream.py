"""Times encoding and decoding of sound on one core, beside the architectures of DAC and EnCodec.

    python tests/benchmarks/bench_soundstream.py --peer_python=PEER/bin/python
    pytest -m benchmark -s tests/benchmarks/bench_soundstream.py     # this project alone

PEER is an environment of its own, so that this project needs no torch:

    python -m venv PEER && PEER/bin/pip install torch transformers

All have random weights, which cost the same time as trained ones, and code the same sound of mono
16 kHz with 12 codebooks of 1,024 at 50 frames a second: 6 kbit/s.  DAC is its network for 16 kHz;
EnCodec is that for 24 kHz, fed with 16 kHz, its weight normalisation folded away.  One case is one
network in a process that is pinned to one core and has one thread; it encodes and decodes the
sound, in turns, after a first call of each.  The rounds visit all networks in turn, so that what
else the machine does falls on each alike.

Printed: seconds on the clock (median, least and greatest of all rounds) and seconds of sound per
second; the same by CPU time, which what else the machine does does not lengthen; and both medians
divided by those of the first row.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any, Callable

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # pytest does not.
import harness  # noqa: E402

RATE_HZ = 16_000
LEVELS = 12
SECONDS, ROUNDS, RUNS = 5.0, 3, 4
LIMIT_S = 1800
SINGLE_THREAD = {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}
# SoundStream's widths: those of gin/models/soundstream_small.gin, and the paper's.
POET_SPECS = {
    "small": {"encoder_channels": 16, "decoder_channels": 16, "dim": 128},
    "paper": {},
}

# What a case gives: (weights in millions, encode, decode); both block until they are done.
Codec = tuple[float, Callable[[], Any], Callable[[], Any]]


def sound(seconds: float) -> np.ndarray:
    """float32 (S,) in [-1, 1]."""
    samples = round(seconds * RATE_HZ)
    return (0.1 * np.random.default_rng(0).normal(size=samples)).clip(-1, 1).astype(np.float32)


def poet_codec(size: str, wave_S: np.ndarray) -> Codec:
    import jax

    from poet.specs import AudioTokenizerSpec
    from poet.tokenizers.audio.base import AudioTokenizer, random_params

    spec = AudioTokenizerSpec(levels=LEVELS, **POET_SPECS[size])
    params = random_params(spec)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    tokenizer = AudioTokenizer.from_params(spec, params, batch=1)
    ids = tokenizer.encode(wave_S[None])
    return weights, lambda: tokenizer.encode(wave_S[None]), lambda: tokenizer.decode(ids)


def peer_codec(name: str, wave_S: np.ndarray) -> Codec:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if name == "DAC":
        config = transformers.DacConfig(
            downsampling_ratios=[2, 4, 5, 8], n_codebooks=LEVELS, sampling_rate=RATE_HZ
        )
        model = transformers.DacModel(config).eval()
        keywords: Callable[[Any], dict] = lambda codes: {"audio_codes": codes}
    else:
        config = transformers.EncodecConfig(sampling_rate=RATE_HZ, target_bandwidths=[6.0])
        model = transformers.EncodecModel(config).eval()
        for module in model.modules():
            if torch.nn.utils.parametrize.is_parametrized(module, "weight"):
                torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
        keywords = lambda codes: {"audio_codes": codes, "audio_scales": [None]}  # noqa: E731
    values = torch.from_numpy(wave_S)[None, None]

    def encode() -> Any:
        with torch.inference_mode():
            return model.encode(values).audio_codes

    codes = encode()
    if codes.shape[-2:] != (LEVELS, len(wave_S) // 320):
        raise RuntimeError(f"{name} gave codes of shape {tuple(codes.shape)}")

    def decode() -> Any:
        with torch.inference_mode():
            return model.decode(**keywords(codes)).audio_values

    return sum(p.numel() for p in model.parameters()) / 1e6, encode, decode


CASES = {
    "poet small": (poet_codec, "small"), "poet paper": (poet_codec, "paper"),
    "EnCodec": (peer_codec, "EnCodec"), "DAC": (peer_codec, "DAC"),
}
PEERS = ("EnCodec", "DAC")


def pin() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def measure(name: str, seconds: float, runs: int) -> dict[str, Any]:
    """Seconds of each run of both steps; {'weights_m', 'encode': {'clock', 'cpu'}, 'decode': ...}."""
    make, argument = CASES[name]
    weights_m, *steps = make(argument, sound(seconds))
    found: dict[str, Any] = {"weights_m": weights_m}
    found |= {step: {"clock": [], "cpu": []} for step in ("encode", "decode")}
    for run in range(runs + 1):
        for step, call in zip(("encode", "decode"), steps):
            start, cpu_start = time.perf_counter(), time.process_time()
            call()
            clock, cpu = time.perf_counter() - start, time.process_time() - cpu_start
            if run:
                found[step]["clock"].append(clock)
                found[step]["cpu"].append(cpu)
    return found


def child(python: str, name: str, seconds: float, runs: int) -> dict[str, Any]:
    """One case in a fresh process of this interpreter or another."""
    done = subprocess.run(
        [python, __file__, f"--case={name}", f"--seconds={seconds}", f"--runs={runs}"],
        capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, **SINGLE_THREAD},
    )
    if done.returncode:
        raise RuntimeError(f"case {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    peer_python: str, seconds: float = SECONDS, rounds: int = ROUNDS, runs: int = RUNS
) -> None:
    """Prints every case; without `peer_python` those of this project alone."""
    names = [name for name in CASES if peer_python or name not in PEERS]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            python = peer_python if name in PEERS else sys.executable
            found[name].append(child(python, name, seconds, runs))
    print(f"{seconds:g} s of sound at {RATE_HZ} Hz, {LEVELS} levels at 50 Hz, one core, "
          f"{rounds} rounds of {runs} runs, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    for step in ("encode", "decode"):
        first = medians(step, found[names[0]])
        for name in names:
            print_row(step, name, found[name], seconds, first)
        if peer_python:
            save(step, found, seconds)
    if not peer_python:
        print("No --peer_python was given, so the peers are left out. Make one with:")
        print(__doc__.split("\n\n")[3])


def save(step: str, found: dict[str, list[dict[str, Any]]], seconds: float) -> None:
    """For the table of README.md."""
    rounds = {
        name: [{"wall": case[step]["clock"], "cpu": case[step]["cpu"]} for case in cases]
        for name, cases in found.items()
    }
    weights = ", ".join(f"{name} {cases[0]['weights_m']:.1f} M" for name, cases in found.items())
    unit = f"sound: {step} {seconds:g} s"
    harness.save("soundstream", step, rounds, unit=unit, agreement=f"parameters: {weights}")


def medians(step: str, cases: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds on the clock and of the CPU, over all rounds."""
    clock, cpu = (
        statistics.median(value for case in cases for value in case[step][key])
        for key in ("clock", "cpu")
    )
    return clock, cpu


def print_row(
    step: str, name: str, cases: list[dict[str, Any]], seconds: float, first: tuple[float, float]
) -> None:
    clock, cpu = medians(step, cases)
    every = [value for case in cases for value in case[step]["clock"]]
    print(
        f"{step} {name:10} {cases[0]['weights_m']:5.1f} M weights  {clock:8.4f} s "
        f"({min(every):.4f} - {max(every):.4f})  {seconds / clock:6.1f} x real time  "
        f"CPU {cpu:7.4f} s {seconds / cpu:6.1f} x  "
        f"ratio {clock / first[0]:6.2f}, by CPU {cpu / first[1]:6.2f}",
        flush=True,
    )


@pytest.mark.benchmark
def test_soundstream_speed() -> None:
    compare("")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", default="", help="interpreter that has the peers")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of sound")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--runs", type=int, default=RUNS, help="of each round, after a first one")
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.case:
        pin()
        print(json.dumps(measure(flags.case, flags.seconds, flags.runs)))
    else:
        compare(flags.peer_python, flags.seconds, flags.rounds, flags.runs)
