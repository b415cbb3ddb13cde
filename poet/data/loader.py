"""Batches of a run: one endless, resumable iterator per group, and finite ones for evaluation.

B sequences, S positions of the layout, P loss spans, L text positions, E width of a text state.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from poet.data.backend import tensorflow
from poet.data.converter import convert
from poet.data.iterator import Batches, owns
from poet.data.mixture import MixtureIterator, group_mixture, group_taken
from poet.data.records import batches_of
from poet.data.tasks import evaluation_task
from poet.distributed.processes import Share
from poet.spec import TextSpec, UserError
from poet.tasks.layout import Layout
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

PREFETCH = 2


def batches(resolved: Resolved, split: str = "train", *, share: Share = Share()) -> dict[str, MixtureIterator]:
    """Group name -> endless iterator over this process's slice of the group's batches.

    A batch holds tokens int32 [B, S], known int32 [B, P] (number of conditioning codes at the start
    of each loss span), and for layouts with text, text_states float16 [B, L, E] (zeros beyond the text) and
    text_length int32 [B] (0: no text).  Every epoch of a task visits all clips of the split in its own
    order, a function of DATA.seed and the position; any number of processes together hold the same
    rows in the same order.

    Raises:
      UserError: a group's batch does not divide over the slices.
    """
    iterators = {}
    for group, size in resolved.batches.items():
        share.rows(size, f"the batch of group {group}")
        rates = resolved.groups[group][1]
        build = functools.partial(_group_batches, resolved, group, split, size, share)
        taken = functools.partial(group_taken, resolved.spec.data.seed, group, rates)
        iterators[group] = MixtureIterator(build, taken, size)
    return iterators


def _group_batches(
    resolved: Resolved, group: str, split: str, batch: int, share: Share, examples: int, starts: Mapping[str, int]
) -> Batches:
    """The batches of one process, after all processes together have taken `examples`, of which
    `starts` belong to each task."""
    layout, rates = resolved.groups[group]
    mixture = group_mixture(resolved, group, rates, examples, starts, owns(share, batch))
    dataset = _model_features(mixture, split, layout, resolved.spec.text)
    return batches_of(_batched(dataset, len(share.rows(batch))))


def _model_features(provider: Any, split: str, layout: Layout, text: TextSpec) -> Any:
    """Dataset of unbatched model features of a `seqio.Task` or `seqio.Mixture`."""
    dataset = provider.get_dataset(
        split=split,
        shuffle=False,
        num_epochs=1,  # a training source is endless by itself
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    return convert(dataset, layout, text)


def _batched(dataset: Any, size: int) -> Any:
    options = tensorflow().data.Options()
    options.deterministic = True
    dataset = dataset.batch(size, drop_remainder=True).prefetch(PREFETCH)
    return dataset.with_options(options)


def eval_batches(
    resolved: Resolved, task: str, split: str, batch: int, batches: int, *, share: Share = Share()
) -> Iterator[Mapping[str, np.ndarray]]:
    """At most `batches` whole batches of `batch` examples of one task, always the same ones.

    Of each, the rows of this process's slice.

    In file order, with every text, and with `Resolved.eval_latents` conditioning latent frames.
    The last, partial batch of a split is dropped.

    Raises:
      UserError: the split holds less than one batch, or EVAL.conditioning_frames does not fit the task.
    """
    declared = get_task(task)
    layout = resolved.layout(declared)
    rows, own = len(share.rows(batch, "EVAL.batch")), owns(share, batch)
    kept = tensorflow().data.Dataset.counter().map(own) if own else None
    provider = evaluation_task(resolved, declared, kept)
    dataset = _model_features(provider, split, layout, resolved.spec.text)
    # A process may hold all of its rows of a partial batch.
    whole = provider.num_input_examples(split) // batch
    result = batches_of(_batched(dataset, rows).take(min(batches, whole)))
    first = next(result, None)
    if first is None:
        raise UserError(
            f"split {split!r} of {resolved.spec.data.store} holds less than one batch of {batch}: "
            "choose a smaller EVAL.batch or another EVAL.split"
        )
    return _chain(first, result)


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
