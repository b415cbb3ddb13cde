"""The parts of a transformer block, and how their arrays lie on the mesh.

Every parameter declares its logical axes where it is made; `poet.distributed.mesh.Rules` turns them into
shardings.  Master weights stay in the parameter dtype, sharded; `gathered` casts one to the compute
dtype and then collects its shards of fsdp and sequence, so that the collective moves compute-dtype
bytes and its transpose reduces gradients in the same dtype.

Shape suffixes: B batch, S sequence, D width, F MLP width, K key-value heads, G query heads per
key-value head, H head dim.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec, reshard

from poet.distributed import mesh as mesh_lib
from poet.spec import ModelSpec

NORM_EPSILON = 1e-6
PRODUCT = "product"
# Compute-time placement: parameters are whole over fsdp and sequence, still split over tensor.
COMPUTE_RULES = mesh_lib.Rules({**mesh_lib.DEFAULT_RULES, "embed": None, "table_embed": None})


def placement(*axes: str | None) -> PartitionSpec | None:
    """Where an activation with these logical axes lies; None when no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    return COMPUTE_RULES.spec(axes)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` of any shape, resharded to its placement; `x` itself when no mesh is set."""
    spec = placement(*axes)
    return x if spec is None else reshard(x, spec)


def like(x: jax.Array) -> PartitionSpec | None:
    """Where an activation of any shape lies; None when no mesh is set."""
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding.spec


def gathered(param: nnx.Param, dtype: jnp.dtype) -> jax.Array:
    """A parameter in the compute dtype, whole over fsdp and sequence."""
    return constrain(param[...].astype(dtype), *param.axes)


def dense(
    equation: str, x: jax.Array, weight: jax.Array, place: PartitionSpec | None = None
) -> jax.Array:
    """`jnp.einsum(equation, x, weight)` of activations and a weight, laid out at `place` if one is given.

    Its gradients are einsums of their own.  What automatic differentiation writes instead, XLA's CPU
    compiler fuses with the transposed activations: a gated MLP's step takes 1.8 times as long.
    Rematerialisation knows the product by the name `PRODUCT`, since no policy looks into such a function.
    """
    return checkpoint_name(_dense(equation, x, weight, place), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _dense(
    equation: str, x: jax.Array, weight: jax.Array, place: PartitionSpec | None
) -> jax.Array:
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


def normal(
    key: jax.Array,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    stddev: float,
    dtype: jnp.dtype,
) -> nnx.Param:
    """A Gaussian parameter that carries its logical axes."""
    return nnx.Param(stddev * jax.random.normal(key, shape, dtype), axes=axes)


def rms_normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x [..., D] / rms(x) * scale [D] over the last dim; statistics in float32, result in the dtype of x."""
    x32 = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + NORM_EPSILON)
    return (x32 * inverse_rms * scale.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learnt scale, replicated on every device."""

    def __init__(self, width: int, *, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((width,), dtype), axes=(None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_normalise(x, self.scale[...])


def rotary_split(head_dim: int) -> tuple[int, int, int]:
    """Rotary pairs of one head given to the (t, h, w) axes; they sum to head_dim // 2.

    Three eighths each to h and w, the rest to t (the shares of Qwen2-VL's multimodal rotary
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


class Attention(nnx.Module):
    """The four projections around attention: grouped key-value heads, QK-norm, rotary positions.

    Query head (k, g) reads key-value head k; the query weights are kept as [D, K, G, H], so that
    tensor parallelism cuts K everywhere and nothing is reshaped across shards.
    """

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(spec.param_dtype)
        width, kv, group = spec.width, spec.kv_heads, spec.heads // spec.kv_heads
        head = spec.head_dim
        read, write = width**-0.5, (spec.heads * head * 2 * spec.layers) ** -0.5
        kv_axes = ("embed", "kv_heads", "head_dim")
        self.query = normal(
            rngs.params(), (width, kv, group, head), ("embed", "kv_heads", None, "head_dim"),
            read, dtype,
        )
        self.key = normal(rngs.params(), (width, kv, head), kv_axes, read, dtype)
        self.value = normal(rngs.params(), (width, kv, head), kv_axes, read, dtype)
        self.out = normal(
            rngs.params(), (kv, group, head, width), ("kv_heads", None, "head_dim", "embed"),
            write, dtype,
        )
        self.query_norm = RMSNorm(head, dtype=dtype)
        self.key_norm = RMSNorm(head, dtype=dtype)

    def project(
        self, x_BxSxD: jax.Array, rotary: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normalised, rotated queries [B, S, K, G, H] and keys, and values [B, S, K, H].

        `rotary` [2, 2, S, H // 2] has a `rotary_table` for queries, then one for keys.
        """
        dtype = x_BxSxD.dtype
        q = dense("bsd,dkgh->bskgh", x_BxSxD, gathered(self.query, dtype))
        k = dense("bsd,dkh->bskh", x_BxSxD, gathered(self.key, dtype))
        v = dense("bsd,dkh->bskh", x_BxSxD, gathered(self.value, dtype))
        return rotate(self.query_norm(q), rotary[0]), rotate(self.key_norm(k), rotary[1]), v

    def merge(self, o_BxSxKxGxH: jax.Array, place: PartitionSpec | None) -> jax.Array:
        """Heads back to the width; sums over tensor shards."""
        return dense("bskgh,kghd->bsd", o_BxSxKxGxH, gathered(self.out, o_BxSxKxGxH.dtype), place)


class GatedMLP(nnx.Module):
    """SwiGLU: (silu(x W_gate) * x W_up) W_down."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(spec.param_dtype)
        width, hidden = spec.width, spec.mlp_width
        read, write = width**-0.5, (hidden * 2 * spec.layers) ** -0.5
        self.gate = normal(rngs.params(), (width, hidden), ("embed", "mlp"), read, dtype)
        self.up = normal(rngs.params(), (width, hidden), ("embed", "mlp"), read, dtype)
        self.down = normal(rngs.params(), (hidden, width), ("mlp", "embed"), write, dtype)

    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        dtype = x_BxSxD.dtype
        gate_BxSxF = dense("bsd,df->bsf", x_BxSxD, gathered(self.gate, dtype))
        up_BxSxF = dense("bsd,df->bsf", x_BxSxD, gathered(self.up, dtype))
        hidden_BxSxF = jax.nn.silu(gate_BxSxF) * up_BxSxF
        return dense("bsf,fd->bsd", hidden_BxSxF, gathered(self.down, dtype), like(x_BxSxD))


class Block(nnx.Module):
    """Pre-norm transformer block; `mix` is the attention of the caller's mode."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(spec.param_dtype)
        self.attention_norm = RMSNorm(spec.width, dtype=dtype)
        self.attention = Attention(spec, rngs=rngs)
        self.mlp_norm = RMSNorm(spec.width, dtype=dtype)
        self.mlp = GatedMLP(spec, rngs=rngs)

    def __call__(self, x_BxSxD, rotary, mix):
        """Returns (x_BxSxD, aux) where `mix(q, k, v) -> (o_BxSxKxGxH, aux)`.

        Training, prefill and cached decoding differ in `mix` alone.
        """
        q, k, v = self.attention.project(self.attention_norm(x_BxSxD), rotary)
        o, aux = mix(q, k, v)
        x_BxSxD = x_BxSxD + self.attention.merge(o, like(x_BxSxD))
        return x_BxSxD + self.mlp(self.mlp_norm(x_BxSxD)), aux
