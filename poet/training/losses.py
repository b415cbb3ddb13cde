"""Next-token cross-entropy of a prefix LM over the ids that are legal at each position.

The loss covers output positions whose ids are to be predicted.  Boundary tokens are forced by the
layout and carry none, which departs from the paper (its loss covers the whole output), and neither do
the tokens that open the output as given and those that fill a written text up.  With `loss_vocabulary="full"` the softmax runs over every
id, as in the paper; with "legal" over the range of the position alone, which is what sampling uses.

Shape suffixes: B batch, S sequence, N positions of a span, D width, V rows of a table.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp

from poet.mesh import batch_ways
from poet.models.transformer import Model, Params, Text, project
from poet.tasks.layout import Layout, Span
from poet.vocabulary import Range

# Logits of one device that may exist at once, in elements (float32: 1 GiB).  A span above it is
# cut along its positions and its logits are recomputed in the backward pass.
LOGITS_BUDGET = 2**28


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over the weighted tokens of one stream, float32 scalars.

    Attributes:
      loss: cross-entropy in nats.
      z_loss: squared log-partition, without its coefficient.
      correct: tokens whose label has the largest logit (ties count).
      count: weights.
    """

    loss: jax.Array
    z_loss: jax.Array
    correct: jax.Array
    count: jax.Array

    def __add__(self, other: Sums) -> Sums:
        return jax.tree.map(jnp.add, self, other)


def stream_sums(
    model: Model,
    params: Params,
    batch: Mapping[str, jax.Array],
    layout: Layout,
    *,
    loss_vocabulary: str = "legal",
) -> dict[str, Sums]:
    """Sums per output stream of a batch.

    Args:
      batch: `tokens` int32 [B, S]; `known` int32 [B, P], leading tokens of each of P loss spans
        that are given; for text layouts `text_states` [B, L, E] and `text_length` int32 [B].
      loss_vocabulary: "legal" or "full" (see the module).
    """
    tokens_BxS = batch["tokens"]
    x_BxOxD = model.hidden(params, tokens_BxS, layout, text_of(batch, layout))
    sums: dict[str, Sums] = {}
    for index, span in enumerate(layout.loss_spans):
        start, stop = span.start - layout.prefix_length, span.stop - layout.prefix_length
        part = _span_sums(
            model,
            params,
            x_BxOxD[:, start:stop],
            tokens_BxS[:, span.start : span.stop],
            span_weights(span, batch["known"][:, index], tokens_BxS[:, span.start : span.stop]),
            span.segment.ids,
            loss_vocabulary,
        )
        stream = span.segment.stream
        sums[stream] = sums[stream] + part if stream in sums else part
    return sums


def text_of(batch: Mapping[str, jax.Array], layout: Layout) -> Text | None:
    """Text states and mask of a batch; None for a layout without text."""
    if layout.text_span is None:
        return None
    states_BxLxE, length_B = batch["text_states"], batch["text_length"]
    return states_BxLxE, jnp.arange(states_BxLxE.shape[1])[None] < length_B[:, None]


def span_weights(span: Span, known_B: jax.Array, labels_BxN: jax.Array) -> jax.Array:
    """float32 [B, N]: 0 for the given tokens that open the span and for padding, else 1."""
    weighted_BxN = jnp.arange(span.segment.length)[None] >= known_B[:, None]
    if span.segment.padding is not None:
        weighted_BxN &= labels_BxN != span.segment.padding
    return weighted_BxN.astype(jnp.float32)


