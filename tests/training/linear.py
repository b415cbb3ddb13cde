"""The smallest real Trainable: a noisy linear model with two groups, and data that can be poisoned.

Run as a program it trains as the CLI does: `linear.py WORKDIR STEPS [SIGNAL_AT] [DELAY_S]`, alone or as
the last of `linear.py WORKDIR STEPS SIGNAL_AT DELAY_S COORDINATOR PROCESSES PROCESS`; the process that is
numbered highest gets the signal.  A further argument is a folder for local snapshots, in place of frequent
checkpoints.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from poet import spec as specs
from poet.checkpoints import checkpoint
from poet.distributed import mesh, processes
from poet.runs.run import Run
from poet.training import loop, optimizer
from poet.training.schedule import GroupSchedule
from poet.training.trainable import Group, Hook, Report, Trainable

IN, OUT = 16, 8
BATCH = {"short": 16, "long": 8}
SHARES = {"short": 0.3, "long": 0.7}
AXES = {"w": ("embed", "mlp"), "b": ("mlp",)}
OPTIMIZER = specs.OptimizerSpec(learning_rate=1e-2, warmup_steps=2)
# Fixed here, not the run's length, so that shorter runs are prefixes of longer ones.
HORIZON = 100


class Batches:
    """Batch number i of a group is a pure function of i; `seen` records what was handed out."""

    def __init__(
        self, group: str, *, poison: int | None = None, delay_s: float = 0.0, share: processes.Share = processes.Share()
    ):
        self.group, self.poison, self.delay_s, self.share = group, poison, delay_s, share
        self.position, self.seen = 0, []

    def __next__(self) -> dict[str, np.ndarray]:
        time.sleep(self.delay_s)
        rng = np.random.default_rng([self.position, len(self.group)])
        x = rng.normal(size=(BATCH[self.group], IN)).astype(np.float32)
        y = np.ascontiguousarray(x[:, :OUT] * 2)
        if self.position == self.poison:
            y[0, 0] = np.nan
        self.seen.append(self.position)
        self.position += 1
        own = self.share.rows(len(x))
        return {"x": x[own], "y": y[own]}

    def get_state(self) -> bytes:
        return str(self.position).encode()

    def set_state(self, state: bytes) -> None:
        self.position = int(state)


def _params(key: jax.Array) -> dict[str, jax.Array]:
    return {"w": jax.random.normal(key, (IN, OUT)), "b": jnp.zeros(OUT)}


def trainable(change: Callable[[Any], Any] = lambda state: state) -> Trainable:
    """`change` is applied to the state after each update."""
    tx = optimizer.build(OPTIMIZER, AXES)

    def init(key: jax.Array) -> dict[str, Any]:
        params = _params(key)
        return {"step": jnp.zeros((), jnp.int32), "params": params, "opt_state": tx.init(params)}

    def step(state: Any, batch: Any, key: jax.Array, rate: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        noise = jax.random.normal(key, ())

        def loss_of(params: Any) -> jax.Array:
            spec = P(("data", "fsdp"), "tensor")
            y = jnp.einsum("bi,io->bo", batch["x"], params["w"], out_sharding=spec) + params["b"]
            return jnp.square(y - batch["y"] + 0.1 * noise).mean()

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        new, _ = optimizer.apply(tx, OPTIMIZER, grads, state, rate)
        return change({"step": state["step"] + 1, **new}), {"loss": loss, "noise": noise}

    shapes = jax.eval_shape(_params, jax.random.key(0))
    moments = optimizer.state_axes(tx, shapes, AXES)
    axes = {"step": (), "params": AXES, "opt_state": moments}
    groups = {name: _group(name, batch, step) for name, batch in BATCH.items()}
    return Trainable(init=init, axes=axes, rate=optimizer.learning_rate(OPTIMIZER, HORIZON), groups=groups)


def _group(name: str, batch: int, step: Callable[..., Any]) -> Group:
    return Group(
        name=name,
        step=step,
        batch={"x": jax.ShapeDtypeStruct((batch, IN), np.float32), "y": jax.ShapeDtypeStruct((batch, OUT), np.float32)},
        clips=batch,
        tokens=batch * 4,
        flops=6.0 * batch * IN * OUT,
    )


def experiment(
    steps: int, *, every: int = 4, keep: int = 2, width: int = 128, checkpoint: specs.CheckpointSpec | None = None
) -> specs.Experiment:
    return specs.Experiment(
        train=specs.TrainSpec(steps=steps, log_every=1, seed=3),
        checkpoint=checkpoint or specs.CheckpointSpec(every=every, keep=keep),
        optimizer=OPTIMIZER,
        model=specs.ModelSpec(width=width),
    )


def batches(**options: Any) -> dict[str, Batches]:
    return {name: Batches(name, **options) for name in BATCH}


def build_mesh(devices: int = 8) -> jax.sharding.Mesh:
    return mesh.build(specs.MeshSpec(fsdp=-1, tensor=2), jax.devices()[:devices])


def run(
    workdir: Path,
    steps: int,
    *,
    model: Trainable | None = None,
    data: dict[str, Batches] | None = None,
    hooks: Sequence[Hook] = (),
    devices: int = 8,
    made_with: dict[str, str] | None = None,
    **options: Any,
) -> loop.Outcome:
    return loop.train(
        model or trainable(),
        data or batches(),
        GroupSchedule(SHARES, seed=1),
        run=Run(workdir),
        mesh=build_mesh(devices),
        experiment=experiment(steps, **options),
        hooks=hooks,
        made_with=made_with,
    )


def restored(workdir: Path, devices: int = 8) -> checkpoint.Restored:
    """The newest checkpoint, read through the same door as the loop."""
    built = build_mesh(devices)
    model = trainable()
    shardings = mesh.Rules().shardings(built, model.axes)
    with jax.set_mesh(built):
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        return checkpoint.restore(Run(workdir), target)


def leaves(state: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def signal_at(step: int, number: int = signal.SIGTERM) -> Hook:
    """A hook that sends this process a signal while the state has done `step` updates."""

    def send(state: Any, now: int) -> Report:
        if now == step:
            os.kill(os.getpid(), number)
        return Report()

    return Hook(name="signal", every=1, fn=send)


def main(
    workdir: str,
    steps: str,
    at: str = "0",
    delay_s: str = "0",
    coordinator: str = "",
    count: str | None = None,
    index: str | None = None,
    memory: str = "",
) -> int:
    sys.modules["clu.metric_writers"] = None  # Spares the import of TensorFlow.
    logging.basicConfig(level=logging.WARNING, force=True)
    logging.getLogger("poet").setLevel(logging.INFO)
    if coordinator:
        processes.start(coordinator, int(count), int(index), wait_s=60)
    last = processes.index() == int(count or 1) - 1
    hooks = [signal_at(int(at) if last else 0)]
    data = batches(delay_s=float(delay_s), share=processes.batch_share(build_mesh()))
    options: dict[str, Any] = {"checkpoint": specs.CheckpointSpec(every=1000, local=memory)} if memory else {"every": 2}
    outcome = run(Path(workdir), int(steps), data=data, hooks=hooks, **options)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
