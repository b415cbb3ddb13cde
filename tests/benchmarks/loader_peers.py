"""The pretraining mixture as seqio's packing and grain's first-fit read it: what poet does not do.

Both read the clips of one token store, make the whole sequence of a task from each, without the text
positions that a caption does not fill, and pack sequences into rows.  They carry ids alone.  Every
task has the share of the sequences that poet's schedule of groups gives it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from poet.data.tasks import cut_streams, stored_features
from poet.spec import Experiment
from poet.tasks import registry
from poet.tasks.layout import Layout
from poet.tasks.resolved import Resolved

BINS = 64  # Rows that first-fit fills at once.
ROWS = 8  # Of a batch.


@dataclasses.dataclass(frozen=True)
class Reader:
    """Batches, and a position to return to.

    Attributes:
      take: one batch -> (tokens that are no padding, positions, an array that tells it from others).
      state: the position, as it would be saved.
      restore: sets it on a fresh reader.
    """

    take: Callable[[], tuple[int, int, np.ndarray]]
    state: Callable[[], bytes]
    restore: Callable[[bytes], None]


def sequence_rates(experiment: Experiment) -> dict[str, float]:
    """Task -> its share of the sequences of the last phase of a run."""
    _, shares = Resolved(experiment).phases[-1]
    batches = Resolved(experiment).batches
    rates = {}
    for group, (_, tasks) in Resolved(experiment).groups.items():
        sequences = float(shares[group]) * batches[group]
        rates |= {name: sequences * rate / sum(tasks.values()) for name, rate in tasks.items()}
    return {name: rate / sum(rates.values()) for name, rate in rates.items()}


def unfilled(layout: Layout, text_length: int) -> slice:
    """Positions that a text of that many pieces leaves empty."""
    span = layout.text_span
    return slice(span.start + text_length, span.stop) if span else slice(0, 0)


# -------------------------------------------------------------------------------------------- seqio


def seqio_reader(experiment: Experiment, row: int, shuffle: bool) -> Reader:
    """`seqio.Mixture` -> `LMFeatureConverter(pack=True)`, batched."""
    import seqio
    import tensorflow as tf

    layouts = Resolved(experiment).layouts
    tasks = [(_seqio_task(experiment, name, layouts[name]), rate) for name, rate in sequence_rates(experiment).items()]
    mixture = seqio.Mixture("pretraining", tasks)
    lengths = {"targets": row}
    dataset = mixture.get_dataset(
        lengths,
        split="train",
        shuffle=shuffle,
        seed=0,
        num_epochs=None,
        log_mixing_proportions=False,
        try_in_mem_cache=False,
    )
    dataset = seqio.LMFeatureConverter(pack=True)(dataset, lengths)
    batches = iter(dataset.batch(ROWS, drop_remainder=True).prefetch(2))
    checkpoint = tf.train.Checkpoint(batches=batches)

    def take() -> tuple[int, int, np.ndarray]:
        batch = next(batches)
        ids, segments = (batch[f"decoder_{name}"].numpy() for name in ("target_tokens", "segment_ids"))
        return int(np.count_nonzero(segments)), segments.size, ids

    def state() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write(f"{folder}/state")
            return _pack_files(pathlib.Path(folder))

    def restore(value: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            _unpack_files(value, pathlib.Path(folder))
            checkpoint.read(f"{folder}/state")

    return Reader(take, state, restore)


def _seqio_task(experiment: Experiment, name: str, layout: Layout) -> Any:
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds

    task = registry.get_task(name)
    features = {f for f in stored_features(task, layout) if f != "text_states"}
    cut = cut_streams(task, layout)

    @seqio.map_over_dataset(num_seeds=1)
    def sequence(example: dict, seed: Any) -> dict:
        ids = layout.assemble(cut(example), concatenate=lambda parts, axis: tf.concat(parts, axis))
        ids = tf.ensure_shape(ids, [layout.length])
        if layout.text_span:
            hidden = tf.random.stateless_uniform([], seed) < experiment.data.text_dropout
            length = tf.where(hidden, 0, tf.cast(example["text_length"], tf.int32))
            empty = unfilled(layout, length)
            ids = tf.concat([ids[: empty.start], ids[empty.stop :]], 0)
        return {"targets": ids}

    vocabulary = seqio.PassThroughVocabulary(300_000)
    return seqio.Task(
        name,
        source=seqio.TfdsDataSource(
            tfds_data_dir=experiment.data.store,
            caching_permitted=False,
            read_only=True,
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(features, True)),
        ),
        preprocessors=[sequence],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)},
    )


def _pack_files(folder: pathlib.Path) -> bytes:
    """Names and sizes in a line, then the bytes of all files."""
    files = sorted(folder.iterdir())
    head = json.dumps([(file.name, file.stat().st_size) for file in files]).encode()
    return head + b"\n" + b"".join(file.read_bytes() for file in files)


def _unpack_files(value: bytes, folder: pathlib.Path) -> None:
    head, _, rest = value.partition(b"\n")
    for name, size in json.loads(head):
        (folder / name).write_bytes(rest[:size])
        rest = rest[size:]


# -------------------------------------------------------------------------------------------- grain


def write_array_record(experiment: Experiment, store: pathlib.Path) -> pathlib.Path:
    """The store's codes as one file of grain's own format: each clip's as int32, text length first."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    file = store / "clips.array_record"
    if not file.exists():
        builder = tfds.builder_from_directory(store)
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for clip in tfds.as_numpy(builder.as_dataset(split="train")):
            numbers = [[clip["text_length"]], *(clip[s] for s, _ in _columns(experiment))]
            writer.write(np.concatenate(numbers).astype(np.int32).tobytes())
        writer.close()
    return file


