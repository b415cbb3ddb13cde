"""The order in which the records of a TFDS folder are read: a pure function of (seed, position).

Epoch e visits the files in an order drawn from (seed, e), and each file from a record drawn from
(seed, e, file) on, wrapping at its end.  It is the same for any number of processes: each of them
reads all records and decodes its own (`only`).  Nothing is buffered or counted on the
way, so an iterator's whole state is its position, and reading may begin anywhere at the cost
of one partial file.  The folder itself is shuffled once, when it is written.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import numpy as np

from poet.data.backend import tensorflow
from poet.specs import UserError


@dataclasses.dataclass(frozen=True)
class Files:
    """The record files of one split.

    Attributes:
      paths: TFRecord files.
      lengths: records of each file, all positive.
      offsets: index in the split of each file's first record.
    """

    paths: tuple[str, ...]
    lengths: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(self.lengths)


def list_files(builder: Any, split: str) -> Files:
    """The files of a split, in their order.

    Args:
      builder: a `tfds.core.DatasetBuilder` of a TFRecord folder.
      split: name of a whole split.

    Raises:
      UserError: the split is unknown, empty, or of another format.
    """
    info = builder.info
    folder = builder.data_dir
    if split not in info.splits:
        raise UserError(f"{folder} has no split {split!r} (it has: {', '.join(info.splits)})")
    if info.file_format is not None and info.file_format.value != "tfrecord":
        raise UserError(
            f"{folder} is stored as {info.file_format.value}, expected tfrecord: convert it with "
            "`tfds convert_format --out_file_format=tfrecord`"
        )
    instructions = info.splits[split].file_instructions
    if not instructions:
        raise UserError(f"split {split!r} of {folder} is empty")
    lengths = [i.examples_in_shard for i in instructions]
    offsets = np.cumsum([0, *lengths[:-1]]).tolist()
    paths = [str(i.filename) for i in instructions]
    return Files(tuple(paths), tuple(lengths), tuple(offsets))


def stream_seed(seed: int, name: str) -> np.ndarray:
    """int32 [2] seed of an independent stream of draws, for TensorFlow's stateless generators."""
    return np.array([seed % 2**32, zlib.crc32(name.encode())], np.uint32).view(np.int32)


def example_seed(seed_2: Any, epoch: Any, index: Any) -> Any:
    """Seed of the draws of one example in one epoch, whatever process reads it."""
    fold_in = tensorflow().random.experimental.stateless_fold_in
    return fold_in(fold_in(seed_2, epoch), index)


def only(dataset: Any, kept: Any) -> Any:
    """The elements of a dataset whose places in `kept`, a dataset of booleans, are true."""
    pairs = tensorflow().data.Dataset.zip(dataset, kept)
    return pairs.filter(lambda _, keep: keep).map(lambda element, _: element)


def one_pass(files: Files) -> Any:
    """Dataset of {epoch: 0, index, record} over all files, in their order."""
    tf = tensorflow()
    order = tf.data.Dataset.range(len(files.paths))
    return order.flat_map(lambda file: _file_records(files, tf.zeros([], tf.int64), file, 0))


def endless_passes(files: Files, seed_2: np.ndarray, start: int) -> Any:
    """Endless dataset of {epoch int64, index int64, record string}, from position `start` on.

    Args:
      seed_2: int32 [2], e.g. from `stream_seed`.
      start: records already taken since the first epoch began.
    """
    tf = tensorflow()
    epoch, position = divmod(start, files.size)
    lengths = np.asarray(files.lengths)

    def order(epoch: Any) -> Any:
        seed = tf.random.experimental.stateless_fold_in(seed_2, epoch)
        return tf.random.experimental.stateless_shuffle(tf.range(len(lengths)), seed)

    def visits(epoch: Any) -> Any:
        files_of_epoch = tf.data.Dataset.from_tensor_slices(order(epoch))
        return files_of_epoch.map(lambda file: (epoch, tf.cast(file, tf.int64)))

    def records(epoch: Any, file: Any) -> Any:
        seed = example_seed(seed_2, epoch, file)
        length = tf.gather(lengths, file)
        offset = tf.random.stateless_uniform([], seed, 0, length, tf.int64)
        return _file_records(files, epoch, file, offset)

    ends = np.cumsum(lengths[order(tf.constant(epoch, tf.int64)).numpy()])
    slot = int(np.searchsorted(ends, position, side="right"))
    inside = position - int(ends[slot - 1] if slot else 0)
    visited = tf.data.Dataset.counter(epoch).flat_map(visits).skip(slot)
    return visited.flat_map(records).skip(inside)


def _file_records(files: Files, epoch: Any, file: Any, offset: Any) -> Any:
    """All records of one file, from `offset` to the end and then from the beginning."""
    tf = tensorflow()
    dataset = tf.data.Dataset
    length = tf.gather(tf.constant(files.lengths, tf.int64), file)
    first = tf.gather(tf.constant(files.offsets, tf.int64), file)
    offset = tf.cast(offset, tf.int64)
    records = tf.data.TFRecordDataset(tf.gather(tf.constant(files.paths), file))
    rotated = records.skip(offset).concatenate(records.take(offset))
    places = dataset.range(offset, length).concatenate(dataset.range(offset))
    return dataset.zip(places, rotated).map(
        lambda place, record: {"epoch": epoch, "index": first + place, "record": record}
    )
