"""Attention of a prefix LM, without masks where the layout makes them needless.

The prefix length is static.  Prefix queries see every prefix key; output queries see the prefix and
the output up to themselves.  Output queries run in static blocks that read only the keys a block
can see, so about half of the causal square is never computed and no score matrix larger than
[block, sequence] exists.  Queries of a long prefix run in blocks too, one after the other, whose scores
are computed again for the gradient.  Padded text is the one dynamic mask, given per key.

Shape suffixes: B batch, S sequence, Q queries, K key-value heads, G query heads per key-value head,
H head dim, C cache length.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Finite, so that a block whose every score is masked yields no NaN; exp underflows to exactly 0.
MASKED = -1e30
# Queries per causal block.  Short blocks skip more of the causal square, long ones feed wider
# matmuls.
QUERY_BLOCK = 128
# Queries of a long prefix that are scored at once; shorter prefixes are scored in one piece.
PREFIX_BLOCK = 256


def attend(
    q_BxSxKxGxH: jax.Array,
    k_BxSxKxH: jax.Array,
    v_BxSxKxH: jax.Array,
    *,
    prefix_length: int,
    key_mask_BxS: jax.Array | None = None,
) -> jax.Array:
    """Attention output [B, S, K, G, H] for positions 0 .. S-1 of a prefix-LM sequence.

    Args:
      prefix_length: leading positions that see each other in both directions (static).
      key_mask_BxS: bool, False where a key must not be seen (padded text); None for no padding.
    """
    length = q_BxSxKxGxH.shape[1]
    outputs = []
    for start, stop in query_blocks(prefix_length, length):
        mask = None if key_mask_BxS is None else key_mask_BxS[:, None, :stop]
        if start >= prefix_length:
            causal = _causal(start, stop)
            mask = causal if mask is None else mask & causal
        part = q_BxSxKxGxH[:, start:stop], k_BxSxKxH[:, :stop], v_BxSxKxH[:, :stop], mask
        long = start < prefix_length and stop - start > PREFIX_BLOCK
        outputs.append(_blockwise(*part) if long else scaled_dot_product(*part))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _blockwise(
    q_BxQxKxGxH: jax.Array, k_BxSxKxH: jax.Array, v_BxSxKxH: jax.Array, mask_Bx1xS: jax.Array | None
) -> jax.Array:
    """`scaled_dot_product` over blocks of queries in turn: only the scores of one block are in memory,
    in the backward pass too."""
    queries = q_BxQxKxGxH.shape[1]
    count = -(-queries // PREFIX_BLOCK)
    block = -(-queries // count)
    padding = ((0, 0), (0, count * block - queries), (0, 0), (0, 0), (0, 0))
    batch, _, *heads = q_BxQxKxGxH.shape
    blocks = jnp.pad(q_BxQxKxGxH, padding).reshape(batch, count, block, *heads).swapaxes(0, 1)

    @jax.checkpoint
    def score(carry: None, q_BxNxKxGxH: jax.Array) -> tuple[None, jax.Array]:
        return carry, scaled_dot_product(q_BxNxKxGxH, k_BxSxKxH, v_BxSxKxH, mask_Bx1xS)

    _, out = jax.lax.scan(score, None, blocks)
    return out.swapaxes(0, 1).reshape(batch, count * block, *heads)[:, :queries]


def query_blocks(prefix_length: int, length: int) -> list[tuple[int, int]]:
    """Static query ranges [start, stop): the prefix, then the output in about equal blocks.

    >>> query_blocks(4, 5)
    [(0, 4), (4, 5)]
    """
    prefix_length = min(prefix_length, length)
    blocks = [(0, prefix_length)] if prefix_length else []
    output = length - prefix_length
    count = -(-output // QUERY_BLOCK)
    edges = [prefix_length + output * i // count for i in range(count + 1)] if count else []
    return blocks + list(zip(edges, edges[1:]))


def _causal(start: int, stop: int) -> jax.Array:
    """bool [1, stop - start, stop]: query start + i sees keys up to itself."""
    shape = (1, stop - start, stop)
    query = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return jax.lax.broadcasted_iota(jnp.int32, shape, 2) <= query + start


def scaled_dot_product(
    q_BxQxKxGxH: jax.Array, k_BxSxKxH: jax.Array, v_BxSxKxH: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """softmax(q k / sqrt(H)) v, scores and softmax in float32, [B, Q, K, G, H].

    `mask` is bool, broadcastable to [B, Q, S].  Weights are normalised after the value product,
    where there are H numbers per query instead of S.
    """
    weights = _weights(q_BxQxKxGxH, k_BxSxKxH, mask, "bskh")
    total_BxQxKxGx1 = jnp.sum(weights, axis=-1).transpose(0, 3, 1, 2)[..., None]
    o_BxQxKxGxH = jnp.einsum(
        "bkgqs,bskh->bqkgh", weights.astype(v_BxSxKxH.dtype), v_BxSxKxH, preferred_element_type=jnp.float32
    )
    return (o_BxQxKxGxH / total_BxQxKxGx1).astype(v_BxSxKxH.dtype)


def cached(q_BxQxKxGxH: jax.Array, k_BxKxCxH: jax.Array, v_BxKxCxH: jax.Array, mask_BxQxC: jax.Array) -> jax.Array:
    """`scaled_dot_product` over keys and values in the order of a cache, [B, Q, K, G, H]."""
    weights = _weights(q_BxQxKxGxH, k_BxKxCxH, mask_BxQxC, "bksh")
    # In the order of the product itself: XLA's CPU compiler cannot run one of bfloat16 that it has turned round.
    o_BxKxGxQxH = jnp.einsum(
        "bkgqs,bksh->bkgqh", weights.astype(v_BxKxCxH.dtype), v_BxKxCxH, preferred_element_type=jnp.float32
    )
    o_BxKxGxQxH = o_BxKxGxQxH / jnp.sum(weights, axis=-1, keepdims=True)
    return o_BxKxGxQxH.astype(v_BxKxCxH.dtype).transpose(0, 3, 1, 2, 4)


def _weights(q_BxQxKxGxH: jax.Array, k: jax.Array, mask: jax.Array | None, keys: str) -> jax.Array:
    """exp(q k / sqrt(H)) over the largest of a query, float32 [B, K, G, Q, S]; `keys`: the dims of k."""
    scale = q_BxQxKxGxH.shape[-1] ** -0.5
    scores = jnp.einsum(f"bqkgh,{keys}->bkgqs", q_BxQxKxGxH * scale, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, MASKED)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    return jnp.exp(scores - peak)
