"""Attention by definition, in NumPy: the dense oracle that kernels are compared with.

q [B, S, K, G, H] for K key-value heads with G query heads each, k and v [B, S, K, H], visible bool
[B, S, S]; in float64 if they are.
"""

from __future__ import annotations

import numpy as np


def visibility(layout):
    """The attention pattern of a prefix LM by definition, bool [length, length]: query i sees key j."""
    i, j = np.indices((layout.length, layout.length))
    return (j <= i) | ((i < layout.prefix_length) & (j < layout.prefix_length))


def dense(q, k, v, visible):
    """[B, S, K, G, H] by definition; `visible` bool [B, S, S]."""
    scores = np.einsum("bqkgh,bskh->bkgqs", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(visible[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bkgqs,bskh->bqkgh", weights, v)


def dense_gradients(q, k, v, visible, cotangent):
    """Gradients of sum(dense * cotangent), derived by hand."""
    scale = 1 / np.sqrt(q.shape[-1])
    scores = np.where(visible[:, None, None], np.einsum("bqkgh,bskh->bkgqs", q, k) * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("bqkgh,bskh->bkgqs", cotangent, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    return (
        np.einsum("bkgqs,bskh->bqkgh", ds, k),
        np.einsum("bkgqs,bqkgh->bskh", ds, q),
        np.einsum("bkgqs,bqkgh->bskh", p, cotangent),
    )
