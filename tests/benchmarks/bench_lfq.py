"""Times the quantizer's losses, forward and backward, beside LFQ of vector-quantize-pytorch.

    python tests/benchmarks/bench_lfq.py --peer_python=PEER/bin/python
    pytest -m benchmark -s tests/benchmarks/bench_lfq.py            # this project alone

PEER is an environment of its own, so that this project needs no torch:

    python -m venv PEER && PEER/bin/pip install torch vector-quantize-pytorch pytest

One case is the latents of one clip (1,280 tokens, as of 17x128x128 pixels) at one codebook size, in
a process of its own: seconds on the clock (median, and range, after a first call), CPU seconds of
all threads (median; what other programs take does not count) and the growth of the peak resident
memory over that before the first call, when all is loaded and compiled (Linux only).  Both get the
same latents and compute in float32.  The entropies (nats) and the commitment are printed beside
each other: they are to agree but for the peer's 1e-5 inside its logarithms.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # pytest does not.
import harness  # noqa: E402

TOKENS = 1280
BITS = (8, 10, 14, 18)
TEMPERATURE = 0.01
# name -> keyword arguments of `lfq.losses`; the peer has the first mode only.
MODES: dict[str, dict[str, int]] = {"full": {}, "2 groups": {"groups": 2}, "320 tokens": {"samples": 320}}
LIMIT_S = 1800


def latents(bits: int) -> np.ndarray:
    """float32 (TOKENS, bits), about as far from the decision border as trained ones."""
    return np.random.default_rng(bits).normal(size=(TOKENS, bits)).astype(np.float32)


def measure(run: Callable[[], tuple], repeats: int) -> dict[str, Any]:
    """Runs once, then `repeats` times on the clock; `run` blocks and returns the three terms."""
    harness.restart_peak()
    before = harness.peak_mb()
    terms = run()
    times = harness.timed(run, repeats, warm=0)
    return {**times, "peak_mb": harness.peak_mb() - before, "terms": terms}


def poet_case(bits: int, mode: str, repeats: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from poet.tokenizers.video import lfq

    def total(z: jax.Array) -> tuple[jax.Array, tuple]:
        out = lfq.losses(z, temperature=TEMPERATURE, **MODES[mode])
        terms = out.sample_entropy, out.batch_entropy, out.commitment
        straight_through = jnp.sum(lfq.quantize(z)[0])
        return straight_through + 0.1 * out.entropy + 0.25 * out.commitment, terms

    z = jnp.asarray(latents(bits))
    step = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(z).compile()

    def run() -> tuple:
        (_, terms), _ = jax.block_until_ready(step(z))
        return tuple(float(t) for t in terms)

    return measure(run, repeats)


def peer_case(bits: int, mode: str, repeats: int) -> dict[str, Any]:
    import torch
    from vector_quantize_pytorch import LFQ

    weights = {"entropy_loss_weight": 0.1, "commitment_loss_weight": 0.25}
    layer = LFQ(dim=bits, codebook_size=2**bits, **weights).train()
    data = torch.from_numpy(latents(bits))[None]

    def run() -> tuple:
        z = data.clone().requires_grad_()
        (quantized, _, loss), terms = layer(z, inv_temperature=1 / TEMPERATURE, return_loss_breakdown=True)
        (quantized.sum() + loss).backward()
        return float(terms.per_sample_entropy), float(terms.batch_entropy), float(terms.commitment)

    # A tiny call first: what torch sets up once is not the quantizer's.
    tiny = LFQ(dim=2, codebook_size=4, **weights).train()
    tiny(torch.zeros(1, 4, 2, requires_grad=True))[2].backward()
    return measure(run, repeats)


CASES = {"poet": poet_case, "peer": peer_case}


def child(python: str, who: str, bits: int, mode: str, repeats: int) -> dict[str, Any]:
    """One case in a fresh process of this interpreter or another."""
    case = f"{who},{bits},{mode},{repeats}"
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [python, __file__, f"--case={case}"], capture_output=True, text=True, timeout=LIMIT_S, env=env
    )
    if done.returncode:
        raise RuntimeError(f"case {case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def print_row(who: str, bits: int, mode: str, case: dict[str, Any]) -> None:
    seconds = sorted(case["wall"])
    sample, batch, commitment = case["terms"]
    print(
        f"{who:5} 2^{bits:<3} {mode:11} {statistics.median(seconds):10.4f} s "
        f"({seconds[0]:.4f} - {seconds[-1]:.4f}, {len(seconds)} runs)  "
        f"CPU {statistics.median(case['cpu_seconds']):8.4f} s  {case['peak_mb']:8.1f} MB  "
        f"sample {sample:.5f}  batch {batch:.5f}  commitment {commitment:.5f}",
        flush=True,
    )


def compare(peer_python: str, bits: tuple[int, ...] = BITS) -> None:
    """Prints every case; without `peer_python` those of this project alone."""
    print(f"{TOKENS} latents, forward + backward, {os.cpu_count()} CPUs, temperature {TEMPERATURE}")
    for k in bits:
        found = {}
        for mode in MODES:
            found[f"poet, {mode}"] = child(sys.executable, "poet", k, mode, 20)
            print_row("poet", k, mode, found[f"poet, {mode}"])
        if peer_python:
            # One call of the largest takes half a minute.
            repeats = 10 if k < 14 else 5 if k < 18 else 2
            found["vector-quantize-pytorch"] = child(peer_python, "peer", k, "full", repeats)
            print_row("peer", k, "full", found["vector-quantize-pytorch"])
            save(k, found)
    if not peer_python:
        print("No --peer_python was given, so the peer is left out. Make one with:")
        print(__doc__.split("\n\n")[3])


def save(bits: int, found: dict[str, dict[str, Any]]) -> None:
    """One round of each, for the table of README.md."""
    rounds = {who: [{key: value for key, value in case.items() if key != "terms"}] for who, case in found.items()}
    unit = f"LFQ of {TOKENS} tokens at 2^{bits}, forward and backward, all threads"
    harness.save("lfq", f"2_{bits}", rounds, unit=unit, agreement=harness.peaks(rounds))


@pytest.mark.benchmark
def test_lfq_speed() -> None:
    compare("")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", default="", help="interpreter that has the peer")
    parser.add_argument("--bits", type=int, nargs="*", default=list(BITS))
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.case:
        who, bits, mode, repeats = flags.case.split(",")
        print(json.dumps(CASES[who](int(bits), mode, int(repeats))))
    else:
        compare(flags.peer_python, tuple(flags.bits))
