"""The records of a TFDS folder by their index, and the order in which training reads them.

Epoch e visits the records of a split in a permutation by (seed, e), of which every place is
computed by itself (`poet.data.permutation`).  So an iterator's whole state is its position, reading
may begin anywhere at no cost, the order is the same for any number of processes, and each of them
reads only its own records.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import os
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from poet.data.backend import tensorflow
from poet.data.permutation import permuted
from poet.runs import retries
from poet.spec import UserError
from poet.store.framing import FOOTER, HEADER, masked_checksum

# Positions int64 [N] of an endless or finite reading -> epochs and indices in the split, int64 [N].
Order = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Records that one call reads.
_CHUNK = 16
# Positions whose order is computed at once.
_BLOCK = 1024
# Files that stay open.
_OPEN_FILES = 256


@dataclasses.dataclass(frozen=True)
class Files:
    """The record files of one split.

    Attributes:
      paths: TFRecord files.
      lengths: records of each file, all positive.
      stamps: size in bytes and time of change of each file.
    """

    paths: tuple[str, ...]
    lengths: tuple[int, ...]
    stamps: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(self.lengths)


def list_files(builder: Any, split: str) -> Files:
    """The files of a split, in their order.

    Args:
      builder: a `tfds.core.DatasetBuilder` of a TFRecord folder.
      split: name of a whole split.

    Raises:
      UserError: the split is unknown, empty, of another format, or a file of it is missing.
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
    paths = tuple(str(i.filename) for i in instructions)
    try:
        found = [retries.reading(path, functools.partial(os.stat, path)) for path in paths]
    except OSError as error:
        raise UserError(f"the shard {error.filename} cannot be read: {error.strerror}") from None
    return Files(
        paths,
        tuple(i.examples_in_shard for i in instructions),
        tuple((stat.st_size, stat.st_mtime_ns) for stat in found),
    )


# --------------------------------------------------------------------------------------- records


class Records:
    """The records of a split by index; threads may share it.

    The offsets of a file's records are read from their headers at the first access to one of them.
    Every record is compared with its checksum.
    """

    def __init__(self, files: Files):
        self._files = files
        self._ends = np.cumsum(files.lengths)
        self._offsets: dict[int, np.ndarray] = {}
        self._open = functools.lru_cache(_OPEN_FILES)(_File)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        """The bytes of a record.

        Raises:
          UserError: they are damaged, which names file and record, or the file is not there.
          retries.ReadFailed: see `poet.runs.retries`.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        place = index - int(self._ends[number]) + self._files.lengths[number]
        path = self._files.paths[number]
        try:
            file = self._open(path)
            if number not in self._offsets:
                self._offsets[number] = _offsets(file, self._files.lengths[number])
            start, stop = self._offsets[number][place : place + 2].tolist()
            data = file.read(start + HEADER.size, stop - start - HEADER.size)
        except OSError as error:
            raise UserError(f"the shard {path} cannot be read: {error.strerror}") from None
        record, (checksum,) = data[: -FOOTER.size], FOOTER.unpack(data[-FOOTER.size :])
        if masked_checksum(record) != checksum:
            raise damaged(path, f"record {place}, at byte {start}, does not match its checksum")
        return record


@functools.lru_cache(maxsize=16)
def open_records(files: Files) -> Records:
    """The records of a split, shared by all tasks that read it."""
    return Records(files)


def damaged(path: str, what: str) -> UserError:
    """The error for a damaged shard."""
    return UserError(f"the shard {path} is damaged: {what}; tokenize again into an empty folder")


class _File:
    """A file that is read at any place by any thread, and closed when nobody holds it any more."""

    def __init__(self, path: str):
        self.path = path
        self._number = retries.reading(path, lambda: os.open(path, os.O_RDONLY))
        weakref.finalize(self, os.close, self._number)
        self.size = os.fstat(self._number).st_size

    def read(self, start: int, length: int) -> bytes:
        data = retries.reading(self.path, lambda: os.pread(self._number, length, start))
        if len(data) != length:
            raise damaged(self.path, f"it ends at byte {start + len(data)}, within a record")
        return data


def _offsets(file: _File, records: int) -> np.ndarray:
    """int64 [records + 1]: the offset of each record of a file, and the end of the last one."""
    offsets = np.zeros(records + 1, np.int64)
    for place in range(records):
        start = int(offsets[place])
        header = file.read(start, HEADER.size)
        length, checksum = HEADER.unpack(header)
        if masked_checksum(header[:8]) != checksum:
            raise damaged(file.path, f"record {place}, at byte {start}, has no header")
        if length > file.size - start - HEADER.size - FOOTER.size:
            raise damaged(file.path, f"it ends at byte {file.size}, within a record")
        offsets[place + 1] = start + HEADER.size + length + FOOTER.size
    return offsets


# ----------------------------------------------------------------------------------------- order


def stream_seed(seed: int, name: str) -> np.ndarray:
    """int32 [2] seed of an independent stream of random numbers, for TensorFlow's stateless generators."""
    return np.array([seed % 2**32, zlib.crc32(name.encode())], np.uint32).view(np.int32)