def objective(sums: Mapping[str, Sums], z_loss: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss per weighted token of the global batch, with metrics.

    Returns the objective (cross-entropy + z_loss * mean squared log-partition) and `loss`
    (cross-entropy alone, nats), `loss/<stream>` and `accuracy/<stream>`.
    """
    total = jax.tree.map(lambda *leaves: sum(leaves), *sums.values())
    count = jnp.maximum(total.count, 1.0)
    metrics = {"loss": total.loss / count}
    for stream, part in sums.items():
        metrics[f"loss/{stream}"] = part.loss / jnp.maximum(part.count, 1.0)
        metrics[f"accuracy/{stream}"] = part.correct / jnp.maximum(part.count, 1.0)
    return (total.loss + z_loss * total.z_loss) / count, metrics


def _span_sums(
    model: Model,
    params: Params,
    x_BxNxD: jax.Array,
    labels_BxN: jax.Array,
    weights_BxN: jax.Array,
    ids: Range,
    loss_vocabulary: str,
) -> Sums:
    """Sums of one span, in chunks of positions where its logits would be large."""
    if loss_vocabulary == "legal":
        ranges = [ids]
    else:
        ranges = list(model.vocabulary.tables.values())
    heads = [(r.low, model.head(params, r)) for r in ranges]

    def chunk_sums(x, labels, weights):
        return _sums(*cross_entropy(x, heads, labels), weights)

    batch, length = labels_BxN.shape
    width = sum(r.size for r in ranges)
    chunks = chunk_count(length, batch * width // _ways())
    if chunks == 1:
        return chunk_sums(x_BxNxD, labels_BxN, weights_BxN)
    return _scan_chunks(chunk_sums, chunks, x_BxNxD, labels_BxN, weights_BxN)


def chunk_count(length: int, elements_per_position: int) -> int:
    """Smallest divisor of `length` that keeps one chunk's logits within the budget.

    >>> chunk_count(1280, 4 * 2**18)
    5
    """
    for chunks in range(1, length + 1):
        if length % chunks == 0 and length // chunks * elements_per_position <= LOGITS_BUDGET:
            return chunks
    return length


def _ways() -> int:
    """Devices among which the logits of a batch are divided."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else batch_ways(mesh) * mesh.shape["tensor"]


def _scan_chunks(chunk_sums: Callable[..., Sums], chunks: int, *arrays: jax.Array) -> Sums:
    """Adds `chunk_sums` over equal chunks of dim 1, keeping no logits."""

    def cut(a: jax.Array) -> jax.Array:
        split = a.reshape(a.shape[0], chunks, a.shape[1] // chunks, *a.shape[2:])
        return jnp.moveaxis(split, 1, 0)

    def body(total: Sums, pieces: Any) -> tuple[Sums, None]:
        return total + chunk_sums(*pieces), None

    zero = Sums(*(jnp.zeros((), jnp.float32) for _ in dataclasses.fields(Sums)))
    return jax.lax.scan(jax.checkpoint(body), zero, tuple(cut(a) for a in arrays))[0]


def _sums(
    nll_BxN: jax.Array, log_z_BxN: jax.Array, hit_BxN: jax.Array, weights_BxN: jax.Array
) -> Sums:
    return Sums(
        loss=jnp.sum(nll_BxN * weights_BxN),
        z_loss=jnp.sum(log_z_BxN**2 * weights_BxN),
        correct=jnp.sum(hit_BxN * weights_BxN),
        count=jnp.sum(weights_BxN),
    )


def cross_entropy(
    x_BxNxD: jax.Array, heads: list[tuple[int, jax.Array]], labels_BxN: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropy in float32 over the union of head ranges.

    Args:
      heads: (first id, rows_VxD) of each range; rows may be split over `tensor`.
      labels_BxN: ids; each lies in exactly one of the ranges.

    Returns:
      Cross-entropy, log-partition, and 1.0 where the label has the largest logit, each [B, N].
    """
    parts = [_slice_terms(project(x_BxNxD, rows), labels_BxN - low) for low, rows in heads]
    peaks, log_zs, label_logits = zip(*parts)
    peak_BxN = jax.tree.reduce(jnp.maximum, list(peaks))
    log_z_BxN = log_zs[0] if len(log_zs) == 1 else jax.nn.logsumexp(jnp.stack(log_zs), axis=0)
    label_BxN = sum(label_logits)
    return log_z_BxN - label_BxN, log_z_BxN, (label_BxN >= peak_BxN).astype(jnp.float32)


def _slice_terms(
    logits_BxNxV: jax.Array, labels_BxN: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Largest logit, log-sum-exp, and the label's logit (0 if it lies outside this range).

    The label's logit is a masked sum: picking it by index is not defined on logits that are split
    over the vocabulary.
    """
    peak = jax.lax.stop_gradient(jnp.max(logits_BxNxV, axis=-1, keepdims=True))
    log_z_BxN = jnp.log(jnp.sum(jnp.exp(logits_BxNxV - peak), axis=-1)) + peak[..., 0]
    iota = jax.lax.broadcasted_iota(jnp.int32, logits_BxNxV.shape, 2)
    is_label = iota == labels_BxN[..., None]
    return peak[..., 0], log_z_BxN, jnp.sum(jnp.where(is_label, logits_BxNxV, 0.0), axis=-1)
