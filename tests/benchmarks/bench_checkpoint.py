"""Times saving and restoring a training state: this project, plain Orbax, torch.save; on one core.

    python tests/benchmarks/bench_checkpoint.py --peer_python=PEER/bin/python [--folder=DISK]

PEER is made as for bench_train_step.py.  The state is that of the 59 M model of bench_train_step.py
with AdamW: 0.7 GB.  `poet` writes it as `poet train` does, which blocks training for that long: Orbax's
files, a SHA-256 of each, a durable rename; restoring checks the hashes.  `orbax` is
`save_checkpointables` and `load_checkpointables` of the same tree; `torch` is `torch.save` and
`torch.load` of the same bytes in as many tensors, which hashes nothing and syncs nothing.
"""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import harness

RUNS = 2


def poet_state() -> tuple[Any, dict[str, Any]]:
    """(experiment, state) of the 59 M case."""
    import jax

    import bench_train_step
    from poet.training import optimizer

    experiment, model, _ = bench_train_step.poet_parts("59m")
    tx = optimizer.build(experiment.optimizer, experiment.train.steps, model.axes())
    params = jax.jit(model.init)(jax.random.key(0))
    state = {"step": jax.numpy.zeros((), "int32"), "params": params, "opt_state": tx.init(params)}
    return experiment, jax.block_until_ready(state)


def poet_case(folder: pathlib.Path, restore: bool) -> dict[str, Any]:
    import jax

    from poet import checkpoint

    experiment, state = poet_state()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

    def save() -> None:
        checkpoint.save(folder, step=1, state=state, iterators={}, experiment=experiment, clock={}, keep=1)

    def load() -> None:
        jax.block_until_ready(checkpoint.restore(folder, abstract, experiment).state)

    return alternate(save, load, restore)


def orbax_case(folder: pathlib.Path, restore: bool) -> dict[str, Any]:
    import jax
    from orbax.checkpoint import v1 as ocp

    _, state = poet_state()
    path = folder.absolute() / "1"
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

    def save() -> None:
        shutil.rmtree(path, ignore_errors=True)
        ocp.save_checkpointables(path, {k: {"value": v} for k, v in state.items()})

    def load() -> None:
        target = {k: {"value": v} for k, v in abstract.items()}
        jax.block_until_ready(ocp.load_checkpointables(path, target))

    return alternate(save, load, restore)


def torch_case(folder: pathlib.Path, restore: bool) -> dict[str, Any]:
    import torch

    import bench_train_step

    case = bench_train_step.CASES["59m"]
    import peer_lm

    model = peer_lm.build("qwen3", {**case, "kv_heads": case["heads"]}, 2 ** case["bits"] + 258, 256)
    weights = model.state_dict()
    state = {"params": weights, "mu": {k: v.clone() for k, v in weights.items()},
             "nu": {k: v.clone() for k, v in weights.items()}}
    path = folder / "state.pt"
    return alternate(lambda: torch.save(state, path), lambda: torch.load(path), restore)


def alternate(save: Any, load: Any, restore: bool) -> dict[str, Any]:
    """Times of the one or the other."""
    save()
    times = harness.timed(load if restore else save, RUNS, warm=0)
    return {**times, "compile_s": 0.0, "versions": harness.installed()}


WHO = {"poet": poet_case, "orbax": orbax_case, "torch": torch_case}


def compare(flags: Any) -> None:
    for what in flags.cases:
        def case(who: str) -> dict[str, Any]:
            python = flags.peer_python if who == "torch" else sys.executable
            with tempfile.TemporaryDirectory(dir=flags.folder or None) as folder:
                return harness.child(python, __file__, (who, what, folder), flags.core)

        found = harness.interleave(
            {who: functools.partial(case, who) for who in WHO if who != "torch" or flags.peer_python},
            flags.rounds)
        harness.save("checkpoint", what, found, unit=f"{what} of 59 M parameters with AdamW, 0.7 GB")


if __name__ == "__main__":
    parser = harness.arguments(__doc__, ("save", "restore"))
    parser.add_argument("--folder", default="", help="where to write; default: the temporary folder")
    flags = parser.parse_args()
    if not flags.case:
        compare(flags)
    else:
        who, what, folder = flags.case.split(",")
        print(json.dumps(WHO[who](pathlib.Path(folder), what == "restore")))
