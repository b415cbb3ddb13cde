"""Times saving and restoring a training state: this project, plain Orbax, torch.save; on one core.

    python tests/benchmarks/bench_checkpoint.py --peer_python=PEER/bin/python [--folder=DISK]

PEER is made as for bench_train_step.py.  The state is that of the 59 M model of bench_train_step.py
with AdamW, moments drawn: 0.7 GB.  `save` is until the checkpoint is whole: with `poet` Orbax's files,
a SHA-256 of each, all of it synced, a rename; restoring checks the hashes.  `orbax` is
`save_checkpointables` and `load_checkpointables` of the same tree; `torch` is `torch.save` and
`torch.load` of the same bytes in as many tensors, which hashes nothing and syncs nothing.

`blocked` is how long training waits before its next step: until `poet` has copied the state, until
`save_checkpointables_async` returns (`orbax async`; on CPUs it has copied nothing by then, and the step
that donates the state makes the copies), or until all is written (`orbax`, `torch`).
"""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import harness

RUNS = 2


def poet_state() -> tuple[Any, dict[str, Any]]:
    """(experiment, state) of the 59 M case."""
    import bench_train_step
    import jax

    from poet.training import optimizer

    experiment, model, _ = bench_train_step.poet_parts("59m")
    tx = optimizer.build(experiment.optimizer, model.axes())
    params = jax.jit(model.init)(jax.random.key(0))
    state = {"step": jax.numpy.zeros((), "int32"), "params": params, "opt_state": tx.init(params)}
    # Moments of the first step are zeros, of which a compressor leaves nothing.
    state["opt_state"] = jax.tree.map(drawn, state["opt_state"])
    return experiment, jax.block_until_ready(state)


def drawn(x: Any) -> Any:
    import jax

    floating = jax.numpy.issubdtype(x.dtype, jax.numpy.inexact)
    return jax.random.normal(jax.random.key(1), x.shape, x.dtype) if floating else x


def poet_case(folder: pathlib.Path, what: str) -> dict[str, Any]:
    import jax

    from poet.checkpoints import checkpoint
    from poet.runs.run import Run

    experiment, state = poet_state()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

    def start() -> Callable[[], Any]:
        return checkpoint.start_save(
            Run(folder),
            step=1,
            state=state,
            iterators={},
            experiment=experiment,
            clock={},
            policy=experiment.checkpoint,
        ).wait

    def load() -> None:
        jax.block_until_ready(checkpoint.restore(Run(folder), abstract).state)

    return timed(what, start, load)


def orbax_case(folder: pathlib.Path, what: str, wait: bool = True) -> dict[str, Any]:
    import jax
    from orbax.checkpoint import v1 as ocp

    _, state = poet_state()
    path = folder.absolute() / "1"
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

    def start() -> Callable[[], Any]:
        shutil.rmtree(path, ignore_errors=True)
        save = ocp.save_checkpointables if wait else ocp.save_checkpointables_async
        response = save(path, {k: {"value": v} for k, v in state.items()})
        return response.result if response else nothing

    def load() -> None:
        target = {k: {"value": v} for k, v in abstract.items()}
        jax.block_until_ready(ocp.load_checkpointables(path, target))

    return timed(what, start, load)


def torch_case(folder: pathlib.Path, what: str) -> dict[str, Any]:
    import bench_train_step
    import torch

    case = bench_train_step.CASES["59m"]
    import peer_lm

    model = peer_lm.build("qwen3", {**case, "kv_heads": case["heads"]}, 2 ** case["bits"] + 258, 256)
    weights = model.state_dict()
    state = {
        "params": weights,
        "mu": {k: v.clone() for k, v in weights.items()},
        "nu": {k: v.clone() for k, v in weights.items()},
    }
    path = folder / "state.pt"

    def start() -> Callable[[], Any]:
        torch.save(state, path)
        return nothing

    return timed(what, start, lambda: torch.load(path))


def nothing() -> None:
    """The wait for a save that is over."""


def timed(what: str, start: Callable[[], Callable[[], Any]], load: Callable[[], Any]) -> dict[str, Any]:
    """Times of a case; `start` begins a save and returns the wait for its end."""
    start()()
    if what == "blocked":
        times = {"wall": [], "cpu": []}
        for _ in range(RUNS):
            begin, cpu = time.perf_counter(), time.process_time()
            wait = start()
            times["wall"].append(time.perf_counter() - begin)
            times["cpu"].append(time.process_time() - cpu)
            wait()
    else:
        times = harness.timed(load if what == "restore" else lambda: start()(), RUNS, warm=0)
    return {**times, "compile_s": 0.0, "versions": harness.installed()}


WHO = {
    "poet": poet_case,
    "orbax": orbax_case,
    "orbax async": functools.partial(orbax_case, wait=False),
    "torch": torch_case,
}
UNITS = {"blocked": "training blocked by a save of"}


def compare(flags: Any) -> None:
    for what in flags.cases:

        def case(who: str) -> dict[str, Any]:
            python = flags.peer_python if who == "torch" else sys.executable
            with tempfile.TemporaryDirectory(dir=flags.folder or None) as folder:
                return harness.child(python, __file__, (who, what, folder), flags.core)

        left_out = {"torch"} if not flags.peer_python else set()
        left_out |= {"orbax async"} if what != "blocked" else set()
        found = harness.interleave(
            {who: functools.partial(case, who) for who in WHO if who not in left_out}, flags.rounds
        )
        unit = f"{UNITS.get(what, what + ' of')} 59 M parameters with AdamW, 0.7 GB"
        harness.save("checkpoint", what, found, unit=unit)


if __name__ == "__main__":
    parser = harness.arguments(__doc__, ("save", "blocked", "restore"))
    parser.add_argument("--folder", default="", help="where to write; default: the temporary folder")
    flags = parser.parse_args()
    if not flags.case:
        compare(flags)
    else:
        who, what, folder = flags.case.split(",")
        print(json.dumps(WHO[who](pathlib.Path(folder), what)))
