"""Each poet task as a `seqio.Task` over a token store.

The tasks are built when asked for and never enter seqio's global registries, so that several stores
and experiments live in one process without a clash of names.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from poet.data.backend import seqio, tensorflow
from poet.data.records import endless_passes, example_seed, list_files, one_pass, stream_seed
from poet.store.reader import folder_of
from poet.streams import text
from poet.streams.base import CONDITION, HIDDEN
from poet.tasks.layout import Layout
from poet.tasks.registry import Task
from poet.tasks.resolved import Resolved

Example = dict[str, Any]
Preprocessor = Callable[[Any], Any]


def stored_features(task: Task, layout: Layout) -> tuple[str, ...]:
    """Features of the store that the batches of a task in its layout are made from."""
    names = {task.stored(stream) for stream in layout.streams}
    if layout.text_span:
        names |= text.FEATURES.keys()
    return tuple(sorted(name for name in (*names, *flags(task)) if name))


def flags(task: Task) -> tuple[str, ...]:
    """Features of a store that say whether a clip has the streams of a task."""
    return tuple(sorted({stream.flag for stream in (*task.conditions, *task.predicted) if stream.flag}))


@functools.cache
def _source_class() -> type:
    """`seqio.TfdsDataSource` that reads in the order of `poet.data.records`."""

    class StoreSource(seqio().TfdsDataSource):
        """Records of a token store with `epoch` and `index`, decoding only the named features.

        An endless source begins at record `start`; with `start` None it makes one pass in file
        order.  `kept`, a dataset of booleans, marks the records to yield; None: all of them.
        """

        def __init__(self, folder: str, features: tuple[str, ...], start: int | None, seed_2: Any, kept: Any):
            # seqio keeps a builder for each name of a folder: one that is relative would outlive a change of directory.
            place = os.path.abspath(folder_of(folder))
            super().__init__(tfds_data_dir=place, read_only=True, caching_permitted=False)
            self._features, self._start, self._seed_2 = features, start, seed_2
            self._kept = kept

        def get_dataset(self, split="train", shuffle=False, seed=None, shard_info=None, **_):
            builder = self.tfds_dataset.builder
            files = list_files(builder, split)
            if self._start is None:
                records = one_pass(files, self._kept)
            else:
                records = endless_passes(files, self._seed_2, self._start, self._kept)
            return _decode(builder.info.features, self._features)(records)

    return StoreSource


def _decode(features: Any, names: tuple[str, ...]) -> Preprocessor:
    import tensorflow_datasets as tfds

    wanted = tfds.decode.PartialDecoding(dict.fromkeys(names, True)).extract_features(features)

    def decode(example: Example) -> Example:
        values = wanted.deserialize_example(example["record"])
        return {**values, "epoch": example["epoch"], "index": example["index"]}

    return mapped(decode)


def mapped(function: Callable[[Example], Example]) -> Preprocessor:
    """A preprocessor that applies `function` to every example, in parallel and in order."""
    tf = tensorflow()
    plain = tf.autograph.experimental.do_not_convert(function)
    return lambda dataset: dataset.map(plain, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def cut_streams(task: Task, layout: Layout) -> Callable[[Example], Example]:
    """Adds every stream of the layout: int32 [elements], the leading local codes of each of its parts."""
    tf = tensorflow()

    def cut(name: str, size: int, example: Example) -> Any:
        stored = task.stored(name)
        if stored is None:
            codes = tf.zeros([size], tf.int32)
        else:
            parts = sum(s.stream == name for s in layout.segments)
            codes = tf.reshape(tf.reshape(example[stored], [parts, -1])[:, : size // parts], [-1])
        return tf.ensure_shape(tf.cast(codes, tf.int32), [size])

    def function(example: Example) -> Example:
        streams = {name: cut(name, size, example) for name, size in layout.streams.items()}
        return {**example, **streams}

    return function


def give_latents(
    low: int, high: int, codes_LxP: Sequence[Sequence[int]], seed_2: Any, openings: Mapping[str, np.ndarray] = {}
) -> Callable[[Example], Example]:
    """Adds `known`, int32 [P]: numbers of conditioning codes at the start of each loss span.

    They are those of `codes_LxP` for a number of latents low..high, which is uniform and sampled anew
    in every epoch.  `openings`, bool [L, N], mark the codes of streams in the prefix that are visible with them; the
    others are hidden.
    """
    tf = tensorflow()
    table = np.asarray(codes_LxP, np.int32)

    def function(example: Example) -> Example:
        seed = example_seed(seed_2, example["epoch"], example["index"])
        latents = tf.random.stateless_uniform([], seed, low, high + 1, tf.int32)
        found = {**example, "known": tf.constant(table)[latents]}
        for name, given_LxN in openings.items():
            found[name] = tf.where(tf.constant(given_LxN)[latents], example[name], HIDDEN)
        return found

    return function


def openings_given(resolved: Resolved, task: Task, layout: Layout, latents: int) -> dict[str, np.ndarray]:
    """Stream that repeats the opening of an output -> bool [L + 1, N]: visible codes by 0..L conditioning latents."""
    found = {}
    for stream in task.openings:
        name = stream.called(CONDITION)
        lengths = [s.length for s in layout.segments if s.stream == name]
        if lengths:
            given = [stream.known(resolved.format, n) for n in range(latents + 1)]
            found[name] = np.array([np.concatenate([np.arange(m) < n for m in lengths]) for n in given])
    return found


def skip_clips_without(flag: str, layout: Layout) -> Callable[[Example], Example]:
    """Makes all codes of a clip that lacks a stream, such as sound, conditioning codes, so that it has no loss."""
    tf = tensorflow()
    whole = np.array([span.segment.length for span in layout.loss_spans], np.int32)

    def function(example: Example) -> Example:
        return {**example, "known": tf.where(example[flag] > 0, example["known"], whole)}

    return function


def hide_text(fraction: float, seed_2: Any) -> Callable[[Example], Example]:
    """Sets `text_length` to 0 for a fraction of the examples, sampled anew in every epoch."""
    tf = tensorflow()

    def function(example: Example) -> Example:
        seed = example_seed(seed_2, example["epoch"], example["index"])
        shown = tf.random.stateless_uniform([], seed) >= fraction
        length = tf.cast(example[text.LENGTH], tf.int32)
        return {**example, text.LENGTH: tf.where(shown, length, 0)}

    return function


def hide_condition(stream: str, fraction: float, seed_2: Any) -> Callable[[Example], Example]:
    """Hides all codes of a stream of the condition for a fraction of the examples, sampled anew in every epoch."""
    tf = tensorflow()

    def function(example: Example) -> Example:
        seed = example_seed(seed_2, example["epoch"], example["index"])
        kept = tf.random.stateless_uniform([], seed) >= fraction
        return {**example, stream: tf.where(kept, example[stream], HIDDEN)}

    return function


def task_features(layout: Layout) -> dict[str, tuple[str, int]]:
    """Feature -> (dtype name, rank) of an example of this layout, after its preprocessors."""
    features = dict.fromkeys((*layout.streams, "known"), ("int32", 1))
    return features | (text.FEATURES if layout.text_span else {})


def training_task(resolved: Resolved, task: Task, start: int, kept: Any = None) -> Any:
    """`seqio.Task`: endless, in random order, with random conditioning latents and dropped texts.

    Args:
      start: examples of this task that all processes together have taken.
      kept: dataset of booleans: the examples from there on that this process loads; None: all.
    """
    data = resolved.spec.data

    def seed_2(use: str) -> Any:
        return stream_seed(data.seed, f"{task.name}/{use}")

    return _build(
        resolved,
        task,
        resolved.conditioning_range(task),
        start=start,
        kept=kept,
        seed_2=seed_2,
        dropout=data.text_dropout,
        condition_dropout=data.condition_dropout,
    )


def evaluation_task(resolved: Resolved, task: Task, kept: Any = None) -> Any:
    """`seqio.Task`: one pass in file order, with all texts and a fixed number of conditioning latents.

    `kept` as in `training_task`.
    """
    latents = resolved.eval_latents(task)
    return _build(resolved, task, (latents, latents), kept=kept, dropout=0.0)


def _build(
    resolved: Resolved,
    task: Task,
    latents: tuple[int, int],
    *,
    start: int | None = None,
    kept: Any = None,
    seed_2: Callable[[str], Any] = functools.partial(stream_seed, 0),
    dropout: float,
    condition_dropout: float = 0.0,
) -> Any:
    layout, data = resolved.layout(task), resolved.spec.data
    codes_LxP = [resolved.conditioning_codes(task, n) for n in range(latents[1] + 1)]
    openings = openings_given(resolved, task, layout, latents[1])
    steps = [cut_streams(task, layout), give_latents(*latents, codes_LxP, seed_2("known"), openings)]
    if data.silent_clips == "skip":
        steps += [skip_clips_without(flag, layout) for flag in flags(task)]
    if condition_dropout:
        steps += [hide_condition(n, condition_dropout, seed_2(f"drop {n}")) for n in layout.given_streams]
    if layout.text_span:
        steps.append(hide_text(dropout, seed_2("text")))
    tf = tensorflow()
    return seqio().Task(
        task.name,
        source=_source_class()(data.store, stored_features(task, layout), start, seed_2("order"), kept),
        output_features={
            name: seqio().ContinuousFeature(dtype=tf.as_dtype(dtype), rank=rank)
            for name, (dtype, rank) in task_features(layout).items()
        },
        preprocessors=[mapped(step) for step in steps],
        shuffle_buffer_size=None,
    )