def example_seed(seed_2: Any, epoch: Any, index: Any) -> Any:
    """Seed of the random choices of one example in one epoch, whatever process reads it."""
    fold_in = tensorflow().random.experimental.stateless_fold_in
    return fold_in(fold_in(seed_2, epoch), index)


def only(dataset: Any, kept: Any) -> Any:
    """The elements of a dataset whose places in `kept`, a dataset of booleans, are true."""
    pairs = tensorflow().data.Dataset.zip(dataset, kept)
    return pairs.filter(lambda _, keep: keep).map(lambda element, _: element)


def one_pass(files: Files, kept: Any = None) -> Any:
    """Dataset of {epoch: 0, index, record} over all files, in their order.

    `kept`, a dataset of booleans, marks the records to yield; None: all.
    """
    positions = tensorflow().data.Dataset.range(files.size)
    return _read(files, positions, lambda positions: (np.zeros_like(positions), positions), kept)


def endless_passes(files: Files, seed_2: np.ndarray, start: int, kept: Any = None) -> Any:
    """Endless dataset of {epoch int64, index int64, record string}, from position `start` on.

    Args:
      seed_2: int32 [2], e.g. from `stream_seed`.
      start: records already taken since the first epoch began.
      kept: dataset of booleans that marks the records to yield from there on; None: all.
    """
    seed = tuple(seed_2.view(np.uint32).tolist())

    def order(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        blocks, places = np.divmod(positions, _BLOCK)
        found = [_order_of(seed, files.size, int(block)) for block in blocks]
        return positions // files.size, np.array([o[p] for o, p in zip(found, places)], np.int64)

    return _read(files, tensorflow().data.Dataset.counter(start), order, kept)


@functools.lru_cache(maxsize=256)
def _order_of(seed: tuple[int, ...], size: int, block: int) -> np.ndarray:
    """int64 [_BLOCK]: index of the record at each position of a block of them."""
    epochs, places = np.divmod(np.arange(block * _BLOCK, (block + 1) * _BLOCK), size)
    indices = np.empty_like(places)
    for epoch in range(epochs[0], epochs[-1] + 1):
        now = epochs == epoch
        indices[now] = permuted(places[now], size, (*seed, epoch))
    return indices


def _read(files: Files, positions: Any, order: Order, kept: Any) -> Any:
    tf = tensorflow()
    records = open_records(files)

    def read(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epochs, indices = order(positions)
        return epochs, indices, np.array([records[i] for i in indices.tolist()], object)

    def read_chunk(positions: Any) -> dict[str, Any]:
        values = tf.numpy_function(read, [positions], (tf.int64, tf.int64, tf.string), stateful=False)
        names = ("epoch", "index", "record")
        return {name: tf.ensure_shape(value, [None]) for name, value in zip(names, values)}

    if kept is not None:
        positions = only(positions, kept)
    chunks = positions.batch(_CHUNK).map(
        tf.autograph.experimental.do_not_convert(read_chunk), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return chunks.unbatch()


# ----------------------------------------------------------------------------------------- ends


def batches_of(dataset: Any) -> Iterator[Any]:
    """The NumPy elements of a dataset that reads `Records`.

    Their own errors inside TensorFlow are raised as they are, and reading ends before Python does.
    """
    batches = _named_errors(dataset.as_numpy_iterator())
    _LIVE.add(batches)
    return batches


_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _stop() -> None:
    """Closes all readers: a TensorFlow thread that calls Python after its end would wait for ever."""
    for batches in list(_LIVE):
        batches.close()


def _named_errors(batches: Iterator[Any]) -> Iterator[Any]:
    tf = tensorflow()
    while True:
        try:
            batch = next(batches, None)
        except tf.errors.OpError as error:
            raise _as_raised(error) from None
        if batch is None:
            return
        yield batch


def _as_raised(error: Any) -> Exception:
    """The error of this package that TensorFlow wrapped, else the one that it raised."""
    for kind in (UserError, retries.ReadFailed):
        _, found, rest = error.message.partition(f"{kind.__name__}: ")
        if found:
            return kind(rest.partition("\nTraceback")[0].strip())
    return error
