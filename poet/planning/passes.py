"""The sampling program of super-resolution, for forecasts."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poet.distributed import mesh as mesh_lib
from poet.models.layers import COMPUTE_RULES
from poet.models.superres import build_model
from poet.planning.programs import Cost, Program, part_bytes
from poet.sampling import masked, passes
from poet.sampling.superres import DEFAULT_BATCH
from poet.streams.low_resolution import SCALE
from poet.tasks.resolved import Resolved


def program(resolved: Resolved, name: str, mesh: Mesh) -> Program:
    """The program that samples one chunk of clips with text, of one tile each: all passes of SUPER_RESOLUTION.

    Every slice of the batch axes samples `DEFAULT_BATCH` clips with its own parameters, in the compute dtype and
    split over `tensor` alone.
    """
    spec, model = resolved.spec.super_resolution, build_model(resolved)
    plan = passes.passes(spec, resolved.format.video, has_text=True)
    rows = DEFAULT_BATCH * len(plan.branches)
    products = rows * model.forward_flops(plan.grid, resolved.spec.text.length if plan.reads_text else 0)
    return Program(
        name=f"decode {name}",
        lower=functools.partial(_lower, resolved, plan, mesh),
        cost=Cost(
            flops=spec.steps * products / mesh.shape["tensor"], traffic=spec.steps * part_bytes(model, mesh, "blocks")
        ),
        calls=spec.steps,
        call="pass",
    )


def _lower(resolved: Resolved, plan: passes.Passes, mesh: Mesh) -> jax.stages.Lowered:
    model, spec = build_model(resolved), resolved.spec
    batch, sharding = DEFAULT_BATCH * mesh_lib.batch_ways(mesh), mesh_lib.batch_sharding(mesh)
    size = math.prod(plan.grid)

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=sharding)

    def run(params: Any, codes: Any, low: Any, text: Any, numbers: Any, settings: passes.SamplingParams) -> jax.Array:
        # A number that the program knows, so that what moves in its passes can be counted.
        fixed = dataclasses.replace(settings, steps=jnp.int32(spec.super_resolution.steps))
        return masked.sample(model, plan, params, codes, low, text, numbers, fixed)

    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, model.dtype, sharding=s),
        model.abstract(),
        COMPUTE_RULES.shardings(mesh, model.axes()),
    )
    length = spec.text.length
    text = rows((length, spec.text.width), jnp.float16), rows((length,), jnp.bool_)
    settings = jax.eval_shape(lambda: passes.sampling_params(spec.super_resolution, True, 0))
    codes, low = rows((size,), jnp.int32), rows((size // SCALE**2,), jnp.int32)
    return jax.jit(run).lower(params, codes, low, text, rows((), jnp.int32), settings)
