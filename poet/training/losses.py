"""Next-token cross-entropy of a prefix LM over the ids that are legal at each position.

The loss covers the predicted output positions.  Boundary tokens are forced by the layout and carry
none, unlike in the paper, whose loss covers the whole output.  Conditioning tokens that open the output
and the padding of generated text carry none either.  With `loss_vocabulary="full"` the softmax runs over
every id, as in the paper; with "legal" only over the range of the position, as in sampling.

Shape suffixes: B batch, S sequence, N positions of a span, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from poet.models.tables import output_tables
from poet.models.transformer import Model, Params, Text
from poet.spec.vocabulary import Range
from poet.tasks.layout import Layout, Span
from poet.training.cross_entropy import Sums, Tokens, Values, cross_entropy
from poet.training.trainable import Mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenScores:
    """Tokens of one loss span, float32 [B, N]; all three are 0 where a token carries no loss.

    Attributes:
      loss: cross-entropy in nats.
      correct: 1 where the label has the largest logit (ties count).
      count: 1 where the token carries loss.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


def stream_sums(
    model: Model,
    params: Params,
    batch: Mapping[str, jax.Array],
    layout: Layout,
    *,
    loss_vocabulary: str = "legal",
    z_loss: float = 0.0,
) -> dict[str, Sums]:
    """Sums per output stream of a batch.

    Args:
      batch: `tokens` int32 [B, S]; `known` int32 [B, P], leading tokens of each of P loss spans
        that are given; for text layouts `text_states` [B, L, E] and `text_length` int32 [B].  `read` int32
        [B, S], where it is given, is what the model reads instead of the tokens.  `beta` float32 [B], where it is
        given, mixes logits with those without text (`poet.models.guidance`).
      loss_vocabulary: "legal" or "full" (see the module).
      z_loss: coefficient of the squared log-partition in the objective.
    """
    sums: dict[str, Sums] = {}
    for span, part, _ in _scored(model, params, batch, layout, loss_vocabulary, z_loss):
        stream = span.segment.stream
        sums[stream] = sums[stream] + part if stream in sums else part
    return sums


def token_scores(
    model: Model, params: Params, batch: Mapping[str, jax.Array], layout: Layout, *, loss_vocabulary: str = "legal"
) -> tuple[TokenScores, ...]:
    """For each of `layout.loss_spans` the terms of `stream_sums`, token by token: [B, N] each, float32."""
    return tuple(scores for _, _, scores in _scored(model, params, batch, layout, loss_vocabulary, 0.0))


def _scored(
    model: Model, params: Params, batch: Mapping[str, jax.Array], layout: Layout, loss_vocabulary: str, z_loss: float
) -> Iterator[tuple[Span, Sums, TokenScores]]:
    """Every loss span with its sums and its tokens."""
    tokens_BxS, x_BxOxD = batch["tokens"], _states(model, params, batch, layout)
    for index, span in enumerate(layout.loss_spans):
        start, stop = span.start - layout.prefix_length, span.stop - layout.prefix_length
        labels_BxN = tokens_BxS[:, span.start : span.stop]
        weights_BxN = span_weights(span, batch["known"][:, index], labels_BxN)
        x_BxNxD = x_BxOxD[:, start:stop]
        if loss_vocabulary == "legal":
            ids = span.segment.ids
            part, each = chain_sums(model, params, x_BxNxD, labels_BxN, weights_BxN, ids, z_loss)
        else:
            ranges = tuple(model.vocabulary.tables.values())
            part, each = cross_entropy(
                x_BxNxD, output_tables(params), labels_BxN, weights_BxN, ranges=ranges, z_loss=z_loss
            )
        yield span, part, TokenScores(each.loss * weights_BxN, each.hit * weights_BxN, weights_BxN)


