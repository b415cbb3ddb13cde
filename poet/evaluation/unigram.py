"""The unigram baseline: how well codes are predicted by how often each was seen in training.

Counted are the tokens that carry loss, apart for every range of legal ids: levels of sound and the
kinds of a task's output are told apart, since a position tells them.  Given frames, boundary tokens
and padding count neither in training nor in what is scored.
"""

from __future__ import annotations

import collections
from typing import Any, Iterable, Iterator, Mapping

import numpy as np

from poet.evaluation.image_metrics import ratio_and_error
from poet.tasks.layout import Layout
from poet.spec.vocabulary import Range

# Training clips that are counted, at most, for each task.
TRAINING_CLIPS = 2048

Batches = Iterable[Mapping[str, np.ndarray]]


def cross_entropies(
    training: Batches, scored: Batches, layout: Layout
) -> dict[str, tuple[float, float | None]]:
    """Output stream -> mean cross-entropy of the scored tokens in nats, and its standard error.

    The distribution of a range of K ids is (count + 1) / (tokens + K) over the training batches.  The
    error is over the scored batches.  A stream without scored tokens is absent.
    """
    counts: dict[Range, np.ndarray] = {}
    for batch in training:
        for _, ids, labels_N in _labels(batch, layout):
            known = counts.setdefault(ids, np.zeros(ids.size, np.int64))
            known += np.bincount(labels_N - ids.low, minlength=ids.size)
    sums = collections.defaultdict(list)
    for batch in scored:
        parts: dict[str, np.ndarray] = {}
        for stream, ids, labels_N in _labels(batch, layout):
            seen = counts.get(ids, np.zeros(ids.size, np.int64))
            nats_N = np.log(seen.sum() + ids.size) - np.log(seen[labels_N - ids.low] + 1)
            parts[stream] = parts.get(stream, 0) + np.array([nats_N.sum(), len(nats_N)])
        for stream, part in parts.items():
            sums[stream].append(part)
    found = {stream: np.array(parts).T for stream, parts in sums.items()}
    return {stream: ratio_and_error(*parts) for stream, parts in found.items() if parts[1].sum()}


def _labels(
    batch: Mapping[str, Any], layout: Layout
) -> Iterator[tuple[str, Range, np.ndarray]]:
    """(stream, its legal ids, the tokens that carry loss) of every loss span of a batch."""
    for index, span in enumerate(layout.loss_spans):
        labels_BxN = np.asarray(batch["tokens"])[:, span.start : span.stop]
        counts_BxN = np.arange(span.segment.length) >= np.asarray(batch["known"])[:, index, None]
        if span.segment.padding is not None:
            counts_BxN &= labels_BxN != span.segment.padding
        yield span.segment.stream, span.segment.ids, labels_BxN[counts_BxN]
