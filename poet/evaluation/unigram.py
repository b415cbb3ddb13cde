"""The unigram baseline: how well codes are predicted by how often each was seen in training.

Counted are the tokens that carry loss, apart for every range of legal ids: levels of sound and the
kinds of a task's output are separate, since the position determines them.  Conditioning frames, boundary tokens
and padding count neither in training nor in what is scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from poet.spec.vocabulary import Range
from poet.tasks.layout import Layout

# Training clips that are counted, at most, for each task.
TRAINING_CLIPS = 2048


@dataclasses.dataclass(frozen=True)
class Unigram:
    """How often each id of each range occurs, int64 (range.size,).

    The distribution of a range of K ids is (count + 1) / (tokens + K).
    """

    counts: Mapping[Range, np.ndarray]

    @classmethod
    def of(cls, training: Iterable[Mapping[str, np.ndarray]], layout: Layout) -> Unigram:
        """Counted over batches."""
        counts: dict[Range, np.ndarray] = {}
        for batch in training:
            for _, ids, labels_BxN, scored_BxN in _labels(batch, layout):
                known = counts.setdefault(ids, np.zeros(ids.size, np.int64))
                known += np.bincount(labels_BxN[scored_BxN] - ids.low, minlength=ids.size)
        return cls(counts)

    def nats(self, batch: Mapping[str, np.ndarray], layout: Layout) -> dict[str, dict[str, np.ndarray]]:
        """Output stream -> `unigram_nats`, float64 [B], sums over the scored tokens of each example, and
        `unigram_count`, how many they are."""
        found: dict[str, np.ndarray] = {}
        for stream, ids, labels_BxN, scored_BxN in _labels(batch, layout):
            seen = self.counts.get(ids, np.zeros(ids.size, np.int64))
            nats_K = np.log(seen.sum() + ids.size) - np.log(seen + 1)
            nats_BxN = np.where(scored_BxN, nats_K[np.where(scored_BxN, labels_BxN - ids.low, 0)], 0)
            part_2xB = np.stack([nats_BxN.sum(1), scored_BxN.sum(1)])
            found[stream] = found.get(stream, 0) + part_2xB
        return {stream: dict(zip(("unigram_nats", "unigram_count"), sums)) for stream, sums in found.items()}


def _labels(batch: Mapping[str, Any], layout: Layout) -> Iterator[tuple[str, Range, np.ndarray, np.ndarray]]:
    """(stream, its legal ids, labels, which of them carry loss), [B, N], of every loss span of a batch."""
    for index, span in enumerate(layout.loss_spans):
        labels_BxN = np.asarray(batch["tokens"])[:, span.start : span.stop]
        scored_BxN = np.arange(span.segment.length) >= np.asarray(batch["known"])[:, index, None]
        if span.segment.padding is not None:
            scored_BxN &= labels_BxN != span.segment.padding
        yield span.segment.stream, span.segment.ids, labels_BxN, scored_BxN
