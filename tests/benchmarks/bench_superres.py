"""A training step of super-resolution beside the language model's, at one width and depth.

    python tests/benchmarks/bench_superres.py                                # small enough for two cores
    python tests/benchmarks/bench_superres.py --size=500m --batch=8          # the paper's second stage, on an accelerator

Both are the real steps of `poet train`, compiled as it compiles them, on random codes of 17 frames: the language model
writes 128x128 (1,280 codes), super-resolution makes 256x256 of them (5,120 codes), windows as in
`gin/experiments/superres_256.gin`.  Tokens are positions whose codes are predicted; TFLOP those of matrix products
alone.  Attention within windows costs the same for each code whatever the grid.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poet.distributed import mesh as mesh_lib
from poet.spec import Experiment, config
from poet.tasks.resolved import Resolved
from poet.training import compiled, networks

SMALL = {"layers": 3, "width": 256, "heads": 8, "kv_heads": 8, "head_dim": 32, "mlp_width": 688, "dtype": "float32"}
STEPS = 3


def experiments(size: str, batch: int) -> dict[str, Experiment]:
    """Name -> a run of one task; both of one model."""
    files = {
        "super-resolution": "gin/experiments/superres_256.gin",
        "language model": "gin/experiments/pretrain_1b.gin",
    }
    model = config.load([f"gin/models/superres_{size}.gin"]).model if size else None
    found = {}
    for name, file in files.items():
        run = config.load([file])
        task = "super_resolution" if name == "super-resolution" else "text_to_video"
        data = run.data.replace(mixture_rates={task: 1.0}, image_fractions=(), batch=batch, batch_multiple=1)
        small = run.model.replace(visual_head="factorised", remat="full", **SMALL)
        found[name] = run.replace(data=data, model=model or small)
    return found


def measure(run: Experiment) -> dict[str, Any]:
    """Seconds of a step, and what follows from them."""
    resolved, mesh = Resolved(run), mesh_lib.build(run.mesh, jax.devices()[:1])
    trainable = networks.of(resolved).trainable(resolved, mesh)
    ((name, group),) = trainable.groups.items()
    layout, rng = resolved.groups[name][0], np.random.default_rng(0)
    codes = {
        stream: rng.integers(0, 2 if stream == "source" else 2**run.vocabulary.visual_bits, (group.clips, n))
        for stream, n in layout.streams.items()
    }
    given = {"tokens": layout.assemble({n: c.astype(np.int32) for n, c in codes.items()})}
    batch = {n: given.get(n, np.zeros(x.shape, x.dtype)) for n, x in group.batch.items()}
    with jax.set_mesh(mesh):
        abstract = compiled.abstract(trainable, mesh)
        (program,) = compiled.compile_steps({name: group}, abstract, mesh).values()
        shardings = compiled.shardings_of(abstract)
        state = jax.jit(lambda: compiled.init(trainable, jax.random.key(0)), out_shardings=shardings)()
        placed, seconds = jax.device_put(batch, mesh_lib.batch_sharding(mesh)), []
        for step in range(STEPS + 1):
            moment = compiled.Moment.at(step, 0, 1e-4, mesh)
            begin = time.perf_counter()
            state, metrics = program(state, placed, moment)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - begin)
    best = min(seconds[1:])
    predicted = group.clips * layout.loss_length
    parameters = sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: state["params"])))
    return {
        "parameters": parameters,
        "codes_per_clip": layout.loss_length,
        "seconds": best,
        "tokens_per_s": predicted / best,
        "gflop_per_token": group.flops / predicted / 1e9,
        "tflop_per_s": group.flops / best / 1e12,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="", choices=["", "500m", "1b"], help="of gin/models/superres_*.gin")
    parser.add_argument("--batch", type=int, default=1)
    flags = parser.parse_args()
    jnp.zeros(()).block_until_ready()
    for name, run in experiments(flags.size, flags.batch).items():
        print(json.dumps({"step": name, "device": jax.devices()[0].device_kind, **measure(run)}), flush=True)


if __name__ == "__main__":
    main()
