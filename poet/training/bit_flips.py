"""Visual codes with some of their bits flipped: what a model reads in training, so that in sampling it bears
with its own mistakes (InfinityStar, 2511.04675).

Shape suffixes: B batch, S sequence, N positions of a segment, K bits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from poet.tasks.layout import Layout


def flipped(key: jax.Array, tokens_BxS: jax.Array, layout: Layout, most: float) -> jax.Array:
    """Ids int32 [B, S] like `tokens_BxS`; in visual codes each bit is flipped with a probability that is sampled
    uniformly below `most` for each clip.  Codes that are not given stay so."""
    share_key, bits_key = jax.random.split(key)
    share_B = jax.random.uniform(share_key, tokens_BxS.shape[:1], maxval=most)
    pieces = []
    for number, span in enumerate(layout.spans):
        ids, tokens_BxN = span.segment.ids, tokens_BxS[:, span.start : span.stop]
        if ids.table == "visual":
            noise_BxN = _bits(jax.random.fold_in(bits_key, number), share_B, tokens_BxN, ids.size)
            codes_BxN = tokens_BxN - ids.low
            changed_BxN = (codes_BxN ^ noise_BxN) + ids.low
            tokens_BxN = jnp.where(codes_BxN < 0, tokens_BxN, changed_BxN)
        pieces.append(tokens_BxN)
    return jnp.concatenate(pieces, axis=1)


def _bits(key: jax.Array, share_B: jax.Array, like_BxN: jax.Array, size: int) -> jax.Array:
    """int32 [B, N] below `size` = 2^K, each of K bits set by the chance of its clip."""
    bits = size.bit_length() - 1
    chance_BxNxK = jax.random.uniform(key, (*like_BxN.shape, bits))
    set_BxNxK = (chance_BxNxK < share_B[:, None, None]).astype(jnp.int32)
    return jnp.sum(set_BxNxK << jnp.arange(bits), axis=-1)