def _columns(experiment: Experiment) -> list[tuple[str, int]]:
    """(stored stream, codes of a clip) in the order of a record."""
    sizes: dict[str, int] = {}
    for name, layout in Resolved(experiment).layouts.items():
        for stream, length in layout.streams.items():
            stored = registry.get_task(name).stored(stream)
            if stored:
                sizes[stored] = max(sizes.get(stored, 0), length)
    return sorted(sizes.items())


def grain_reader(experiment: Experiment, row: int) -> Reader:
    """`MapDataset.mix` of all tasks -> `FirstFitPackIterDataset`, batched, in one process."""
    import grain
    from grain.experimental import FirstFitPackIterDataset

    file = pathlib.Path(experiment.data.store) / "clips.array_record"
    source, layouts = grain.sources.ArrayRecordDataSource(str(file)), Resolved(experiment).layouts
    parts, weights = [], []
    for number, (name, rate) in enumerate(sequence_rates(experiment).items()):
        clips = grain.MapDataset.source(source).seed(number).shuffle().repeat()
        parts.append(clips.random_map(_grain_sequence(experiment, name, layouts[name])))
        weights.append(rate)
    # More threads than one only wait for each other on one core.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
    mixed = grain.MapDataset.mix(parts, weights).to_iter_dataset(options)
    packed = FirstFitPackIterDataset(mixed, length_struct={"ids": row}, num_packing_bins=BINS)
    batches: Iterator[dict] = iter(packed.batch(ROWS))

    def take() -> tuple[int, int, np.ndarray]:
        batch = next(batches)
        segments = batch["ids_segment_ids"]
        return int(np.count_nonzero(segments)), segments.size, batch["ids"]

    return Reader(
        take,
        state=lambda: json.dumps(batches.get_state(), default=int).encode(),
        restore=lambda value: batches.set_state(json.loads(value)),
    )


def _grain_sequence(
    experiment: Experiment, name: str, layout: Layout
) -> Callable[[bytes, np.random.Generator], dict[str, np.ndarray]]:
    task, offsets, place = registry.get_task(name), {}, 1
    for stored, size in _columns(experiment):
        offsets[stored], place = place, place + size

    def codes(clip: np.ndarray, stream: str, size: int) -> np.ndarray:
        stored = task.stored(stream)
        if stored is None:
            return np.zeros(size, np.int32)
        return clip[offsets[stored] : offsets[stored] + size]

    def sequence(record: bytes, rng: np.random.Generator) -> dict[str, np.ndarray]:
        clip = np.frombuffer(record, np.int32)
        ids = layout.assemble({s: codes(clip, s, n) for s, n in layout.streams.items()})
        shown = rng.random() >= experiment.data.text_dropout
        empty = unfilled(layout, int(clip[0]) if shown else 0)
        return {"ids": np.concatenate([ids[: empty.start], ids[empty.stop :]])}

    return sequence
