"""A program to forecast: the function that lowers it, and its cost on one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from poet.distributed import mesh as mesh_lib
from poet.models.layers import COMPUTE_RULES
from poet.models.transformer import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a program on one device; bytes and FLOPs of one call.

    Attributes:
      flops: of matrix products, without rematerialisation.
      traffic: bytes that memory must move at the very least.
    """

    flops: float
    traffic: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program; `lower` is called under `jax.set_mesh`.

    Attributes:
      name: "train GROUP" or "decode GROUP".
      calls: of the body of its loop, for a decoding program; 1 for a step.
      call: what one of them makes.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    cost: Cost
    calls: int = 1
    call: str = "token"


def part_bytes(model: Model, mesh: Mesh, part: str) -> int:
    """Bytes of a part of the model on one device, whole over fsdp, in the compute dtype."""
    shardings = COMPUTE_RULES.shardings(mesh, model.axes()[part])
    leaves = zip(jax.tree.leaves(model.abstract()[part]), jax.tree.leaves(shardings), strict=True)
    return sum(mesh_lib.local_bytes(s, x.shape, model.dtype) for x, s in leaves)
