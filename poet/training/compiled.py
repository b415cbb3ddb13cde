"""Ahead-of-time compilation of the steps, with what they cost on each device."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poet.distributed import processes
from poet.distributed.mesh import Rules, batch_sharding
from poet.runs import compile_cache
from poet.spec import UserError
from poet.training.trainable import Batch, Group, Metrics, State, Trainable

_LOG = logging.getLogger(__name__)

# (state, batch, moment) -> (state, metrics); the state is donated.
Program = Callable[[State, Batch, "Moment"], tuple[State, Metrics]]

# Programs that the compiler works on at once: it leaves Python to others, and mostly uses one core.
COMPILERS = 4
# Seconds after which the programs that are still waited for are named again.
REMIND_S = 30.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moment:
    """Scalars of the run on every device, inputs of the compiled step.

    Whatever a run may set otherwise without another program belongs here: its length, its seed and
    its learning rates compile nothing anew.

    Attributes:
      seed, step: uint32; together the key of the step.
      rate: float32, the learning rate of the step.
    """

    seed: jax.Array
    step: jax.Array
    rate: jax.Array

    @classmethod
    def at(cls, step: int, seed: int, rate: float, mesh: Mesh) -> Moment:
        values = (np.uint32(seed), np.uint32(step), np.float32(rate))
        return cls(*(processes.replicated(value, mesh) for value in values))


def init(trainable: Trainable, key: jax.Array) -> State:
    """The initial state, in the types that a step gives back."""
    return jax.tree.map(strong, trainable.init(key))


def abstract(trainable: Trainable, mesh: Mesh, rules: Rules = Rules()) -> State:
    """ShapeDtypeStructs of the state with the shardings that the rules give it on this mesh.

    Raises UserError if a dim does not divide.
    """
    # The key is made inside: the mesh that is set may have no devices to run on.
    shapes = jax.eval_shape(lambda: init(trainable, jax.random.key(0)))
    rules.check(mesh, trainable.axes, shapes)
    shardings = rules.shardings(mesh, trainable.axes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def compile_steps(groups: Mapping[str, Group], abstract_state: State, mesh: Mesh) -> dict[str, Program]:
    """Every group's step as a program for this mesh, several at once; logs memory and FLOPs of each,
    and what is being waited for.

    Args:
      abstract_state: ShapeDtypeStructs with shardings; the new state keeps them.

    Raises:
      UserError: a step needs more memory than a device has.
    """
    many = f"{len(groups)} programs, {', '.join(groups)}" if len(groups) > 1 else "the step's program"
    _LOG.info("compiling %s; programs in the cache are reused", many)
    with concurrent.futures.ThreadPoolExecutor(COMPILERS) as pool:
        # A program is compiled while the next one is traced.
        futures = {
            name: pool.submit(_compile, group, lower(group, abstract_state, mesh)) for name, group in groups.items()
        }
        _wait(futures)
        return {name: future.result() for name, future in futures.items()}


def _wait(futures: Mapping[str, concurrent.futures.Future]) -> None:
    """Until all are done or one has failed."""
    begin, waiting = time.perf_counter(), set(futures.values())
    while waiting:
        done, waiting = concurrent.futures.wait(waiting, REMIND_S, concurrent.futures.FIRST_EXCEPTION)
        if any(future.exception() for future in done):
            return
        if waiting:
            names = [name for name, future in futures.items() if future in waiting]
            seconds = time.perf_counter() - begin
            _LOG.info("still compiling %s after %.0f s", ", ".join(names), seconds)


def _compile(group: Group, lowered: jax.stages.Lowered) -> Program:
    begin = time.perf_counter()
    with compile_cache.counted() as found:
        program = lowered.compile()
    seconds = time.perf_counter() - begin
    _check_memory(group, program.memory_analysis(), f"compiled in {seconds:.1f} s ({found})")
    return program


def lower(group: Group, abstract_state: State, mesh: Mesh) -> jax.stages.Lowered:
    """A group's step for this mesh, whose devices need not exist; call it under `jax.set_mesh`."""
    sharding = batch_sharding(mesh)
    batch = {
        key: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding) for key, array in group.batch.items()
    }
    kinds = (np.uint32, np.uint32, np.float32)
    scalars: Any = (jax.ShapeDtypeStruct((), kind, sharding=replicated(mesh)) for kind in kinds)
    moment = Moment(*scalars)
    jitted = jax.jit(_step_function(group), donate_argnums=0, out_shardings=(shardings_of(abstract_state), None))
    return jitted.lower(abstract_state, batch, moment)


def _step_function(group: Group) -> Program:
    def run(state: State, batch: Batch, moment: Moment) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(moment.seed), moment.step)
        state, metrics = group.step(state, batch, key, moment.rate)
        return jax.tree.map(strong, state), metrics

    return run


def _check_memory(group: Group, usage: Any, compiled: str) -> None:
    need = needed_bytes(usage)
    _LOG.info(
        "group %s: %.1f MiB per device (%.1f MiB of it temporary), %.3g GFLOP, %d clips and %d tokens per step, %s",
        group.name,
        need / 2**20,
        usage.temp_size_in_bytes / 2**20,
        group.flops / 1e9,
        group.clips,
        group.tokens,
        compiled,
    )
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit and need > limit:
        raise UserError(
            f"one step of group {group.name} needs {need / 2**30:.1f} GiB on each device, which "
            f"has {limit / 2**30:.1f} GiB; lower DATA.batch, set MODEL.remat = 'full', or use "
            "more devices"
        )


def needed_bytes(usage: Any) -> int:
    """Memory by `compiled.memory_analysis()`: bytes of one device; reused buffers count once."""
    return (
        usage.argument_size_in_bytes + usage.output_size_in_bytes + usage.temp_size_in_bytes - usage.alias_size_in_bytes
    )


def strong(x: Any) -> jax.Array:
    """Drops weak types, which a compiled program would take for another signature."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def shardings_of(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)