def _states(model: Model, params: Params, batch: Mapping[str, jax.Array], layout: Layout) -> jax.Array:
    """States [B, O, D] that predict the output.

    With `beta` they are mixed with those without text, through which no gradient flows.  Logits are linear in them, so
    that mixes logits.
    """
    read_BxS, text = batch.get("read", batch["tokens"]), text_of(batch, layout)
    if text is None or "beta" not in batch:
        return model.hidden(params, read_BxS, layout, text)
    states_BxLxE, mask_BxL = text
    x_BxOxD = model.hidden(params, read_BxS, layout, (*text, batch["beta"]))
    without = model.hidden(jax.lax.stop_gradient(params), read_BxS, layout, (states_BxLxE, jnp.zeros_like(mask_BxL)))
    beta_Bx1x1 = batch["beta"][:, None, None].astype(x_BxOxD.dtype)
    return beta_Bx1x1 * x_BxOxD + (1 - beta_Bx1x1) * jax.lax.stop_gradient(without)


def chain_sums(
    model: Model,
    params: Params,
    x_BxNxD: jax.Array,
    labels_BxN: jax.Array,
    weights_BxN: jax.Array,
    ids: Range,
    z_loss: float,
    smoothing: float = 0.0,
) -> Values:
    """Sums over labels of one range and the labels one by one, by the chain rule over the factors of an id.

    A label is correct if every factor is, the later ones conditioned on the label's own leading bits:
    those that greedy decoding finds.
    """
    factors, sums, tokens, right_BxN = model.factors(ids), [], [], weights_BxN
    for factor, sampled_BxN in zip(factors.ranges, factors.split(labels_BxN)):
        part, each = cross_entropy(
            x_BxNxD,
            output_tables(params),
            sampled_BxN,
            weights_BxN,
            ranges=(factor,),
            z_loss=z_loss,
            smoothing=smoothing,
        )
        sums.append(part)
        tokens.append(each)
        right_BxN = right_BxN * each.hit
        if factor is not factors.ranges[-1]:
            x_BxNxD = model.given(params, x_BxNxD, sampled_BxN)
    found = Sums(
        objective=sum(part.objective for part in sums),
        loss=sum(part.loss for part in sums),
        correct=jnp.sum(right_BxN),
        count=sums[0].count,
    )
    hits = (each.hit for each in tokens)
    return found, Tokens(sum(each.loss for each in tokens), functools.reduce(jnp.multiply, hits))


def text_of(batch: Mapping[str, jax.Array], layout: Layout) -> Text | None:
    """Text states [B, L, E] and mask [B, L] of a batch; None for a layout without text."""
    if layout.text_span is None:
        return None
    states_BxLxE, length_B = batch["text_states"], batch["text_length"]
    return states_BxLxE, jnp.arange(states_BxLxE.shape[1])[None] < length_B[:, None]


def filled(batch: Mapping[str, jax.Array], layout: Layout) -> jax.Array:
    """Fraction of the batch's positions that are not padding, float32 scalar; only text has padding."""
    batch_size = batch["tokens"].shape[0]
    empty = jnp.zeros((), jnp.float32)
    if layout.text_span is not None:
        length = layout.text_span.segment.length
        empty += jnp.sum(length - jnp.minimum(batch["text_length"], length))
    for span in layout.loss_spans:
        if span.segment.padding is not None:
            labels_BxN = batch["tokens"][:, span.start : span.stop]
            empty += jnp.sum(labels_BxN == span.segment.padding)
    return 1 - empty / (batch_size * layout.length)


def span_weights(span: Span, known_B: jax.Array, labels_BxN: jax.Array) -> jax.Array:
    """float32 [B, N]: 0 for conditioning tokens at the start of the span and for padding, else 1."""
    weighted_BxN = jnp.arange(span.segment.length)[None] >= known_B[:, None]
    if span.segment.padding is not None:
        weighted_BxN &= labels_BxN != span.segment.padding
    return weighted_BxN.astype(jnp.float32)


def total(sums: Mapping[str, Sums]) -> Sums:
    """The sums over all streams, each weighted by its tokens."""
    return jax.tree.map(lambda *leaves: sum(leaves), *sums.values())


def means(sums: Mapping[str, Sums]) -> dict[str, Mean]:
    """`loss` (cross-entropy in nats per token), `loss/<stream>` and `accuracy/<stream>`."""
    every = total(sums)
    metrics = {"loss": Mean(every.loss, every.count)}
    for stream, part in sums.items():
        metrics[f"loss/{stream}"] = Mean(part.loss, part.count)
        metrics[f"accuracy/{stream}"] = Mean(part.correct, part.count)
    return metrics
