r"""What a service gains from making jobs together: the same jobs by `poet serve --batch=1` and by larger batches.

    python tests/benchmarks/bench_service.py --checkpoint=data/pretrained/lm_arenas --jobs=8 --batch=1 --batch=8 --rounds=3
    python tests/benchmarks/bench_service.py --checkpoint=data/pretrained/lm_arenas --width=512 --layers=8 --rounds=1 \
        --no_previews

For each size of the batch a service is started, one job compiles its programs, and then all jobs are sent at once, in
each round.  `--width` and `--layers` take random weights of that size in the place of the checkpoint's: a model that is
larger than the processor's caches, of which a step of one sample reads as much as a step of eight.  The columns: seconds
until the last job is done, CPU seconds of the service's processes, the mean seconds of a job, the part of a job after
which its first frame is there, how much larger the throughput is than at the first size (the median of the rounds; least
and greatest), and for comparison CPU seconds in which the model by itself samples as many clips in such batches: what
the service's throughput could gain at the most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from poet.client import Client

TICKS = os.sysconf("SC_CLK_TCK")


class Round(NamedTuple):
    """One round: all jobs, sent at once."""

    seconds: float
    cpu_s: float
    latency_s: float
    first: float


def cpu_seconds(process: int) -> float:
    """CPU seconds of a process and of those that it started and that still run."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / TICKS
    children = Path(f"/proc/{process}/task").glob("*/children")
    return own + sum(cpu_seconds(int(child)) for file in children for child in file.read_text().split())


def widened(checkpoint: str, width: int, layers: int, folder: Path) -> str:
    """A folder with random weights of another size, and all else as in the checkpoint."""
    import jax

    from poet.checkpoints import weights
    from poet.models.transformer import build_model
    from poet.runs.run import Run
    from poet.tasks.resolved import Resolved

    found = Run.open(checkpoint).checkpoint
    model = found.spec.model.replace(width=width, heads=width // 64, kv_heads=width // 64, head_dim=64)
    model = model.replace(layers=layers or model.layers, mlp_width=4 * width, condition_encoder=0)
    spec = found.spec.replace(model=model)
    params = build_model(Resolved(spec)).init(jax.random.key(0))
    return str(weights.save(folder / "wide", spec, params, "float32", 0, found.networks))


def serve(checkpoint: str, batch: int, store: Path, *flags: str) -> tuple[subprocess.Popen, str]:
    """A service, and its address."""
    words = ["serve", f"--checkpoint={checkpoint}", f"--store={store}", "--port=0", f"--batch={batch}", *flags]
    log = (store.parent / "log").open("w")
    started = subprocess.Popen(
        [sys.executable, "-m", "poet.cli", *words], stdout=subprocess.PIPE, stderr=log, text=True
    )
    url = started.stdout.readline().strip()
    while url and not Client(url).ready:
        time.sleep(0.2)
    if not url:
        raise SystemExit(f"the service ended with code {started.wait()}")
    return started, url


def alone_s(checkpoint: str, task: str, batch: int, jobs: int, rounds: int) -> float:
    """CPU seconds in which the model samples the tokens of all jobs, without text encoder, frames and files."""
    import numpy as np

    from poet.runs.run import Run
    from poet.sampling.generate import Generator
    from poet.sampling.plans import Text

    generator = Generator.from_checkpoint(Run.open(checkpoint))
    spec = generator.resolved.spec
    states = np.random.default_rng(0).normal(size=(jobs, spec.text.length, spec.text.width)).astype(np.float32)
    text, found = Text(states, np.full(jobs, spec.text.length // 2, np.int32)), []
    for _ in range(1 + rounds):
        began = time.process_time()
        generator.tokens(task, jobs, text=text, sample=spec.sample.replace(block=batch))
        found.append(time.process_time() - began)
    return statistics.median(found[1:])


def measured(client: Client, process: int, task: str, jobs: int, number: int) -> Round:
    """One round of jobs."""
    began, cpu = time.monotonic(), cpu_seconds(process)
    ids = [client.submit(task, prompt="the player walks forward", seed=1000 * number + n).id for n in range(jobs)]
    waits, firsts = [], []
    for name in ids:
        seen: list[float] = []
        client.wait(name, on_progress=lambda job: seen.append(time.monotonic()) if job.latents else None)
        waits.append(time.monotonic() - began)
        firsts.append((seen[0] - began) / waits[-1] if seen else 1.0)
    return Round(waits[-1], cpu_seconds(process) - cpu, statistics.mean(waits), firsts[0])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--batch", type=int, action="append", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--task", default="text_to_video")
    parser.add_argument("--no_previews", action="store_true")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        size = args.width, args.layers
        checkpoint = widened(args.checkpoint, *size, Path(folder)) if args.width else args.checkpoint
        found = _measure(args, checkpoint)
        _table(found, [alone_s(checkpoint, args.task, batch, args.jobs, args.rounds) for batch in found])


def _measure(args: argparse.Namespace, checkpoint: str) -> dict[int, list[Round]]:
    """Size of the batch -> its rounds."""
    found: dict[int, list[Round]] = {}
    for batch in args.batch or (1, args.jobs):
        with tempfile.TemporaryDirectory() as folder:
            service, url = serve(checkpoint, batch, Path(folder) / "store", *["--no_previews"] * args.no_previews)
            try:
                client = Client(url)
                client.wait(client.submit(args.task, prompt="a door", seed=0))
                rounds = range(1, args.rounds + 1)
                found[batch] = [measured(client, service.pid, args.task, args.jobs, n) for n in rounds]
            finally:
                service.terminate()
                service.wait()
    return found


def _table(found: dict[int, list[Round]], alone: Sequence[float]) -> None:
    first = next(iter(found.values()))
    print(
        "| batch | seconds | CPU s | s a job | first frame | throughput by clock | by CPU | the model alone, CPU s | "
        "its throughput |\n|---|---|---|---|---|---|---|---|---|"
    )
    for (batch, rounds), alone_cpu_s in zip(found.items(), alone):
        middle = [statistics.median(values) for values in zip(*rounds)]
        gains = [
            _ratio([getattr(r, name) for r in first], [getattr(r, name) for r in rounds])
            for name in ("seconds", "cpu_s")
        ]
        print(
            f"| {batch} | {middle[0]:.2f} | {middle[1]:.2f} | {middle[2]:.2f} | {middle[3]:.0%} | {' | '.join(gains)} "
            f"| {alone_cpu_s:.2f} | {alone[0] / alone_cpu_s:.2f} |"
        )


def _ratio(before: Sequence[float], after: Sequence[float]) -> str:
    ratios = [b / a for b, a in zip(before, after)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"


if __name__ == "__main__":
    main()
