"""Matrix-multiplication FLOPs, the numerator of model FLOPs utilisation.

Of the tokenizers' networks: those of every product and convolution of a traced function.  Of the
prefix LM: what its layout needs.

A product of [m, k] and [k, n] counts 2 m k n.  Counted: the projections and the MLP at every
position that is read (all but the last), text states and aligned conditions through their linear
layers, conditions through their encoder, attention as the layout needs it (prefix queries see the
prefix; output query i sees the prefix and i + 1 output keys, so the causal square counts half), the
head over the ids of each loss position.  Not counted: embedding lookups, norms, softmax, the
optimizer, rematerialisation.  The backward pass counts twice the forward pass, so a step is three
times it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jax_core

from poet.models import condition_encoder
from poet.models.transformer import Model
from poet.spec import ModelSpec
from poet.tasks.layout import Layout


def train_flops(model: Model, layout: Layout, *, loss_vocabulary: str = "legal") -> int:
    """FLOPs of forward and backward for one sequence."""
    forward = forward_flops(model, layout, loss_vocabulary=loss_vocabulary)
    mixed = model.spec.guidance_input and layout.text_span is not None
    # What the model says without text takes the states of a forward pass, and no logits.
    return 3 * forward + (forward - head_flops(model, layout, loss_vocabulary) if mixed else 0)


def forward_flops(model: Model, layout: Layout, *, loss_vocabulary: str = "legal") -> int:
    """FLOPs of the forward pass, with the loss's logits, for one sequence."""
    spec = model.spec
    positions = layout.length - 1
    per_layer = positions * block_flops(spec) + attention_flops(spec, layout)
    text = layout.text_span.segment.length if layout.text_span else 0
    embed = 2 * text * model.text_width * spec.width
    if spec.aligned_conditions:
        embed += 2 * spec.width**2 * sum(output.stop - output.start for _, output in layout.aligned)
    if spec.condition_encoder:
        embed += condition_encoder.flops(model.declared["embedding"]["conditions"], layout)
    return spec.layers * per_layer + embed + head_flops(model, layout, loss_vocabulary)


def block_flops(spec: ModelSpec) -> int:
    """FLOPs of one block's weight products at one position."""
    attention = 2 * (spec.heads + spec.kv_heads) * spec.head_dim
    return 2 * spec.width * (attention + 3 * spec.mlp_width)


def attention_flops(spec: ModelSpec, layout: Layout) -> int:
    """FLOPs of one layer's scores and weighted values for one sequence."""
    prefix, output = layout.prefix_length, layout.output_length - 1
    pairs = prefix * prefix + output * prefix + output * (output + 1) // 2
    return 2 * 2 * pairs * spec.heads * spec.head_dim


def head_flops(model: Model, layout: Layout, loss_vocabulary: str = "legal") -> int:
    """FLOPs of the logits of one sequence."""
    if loss_vocabulary == "full":
        columns = layout.loss_length * model.vocabulary.size
    else:
        columns = sum((s.stop - s.start) * model.factors(s.segment.ids).rows for s in layout.loss_spans)
    return 2 * model.spec.width * columns


def traced_flops(run: Callable[..., Any], *shapes: Any) -> float:
    """FLOPs of the matmuls and convolutions of `run` on ShapeDtypeStructs; loops count once."""
    return _count_flops(jax.make_jaxpr(run)(*shapes).jaxpr)


def _count_flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        for inner in jax_core.jaxprs_in_params(equation.params):
            total += _count_flops(inner)
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            out_dim = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[out_dim]
        elif equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[dim] for dim in contracting)
            total += 2.0 * equation.outvars[0].aval.size * depth
    return total
