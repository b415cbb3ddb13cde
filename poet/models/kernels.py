"""Attention of a prefix LM by the kernels of accelerators: splash on TPU, cuDNN's flash on GPU.

Neither makes a matrix of scores.  Splash takes the prefix mask as a function and skips blocks that it
rules out.  cuDNN knows no prefix: output queries see what plain causal attention over the whole
sequence shows them, prefix queries see the whole prefix, so two mask-free calls are enough, and a
padded text adds a mask of keys.

Shape suffixes: B batch, S sequence, K key-value heads, G query heads per key-value head, H head dim,
N = K G query heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from poet.distributed.mesh import BATCH_AXES
from poet.spec import UserError

# The kernel of each platform where `MODEL.attention` is "auto".
KERNELS = {"tpu": "splash", "cuda": "cudnn", "gpu": "cudnn", "rocm": "xla", "cpu": "xla"}
# Positions of a tile of splash: long ones keep the matrix unit busy, short ones pad less.
TILES = (512, 256, 128)
TILE_WASTE = 0.05


def choose_kernel(named: str, dtype: jnp.dtype) -> str:
    """'xla', 'splash' or 'cudnn': what is named, or what suits the devices of the mesh that is set.

    cuDNN takes 16-bit floats alone.  Without a mesh it is 'xla', which runs everywhere: exported
    programs are made for several platforms at once.

    Raises:
      UserError: the named kernel does not run there.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = device.platform if device else "cpu"
    half = jnp.dtype(dtype).itemsize == 2
    fitting = KERNELS.get(platform, "xla")
    fitting = fitting if half or fitting != "cudnn" else "xla"
    if named not in ("auto", "xla", fitting):
        raise UserError(
            f"MODEL.attention = {named!r} does not run on {platform} in {jnp.dtype(dtype).name}; "
            f"use 'auto' (here {fitting!r}) or 'xla'"
        )
    return fitting if named == "auto" else named


def attend(
    kernel: str,
    q_BxSxKxGxH: jax.Array,
    k_BxSxKxH: jax.Array,
    v_BxSxKxH: jax.Array,
    *,
    prefix_length: int,
    key_mask_BxS: jax.Array | None = None,
) -> jax.Array:
    """As `attention.attend`, by 'splash' or 'cudnn', on every device's own clips and heads."""
    local = {"splash": splash, "cudnn": cudnn}[kernel]
    run = functools.partial(_merged_heads, functools.partial(local, prefix_length=prefix_length))
    masks = () if key_mask_BxS is None else (key_mask_BxS,)
    if jax.sharding.get_abstract_mesh().empty:
        return run(q_BxSxKxGxH, k_BxSxKxH, v_BxSxKxH, *masks)
    # Heads lie over `tensor`, and `sequence` if it splits them too.
    heads = PartitionSpec(BATCH_AXES, None, jax.typeof(k_BxSxKxH).sharding.spec[2])
    return jax.shard_map(
        run,
        in_specs=(heads, heads, heads, *(PartitionSpec(BATCH_AXES) for _ in masks)),
        out_specs=heads,
        # No axis replicates anything, and kernels state no replication types.
        check_vma=False,
    )(q_BxSxKxGxH, k_BxSxKxH, v_BxSxKxH, *masks)


def _merged_heads(local: Callable[..., jax.Array], q_BxSxKxGxH: jax.Array, *others: jax.Array) -> jax.Array:
    shape = q_BxSxKxGxH.shape
    return local(q_BxSxKxGxH.reshape(*shape[:2], -1, shape[-1]), *others).reshape(shape)


# ------------------------------------------------------------------------------------------- splash


def splash(
    q_BxSxNxH: jax.Array,
    k_BxSxKxH: jax.Array,
    v_BxSxKxH: jax.Array,
    key_mask_BxS: jax.Array | None = None,
    *,
    prefix_length: int,
    interpret: bool = False,
) -> jax.Array:
    """TPU's splash attention; `interpret` runs it anywhere, slowly."""
    length, heads = q_BxSxNxH.shape[1:3]
    tile = splash_tile(length)
    padding = -length % tile
    kernel = _splash_kernel(prefix_length, length + padding, heads, tile, interpret)

    def heads_first(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    inputs = [heads_first(x) for x in (q_BxSxNxH * q_BxSxNxH.shape[-1] ** -0.5, k_BxSxKxH, v_BxSxKxH)]
    # Keys behind the sequence are later than every query that is kept, so no mask is needed there.
    segments = None if key_mask_BxS is None else _segments(key_mask_BxS, padding)
    out_BxNxSxH = jax.vmap(kernel)(*inputs, segments)
    return out_BxNxSxH.swapaxes(1, 2)[:, :length]


def splash_tile(length: int) -> int:
    """Positions of a tile: the longest that pads the sequence by at most TILE_WASTE, else the shortest.

    >>> splash_tile(2048), splash_tile(1284)
    (512, 128)
    """
    fitting = [tile for tile in TILES if -length % tile <= TILE_WASTE * length]
    return fitting[0] if fitting else TILES[-1]


def _segments(key_mask_BxS: jax.Array, padding: int) -> Any:
    """Queries are of segment 0, and so are keys that may be seen."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    hidden = jnp.pad((~key_mask_BxS).astype(jnp.int32), ((0, 0), (0, padding)))
    return splash_attention_kernel.SegmentIds(q=jnp.zeros_like(hidden), kv=hidden)


def _splash_kernel(prefix_length: int, length: int, heads: int, tile: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    class Prefix(masks._ComputableMask):  # The base of all masks that are functions of two indices.
        def __init__(self) -> None:
            super().__init__((length, length), lambda q, k: (q >= k) | (k < prefix_length))

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Prefix)

        def __hash__(self) -> int:
            return hash((prefix_length, length))

    tiles = dict.fromkeys(
        (
            "block_q",
            "block_kv",
            "block_kv_compute",
            "block_q_dkv",
            "block_kv_dkv",
            "block_kv_dkv_compute",
            "block_q_dq",
            "block_kv_dq",
        ),
        tile,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([Prefix() for _ in range(heads)]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernels.BlockSizes(**tiles),
        interpret=interpret,
    )


# -------------------------------------------------------------------------------------------- cuDNN


def cudnn(
    q_BxSxNxH: jax.Array,
    k_BxSxKxH: jax.Array,
    v_BxSxKxH: jax.Array,
    key_mask_BxS: jax.Array | None = None,
    *,
    prefix_length: int,
    implementation: str = "cudnn",
) -> jax.Array:
    """Two calls of `jax.nn.dot_product_attention`; `implementation="xla"` runs them anywhere."""
    length = q_BxSxNxH.shape[1]
    prefix = min(prefix_length, length)

    def call(stop: int, causal: bool) -> jax.Array:
        mask = None
        if key_mask_BxS is not None:
            shape = (key_mask_BxS.shape[0], 1, stop, stop)
            mask = jnp.broadcast_to(key_mask_BxS[:, None, None, :stop], shape)
        return jax.nn.dot_product_attention(
            q_BxSxNxH[:, :stop],
            k_BxSxKxH[:, :stop],
            v_BxSxKxH[:, :stop],
            mask=mask,
            is_causal=causal,
            implementation=implementation,
        )

    parts = [call(prefix, False)] if prefix else []
    parts += [call(length, True)[:, prefix:]] if prefix < length else []
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
