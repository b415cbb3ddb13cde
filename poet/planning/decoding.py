"""The decoding program of the language model, for forecasts."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poet.distributed import mesh as mesh_lib
from poet.models.layers import COMPUTE_RULES
from poet.models.transformer import build_model
from poet.planning.programs import Cost, Program, part_bytes
from poet.sampling.decode import Decoder
from poet.sampling.plans import DEFAULT_BATCH, Plan
from poet.sampling.samplers import SamplingParams, Truncation
from poet.tasks.resolved import Resolved
from poet.training import flops


def program(resolved: Resolved, name: str, mesh: Mesh) -> Program:
    """The program that samples one batch of a group's layout: the loops of `sampling.decode`, after the prefill.

    Every slice of the batch axes samples `DEFAULT_BATCH` clips with its own parameters, in the
    compute dtype and split over `tensor` alone.
    """
    layout, sample = resolved.groups[name][0], resolved.spec.sample
    guided = layout.text_span is not None and sample.guides
    plan = Plan(layout=layout, guided=guided, truncation=Truncation.of(sample))
    decoder = Decoder(build_model(resolved), plan)
    batch = DEFAULT_BATCH * mesh_lib.batch_ways(mesh)
    return Program(
        name=f"decode {name}",
        lower=functools.partial(_lower, resolved, decoder, mesh, batch),
        cost=cost(resolved, plan, mesh, DEFAULT_BATCH),
        calls=plan.sampled_stop - plan.prefilled,
    )


def _lower(resolved: Resolved, decoder: Decoder, mesh: Mesh, batch: int) -> jax.stages.Lowered:
    model, plan = build_model(resolved), decoder.plan
    sharding = mesh_lib.batch_sharding(mesh)

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shape[0] * batch, *shape[1:]), dtype, sharding=sharding)

    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, model.dtype, sharding=s),
        model.abstract(),
        COMPUTE_RULES.shardings(mesh, model.axes()),
    )
    text = ()
    if plan.layout.text_span is not None:
        states = (plan.fan, resolved.spec.text.length, resolved.spec.text.width)
        text = (rows(states, jnp.float32), rows((plan.fan,), jnp.int32))
    tokens = rows((1, plan.prefilled), jnp.int32)
    cache, x_RxD = jax.eval_shape(decoder.prefill, params, tokens, *text)
    sampling_params = jax.eval_shape(lambda: SamplingParams.of(resolved.spec.sample))
    return decoder.decode.lower(params, cache, x_RxD, rows((1,), jnp.int32), sampling_params)


def cost(resolved: Resolved, plan: Plan, mesh: Mesh, batch: int) -> Cost:
    """The cost of all after the prefill, for `batch` samples of one slice of the batch axes.

    Every token reads the layers, the rows of the head that are legal there, and the whole cache.  A
    sequence axis splits the cache, and attention over it, alone.
    """
    model, spec = build_model(resolved), resolved.spec.model
    rows, tensor, ways = batch * plan.fan, mesh.shape["tensor"], mesh.shape["sequence"]
    size, length = model.dtype.itemsize, plan.sampled_stop
    keys = 2 * rows * length * spec.kv_heads * spec.head_dim * spec.layers * size
    blocks, traffic, products = part_bytes(model, mesh, "blocks"), 0.0, 0.0
    for span, _ in plan.steps:
        positions = span.stop - span.start
        head = 0 if span.segment.forced else 2 * spec.width * model.factors(span.segment.ids).rows
        attention = 4 * length * spec.heads * spec.head_dim / ways
        products += positions * rows * (spec.layers * (flops.block_flops(spec) + attention) + head)
        traffic += positions * (blocks + (keys / ways + head * size / 2) / tensor)
    return Cost(flops=products / tensor, traffic=traffic)
