"""The parts of a transformer block, and how their arrays lie on the mesh.

Every weight is declared with its logical axes (`declaration.Weight`); `poet.distributed.mesh.Rules` turns
them into shardings.  Master weights stay in the parameter dtype, sharded; `gathered` casts them to the
compute dtype and then collects their shards of fsdp and sequence, so that the collective moves
compute-dtype bytes and its transpose reduces gradients in the same dtype.

Shape suffixes: B batch, S sequence, D width, F MLP width, K key-value heads, G query heads per
key-value head, H head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec, reshard

from poet.distributed import mesh as mesh_lib
from poet.models import declaration
from poet.models.declaration import Tree, Weight, fan_in
from poet.spec import ModelSpec

NORM_EPSILON = 1e-6
PRODUCT = "product"
# Compute-time placement: parameters are whole over fsdp and sequence, still split over tensor.
COMPUTE_RULES = mesh_lib.Rules({**mesh_lib.DEFAULT_RULES, "embed": None, "table_embed": None})


def placement(*axes: str | None) -> PartitionSpec | None:
    """The sharding of an activation with these logical axes; None when no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    return COMPUTE_RULES.spec(axes)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` of any shape, resharded to its placement; `x` itself when no mesh is set."""
    spec = placement(*axes)
    return x if spec is None else reshard(x, spec)


def like(x: jax.Array) -> PartitionSpec | None:
    """The sharding of an activation of any shape; None when no mesh is set."""
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding.spec


def gathered(declared: Tree, params: Tree, dtype: jnp.dtype) -> Tree:
    """Weights of products in the compute dtype, whole over fsdp and sequence; scales of norms as they are."""

    def gather(weight: Weight, value: jax.Array) -> jax.Array:
        return value if value.ndim == 1 else constrain(value.astype(dtype), *weight.axes)

    return jax.tree.map(gather, declared, params, is_leaf=declaration.is_weight)


def dense(equation: str, x: jax.Array, weight: jax.Array, place: PartitionSpec | None = None) -> jax.Array:
    """`jnp.einsum(equation, x, weight)` of activations and a weight, laid out at `place` if one is given.

    Its gradients are einsums of their own.  What automatic differentiation writes instead, XLA's CPU
    compiler fuses with the transposed activations: a gated MLP's step takes 1.8 times as long.
    Rematerialisation knows the product by the name `PRODUCT`, since no policy looks into such a function.
    """
    return checkpoint_name(_dense(equation, x, weight, place), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _dense(equation: str, x: jax.Array, weight: jax.Array, place: PartitionSpec | None) -> jax.Array:
    return jnp.einsum(equation, x, weight, out_sharding=place)


def _dense_forward(
    equation: str, x: jax.Array, weight: jax.Array, place: PartitionSpec | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _dense(equation, x, weight, place), (x, weight)


def _dense_backward(
    equation: str, place: PartitionSpec | None, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    operands, y_dims = equation.split("->")
    x_dims, weight_dims = operands.split(",")
    dx = jnp.einsum(f"{y_dims},{weight_dims}->{x_dims}", dy, weight, out_sharding=like(x))
    dweight = jnp.einsum(f"{x_dims},{y_dims}->{weight_dims}", x, dy, out_sharding=like(weight))
    return dx, dweight


_dense.defvjp(_dense_forward, _dense_backward)


def rms_normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x [..., D] / rms(x) * scale [D] over the last dim; statistics in float32, result in the dtype of x."""
    x32 = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + NORM_EPSILON)
    return (x32 * inverse_rms * scale.astype(jnp.float32)).astype(x.dtype)


def norm(width: int, dtype: str) -> Tree:
    """The learnt scale of a root-mean-square normalisation, replicated on every device."""
    return {"scale": Weight((width,), (None,), declaration.ones, dtype)}


def rotary_split(head_dim: int) -> tuple[int, int, int]:
    """Rotary pairs of one head given to the (t, h, w) axes; they sum to head_dim // 2.

    Three eighths each to h and w, the rest to t (the fractions of Qwen2-VL's multimodal rotary
    embedding: 16, 24, 24 of 64 pairs).

    >>> rotary_split(32)
    (4, 6, 6)
    """
    pairs = head_dim // 2
    side = 3 * pairs // 8
    return pairs - 2 * side, side, side


def rotary_table(positions_Sx3: np.ndarray, head_dim: int, base: float) -> np.ndarray:
    """Cosines and sines, float32 [2, S, head_dim // 2], of the rotation of each pair.

    Each axis spans the whole range of frequencies, base^0 down to almost base^-1, over its pairs.
    """
    angles = [
        positions_Sx3[:, axis, None].astype(np.float64) * base ** -(np.arange(pairs) / pairs)
        for axis, pairs in enumerate(rotary_split(head_dim))
    ]
    angle_SxP = np.concatenate(angles, axis=1)
    return np.stack([np.cos(angle_SxP), np.sin(angle_SxP)]).astype(np.float32)


def rotate(x_BxSxNxH: jax.Array, rotary_2xSxP: jax.Array) -> jax.Array:
    """Rotates pair p = (x[p], x[p + H/2]) of every head by its position's angle.

    Any number of head dims may stand between S and H.
    """
    heads = x_BxSxNxH.ndim - 3
    cos, sin = (
        jax.lax.expand_dims(table, range(1, 1 + heads)).astype(x_BxSxNxH.dtype)
        for table in (rotary_2xSxP[0], rotary_2xSxP[1])
    )
    first, second = jnp.split(x_BxSxNxH, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def declare_block(spec: ModelSpec) -> Tree:
    """The weights of one pre-norm transformer block."""
    return {
        "attention_norm": norm(spec.width, spec.param_dtype),
        "attention": declare_attention(spec),
        "mlp_norm": norm(spec.width, spec.param_dtype),
        "mlp": declare_mlp(spec),
    }


def declare_attention(spec: ModelSpec) -> Tree:
    """The four projections around attention: grouped key-value heads, with QK-norm.

    Query head (k, g) reads key-value head k; the query weights are kept as [D, K, G, H], so that
    tensor parallelism cuts K everywhere and nothing is reshaped across shards.
    """
    dtype, width, kv, head = spec.param_dtype, spec.width, spec.kv_heads, spec.head_dim
    group, read, write = spec.heads // kv, fan_in(width), fan_in(spec.heads * head * 2 * spec.layers)
    pair = Weight((width, kv, head), ("embed", "kv_heads", "head_dim"), read, dtype)
    query_axes, out_axes = ("embed", "kv_heads", None, "head_dim"), ("kv_heads", None, "head_dim", "embed")
    return {
        "query": Weight((width, kv, group, head), query_axes, read, dtype),
        "key": pair,
        "value": pair,
        "out": Weight((kv, group, head, width), out_axes, write, dtype),
        "query_norm": norm(head, dtype),
        "key_norm": norm(head, dtype),
    }


def declare_mlp(spec: ModelSpec) -> Tree:
    """SwiGLU: (silu(x W_gate) * x W_up) W_down."""
    width, hidden, dtype = spec.width, spec.mlp_width, spec.param_dtype
    read = Weight((width, hidden), ("embed", "mlp"), fan_in(width), dtype)
    write = Weight((hidden, width), ("mlp", "embed"), fan_in(hidden * 2 * spec.layers), dtype)
    return {"gate": read, "up": read, "down": write}


def block(
    declared: Tree, params: Tree, x_BxSxD: jax.Array, rotary: jax.Array, mix: Callable[..., Any]
) -> tuple[jax.Array, Any]:
    """(x_BxSxD, aux) of a block, where `mix(q, k, v) -> (o_BxSxKxGxH, aux)` is the attention of the caller.

    Training, prefill and cached decoding differ in `mix` alone.  `rotary` [2, 2, S, H // 2] has a
    `rotary_table` for queries, then one for keys.
    """
    weights = gathered(declared, params, x_BxSxD.dtype)
    q, k, v = project(weights["attention"], normed(weights["attention_norm"], x_BxSxD), rotary)
    o_BxSxKxGxH, aux = mix(q, k, v)
    x_BxSxD = x_BxSxD + merge(weights["attention"], o_BxSxKxGxH, like(x_BxSxD))
    return x_BxSxD + mlp(weights["mlp"], normed(weights["mlp_norm"], x_BxSxD)), aux


def normed(weights: Tree, x: jax.Array) -> jax.Array:
    """x [..., D] by `rms_normalise` with a declared `norm`; the same shape."""
    return rms_normalise(x, weights["scale"])


def project(
    weights: Tree, x_BxSxD: jax.Array, rotary: jax.Array | tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised, rotated queries [B, S, K, G, H] and keys, and values [B, S, K, H]."""
    k, v = keys(weights, x_BxSxD, rotary[1])
    return queries(weights, x_BxSxD, rotary[0]), k, v


def queries(weights: Tree, x_BxSxD: jax.Array, rotary: jax.Array | None) -> jax.Array:
    """Normalised queries [B, S, K, G, H], rotated if they have a place."""
    q = normed(weights["query_norm"], dense("bsd,dkgh->bskgh", x_BxSxD, weights["query"]))
    return q if rotary is None else rotate(q, rotary)


def keys(weights: Tree, x_BxSxD: jax.Array, rotary: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Normalised keys, rotated if they have a place, and values [B, S, K, H] of what is attended to."""
    k = normed(weights["key_norm"], dense("bsd,dkh->bskh", x_BxSxD, weights["key"]))
    v = dense("bsd,dkh->bskh", x_BxSxD, weights["value"])
    return (k if rotary is None else rotate(k, rotary)), v


def merge(weights: Tree, o_BxSxKxGxH: jax.Array, place: PartitionSpec | None) -> jax.Array:
    """Heads back to the width; sums over tensor shards."""
    return dense("bskgh,kghd->bsd", o_BxSxKxGxH, weights["out"], place)


def mlp(weights: Tree, x_BxSxD: jax.Array) -> jax.Array:
    """SwiGLU of positions, each by itself."""
    gate_BxSxF = dense("bsd,df->bsf", x_BxSxD, weights["gate"])
    up_BxSxF = dense("bsd,df->bsf", x_BxSxD, weights["up"])
    hidden_BxSxF = jax.nn.silu(gate_BxSxF) * up_BxSxF
    return dense("bsf,fd->bsd", hidden_BxSxF, weights["down"], like(x_BxSxD))


def remat(body: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """`none` keeps every residual, `dots` those of weight products, `offload` those in host memory,
    `full` the block's input."""
    if policy == "none":
        return body
    policies = jax.checkpoint_policies
    kept = {
        "dots": policies.save_only_these_names(PRODUCT),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=(),
            names_which_can_be_offloaded=(PRODUCT,),
            offload_src="device",
            offload_dst="pinned_host",
        ),
        "full": policies.nothing_saveable,
    }[policy]
    # The scan already keeps the recomputation apart from the forward pass.
    return jax.checkpoint(body, policy=kept, prevent_cse=False)
