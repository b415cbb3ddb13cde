"""Measures the real train step of a size on one device, against the device's own matrix products.

    python tests/gpu/train_step.py --size=1b --batch=8 --attention=auto --remat=full --profile=traces

The step is that of `poet train`, compiled as it compiles it, on drawn batches of the pretraining
layouts.  MFU counts the FLOPs of `poet/training/flops.py` (matrix products alone, half of the causal
square, nothing that is recomputed), over the peak of the data sheet and over what this device's products
reached just before.  `--layers` 2 and 6 of `8b_slice` tell apart what a layer costs and what the tables do.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import common
import harness
import jax
import optable

from poet.distributed import mesh as mesh_lib
from poet.planning.topologies import peak_flops
from poet.spec import Experiment, choose
from poet.tasks.resolved import Resolved
from poet.training import compiled
from poet.training.step import language_model

PROFILED_STEPS = 3


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = common.arguments(__doc__)
    parser.add_argument("--groups", nargs="*", default=["text-to-video"], help="layouts; none names all")
    parser.add_argument("--attention", default="auto", help="auto, xla, cudnn, splash")
    parser.add_argument("--remat", default="", help="none, dots, offload, full; empty: the size's own")
    parser.add_argument("--layers", type=int, default=0, help="0: the size's own")
    parser.add_argument("--profile", default="", help="folder of the trace; prints seconds by kind")
    flags = parser.parse_args(argv)
    device = common.start(flags)
    model = {"attention": flags.attention}
    model |= {"remat": flags.remat} if flags.remat else {}
    model |= {"layers": flags.layers} if flags.layers else {}
    experiment = common.pretraining(flags.size, flags.batch, **model)
    matmul = common.matmul_rate(device)
    groups = measure(experiment, device, matmul, flags)
    return common.report(flags, device, {"matmul_flops": matmul, "groups": groups})


def measure(
    experiment: Experiment, device: jax.Device, matmul: float, flags: argparse.Namespace
) -> list[dict[str, Any]]:
    """Of each group, in turn: seconds of a step and what follows from them."""
    mesh = mesh_lib.build(experiment.mesh, [device])
    trainable, table = language_model(Resolved(experiment), mesh), Resolved(experiment).groups
    names = [n for n in flags.groups or table if choose(n, table, "group")]
    with jax.set_mesh(mesh):
        abstract = compiled.abstract(trainable, mesh)
        programs = compiled.compile_steps({name: trainable.groups[name] for name in names}, abstract, mesh)
        state = jax.jit(
            lambda: compiled.init(trainable, jax.random.key(0)), out_shardings=compiled.shardings_of(abstract)
        )()
        found = []
        for name in names:
            group, layout = trainable.groups[name], table[name][0]
            batch = jax.device_put(common.draw_batch(group.batch, layout), mesh_lib.batch_sharding(mesh))
            run = Runner(programs[name], state, batch, mesh, experiment.optimizer.learning_rate)
            times = harness.timed(run, flags.steps, warm=3)
            found.append(summary(group, programs[name], run, times["wall"], device, matmul))
            if flags.profile:
                found[-1]["seconds_by_kind"] = profile(run, programs[name], f"{flags.profile}/{name}")
            state = run.state
    return found


class Runner:
    """One step after another; blocks until each is done."""

    def __init__(self, program: compiled.Program, state: Any, batch: Any, mesh: jax.sharding.Mesh, rate: float):
        self.state, self.losses = state, []
        self._program, self._batch = program, batch
        self._moment = compiled.Moment.at(0, 0, rate, mesh)

    def __call__(self) -> None:
        self.state, metrics = self._program(self.state, self._batch, self._moment)
        self.losses.append(float(metrics["loss"].value()))
        jax.block_until_ready(self.state)


def summary(
    group: Any, program: Any, run: Runner, seconds: list[float], device: jax.Device, matmul: float
) -> dict[str, Any]:
    times, peak = common.spread(seconds), peak_flops(device.device_kind)
    rate = group.flops / times["median_s"]
    return {
        "group": group.name,
        "sequences": group.clips,
        "tokens": group.tokens,
        "gflop": group.flops / 1e9,
        **times,
        "tokens_per_s": group.tokens / times["median_s"],
        "tflops": rate / 1e12,
        "mfu": rate / peak if peak else None,
        "fraction_of_matmul": rate / matmul,
        "program_bytes": compiled.needed_bytes(program.memory_analysis()),
        "peak_bytes": common.peak_bytes(device),
        "losses": [run.losses[0], run.losses[-1]],
    }


def profile(run: Runner, program: Any, folder: str) -> dict[str, float]:
    """Writes a trace of a few steps; seconds of one step by kind of operation."""
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(folder):
        for _ in range(PROFILED_STEPS):
            run()
    return optable.seconds_by_kind(program.as_text(), folder, PROFILED_STEPS)


if __name__ == "__main__":
    main()
