"""The interface of the loop: a state, one pure step per group, iterators of batches, and hooks.

Every network and every tokenizer is a `Trainable`; the loop never asks which one it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

# A pytree of arrays with at least `step` (int32 scalar), `params` and `opt_state`.
State = dict[str, Any]
# Global batch: name -> array whose leading dim is the batch.
Batch = Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A metric that is a mean over things of which a step may have none, such as tokens.

    Attributes:
      total: float32 scalar: the sum, each thing times its weight.
      weight: float32 scalar: the sum of the weights; 0 where there is nothing to speak of.
    """

    total: jax.Array
    weight: jax.Array | np.floating

    def value(self) -> jax.Array:
        """The mean; NaN where there is none."""
        return self.total / self.weight


def each(metric: jax.Array | Mean) -> Mean:
    """A metric as a `Mean`; a scalar speaks of one step, and weighs 1."""
    return metric if isinstance(metric, Mean) else Mean(metric, np.float32(1))


# By name, e.g. {"loss": ..., "loss/visual": ..., "grad_norm": ...}.
Metrics = dict[str, "jax.Array | Mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The tasks of one static layout: one compiled step.

    Attributes:
      name: unique among the groups of a run; prefixes nothing, tags the metrics.
      step: pure (state, batch, key, rate) -> (state, metrics); jitted with the state donated by the
        loop.  `rate` is the learning rate of this step, float32: what changes from run to run without
        changing the program is an input of it.  Every metric with "loss" in its name must be finite,
        else the loop stops before saving.
      batch: global shapes and dtypes of one batch, every array sharded over the batch axes.
      clips, tokens: samples and trained-on sequence positions per step, for throughput.
      flops: matmul FLOPs per step, forward and backward, without rematerialisation.
    """

    name: str
    step: Callable[[State, Batch, jax.Array, jax.Array], tuple[State, Metrics]]
    batch: Mapping[str, jax.ShapeDtypeStruct]
    clips: int
    tokens: int
    flops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """A thing to train: `init(key)` is pure and jit-able; `axes` mirrors its result.

    `axes` holds for every leaf a tuple of logical axis names (or None), one per dim, that
    `poet.distributed.mesh.Rules` turns into shardings; scalars have ().  `rate` gives the learning rate of the
    step of a number, on the host.
    """

    init: Callable[[jax.Array], State]
    axes: State
    rate: Callable[[int], float]
    groups: Mapping[str, Group]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a hook: scalars, images (uint8, HxWx3) and texts, each by name."""

    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hook:
    """Something to do every `every` steps and at the end: evaluate, sample; before the first step too if `at_start`.

    `fn(state, step)` sees the state that has done `step` updates.  It must not change or keep it:
    its buffers are reused by the next step.
    """

    name: str
    every: int
    fn: Callable[[State, int], Report]
    at_start: bool = False

    def due(self, step: int, steps: int) -> bool:
        if step == 0 and not self.at_start:
            return False
        return self.every > 0 and (step % self.every == 0 or step == steps)


class BatchIterator(Protocol):
    """An endless, deterministic source of host batches whose position can be saved.

    `get_state` is small (a few MB at most) and the same on every process of a run; after `set_state`,
    in a run of any number of processes, the next batch is bit for bit the one that would have followed.
    """

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> bytes: ...

    def set_state(self, state: bytes) -> None: ...
