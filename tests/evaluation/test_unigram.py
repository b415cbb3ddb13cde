"""The unigram baseline against what is known of it."""

from __future__ import annotations

import numpy as np
import pytest

from poet.evaluation import metric
from poet.evaluation.metrics import tokens
from poet.evaluation.unigram import Unigram
from poet.spec.vocabulary import Range
from poet.tasks.layout import Layout, Segment

CODES, LENGTH, PAD = 100, 50, 100


def layout(padded: bool = False) -> Layout:
    ids = Range(low=0, high=CODES + padded, table="visual", table_low=0)
    stream = "pieces" if padded else "video"
    return Layout((Segment(stream=stream, part=0, length=LENGTH, role="output", ids=ids, grid=(LENGTH, 1, 1)),))


def batches(seed: int, count: int, known: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"tokens": rng.integers(0, CODES, (4, LENGTH)), "known": np.full((4, 1), known)} for _ in range(count)]


def cross_entropies(training: list, scored: list, layout: Layout) -> dict[str, metric.Summary]:
    """Output stream -> nats of a scored token."""
    unigram = Unigram.of(training, layout)
    steps = [
        {stream: fields | {"places": 4 * i + np.arange(4), "groups": [i] * 4} for stream, fields in found.items()}
        for i, found in enumerate(unigram.nats(batch, layout) for batch in scored)
    ]
    return {stream: found["unigram_nats"].summary for stream, found in metric.walk(steps, [tokens.UNIGRAM]).items()}


def test_few_scored_tokens_do_not_lower_it() -> None:
    """Uniform codes cost log K however few are scored; their plug-in entropy is far lower."""
    scored = batches(1, 1)
    found = cross_entropies(batches(0, 200), scored, layout())["video"]
    assert found.value == pytest.approx(np.log(CODES), abs=0.02) and found.error is None
    shares = np.unique(scored[0]["tokens"], return_counts=True)[1] / (4 * LENGTH)
    assert -(shares * np.log(shares)).sum() < found.value - 0.1


def test_given_tokens_count_nowhere() -> None:
    training, scored = batches(0, 3, known=20), batches(1, 3, known=20)
    want = cross_entropies(training, scored, layout())
    for batch in training + scored:
        batch["tokens"][:, :20] = 7
    assert cross_entropies(training, scored, layout()) == want
    assert cross_entropies(training, batches(1, 2, known=LENGTH), layout())["video"].value is None
