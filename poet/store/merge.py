"""Phase 2 of a store: intermediate files become shuffled shards, and their codes are counted."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from poet import media, streams
from poet.spec import UserError
from poet.store import filters, framing, reader
from poet.store.encode import PartialShard
from poet.store.manifest import (
    CodeStatistics,
    Plan,
    ShardInfo,
    SkippedInfo,
    SplitInfo,
    code_statistics,
    level_statistics,
)
from poet.streams.base import StreamInfo

# Of clips whose key an earlier one has, which stays.
DUPLICATE_KEY = "duplicate key"
# What is noted of clips that look and sound, as codes, like one of a split before theirs.
COPIES = "an exact copy in another split"
# Any number of reading hosts up to this, if a power of two, gets equally many shards each.
SHARD_MULTIPLE = 256


def check_skipped(split: str, skipped: Sequence[SkippedInfo], clips: int, max_skipped: float) -> None:
    """Raises UserError when more than the accepted share of a split's clips are unusable.

    `clips` counts all of them, skipped ones too.

    Those that the run's own filters dropped do not count.
    """
    skipped = [s for s in skipped if filters.is_damage(s.reason)]
    if len(skipped) <= max_skipped * clips:
        return
    shown = "".join(f"\n  {s.key}: {s.reason}" for s in skipped[:5])
    raise UserError(
        f"{len(skipped)} of the {clips} clips of split {split!r} cannot be used, more than "
        f"STORE.max_skipped = {max_skipped:g} accepts; the first are:{shown}"
    )


@dataclasses.dataclass(frozen=True, order=True, kw_only=True)
class _Record:
    """The place of a serialized example."""

    rank: bytes
    key: str
    file: pathlib.Path
    offset: int
    size: int
    checksum: int


def merge_split(
    folder: pathlib.Path,
    plan: Plan,
    split: str,
    partials: Sequence[PartialShard],
    max_skipped: float,
    deduplicator: filters.Deduplicator | None = None,
    seen: set[bytes] | None = None,
) -> SplitInfo:
    """Copies the examples of a split into its final shards, in the shuffled order.

    `seen` are hashes of the codes of the splits before this one, which those of this one join: clips
    with the same codes of video and sound stay, and are noted.

    `deduplicator` knows the clips of the splits before this one, which are not stored again.
    """
    records, duplicates = _shuffled(plan.seed, split, partials)
    skipped = [s for p in partials for s in p.skipped] + duplicates
    given = sum(len(p.clips) + len(p.skipped) for p in partials)
    if deduplicator:
        like = deduplicator.drop(_hashes(partials))
        records = [record for record in records if record.key not in like]
        reasons = ((key, f"near duplicate: of {twin}") for key, twin in sorted(like.items()))
        skipped += [SkippedInfo(key=key, reason=reason) for key, reason in reasons]
    check_skipped(split, skipped, given, max_skipped)
    if not records:
        reasons = ", ".join(f"{n} {k}" for k, n in filters.dropped(s.reason for s in skipped).items())
        raise UserError(f"the split {split!r} has no usable clip: {reasons}")
    count = shard_count(len(records), plan.clips_per_shard)
    bounds = [len(records) * i // count for i in range(count + 1)]
    counters = {
        name: (_LevelCounter if streams.in_store(name).levels else _Counter)(info)
        for name, info in plan.streams.items()
    }
    copies = _Copies(frozenset(seen or ()))
    shards = []
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        name = f"{reader.DATASET_NAME}-{split}.tfrecord-{index:05d}-of-{count:05d}"
        shards.append(_write_shard(folder / name, records[start:stop], counters, copies))
    if seen is not None:
        seen |= copies.found
    notes = sum((collections.Counter(p.notes) for p in partials), collections.Counter())
    notes += collections.Counter({COPIES: copies.count})
    return SplitInfo(
        clips=len(records),
        shards=tuple(shards),
        skipped=tuple(skipped),
        truncated_captions=sum(p.truncated_captions for p in partials),
        statistics={name: counter.statistics() for name, counter in counters.items()},
        silent=sum(p.silent for p in partials),
        notes=dict(sorted(notes.items())),
    )


def shard_count(clips: int, clips_per_shard: int) -> int:
    """Enough shards for so many clips each at most; from SHARD_MULTIPLE on a multiple of it."""
    count = -(-clips // clips_per_shard)
    if count <= SHARD_MULTIPLE:
        return count
    return min(-(-count // SHARD_MULTIPLE) * SHARD_MULTIPLE, clips)


def _hashes(partials: Sequence[PartialShard]) -> dict[str, filters.Hash]:
    """By key; of equal keys the first, as in the store."""
    found: dict[str, filters.Hash] = {}
    for partial in partials:
        for (key, _), value in zip(partial.clips, partial.hashes, strict=True):
            found.setdefault(key, value)
    return found


def _shuffled(seed: int, split: str, partials: Sequence[PartialShard]) -> tuple[list[_Record], list[SkippedInfo]]:
    """All records by the seeded hash of their key; of equal keys only the first stays."""
    records: dict[str, _Record] = {}
    duplicates = []
    for partial in partials:
        offset = 0
        for (key, size), checksum in zip(partial.clips, partial.checksums, strict=True):
            if key in records:
                duplicates.append(SkippedInfo(key=key, reason=DUPLICATE_KEY))
            else:
                rank = hashlib.blake2b(f"{seed}/{split}/{key}".encode(), digest_size=16).digest()
                records[key] = _Record(
                    rank=rank, key=key, file=partial.file, offset=offset, size=size, checksum=checksum
                )
            offset += size
    return sorted(records.values()), duplicates


def _write_shard(
    file: pathlib.Path, records: Sequence[_Record], counters: dict[str, _Counter], copies: _Copies
) -> ShardInfo:
    import tensorflow as tf

    examples = _read_records(records)
    # Of what is meant to be written: a bit that flips on the way to the disk is no part of it.
    digest, size_bytes = hashlib.sha256(), 0
    with media.replacing(file) as temporary, open(temporary, "wb") as out:
        for framed in map(framing.frame, examples):
            digest.update(framed)
            size_bytes += out.write(framed)
    for example in examples:
        features = tf.train.Example.FromString(example).features.feature
        codes = {name: features[name].bytes_list.value[0] for name in counters}
        for name, counter in counters.items():
            counter.add(np.frombuffer(codes[name], np.int32))
        copies.add([codes[s.stored] for s in streams.STREAMS.values() if s.identifies and s.stored in codes])
    return ShardInfo(file=file.name, clips=len(records), size_bytes=size_bytes, sha256=digest.hexdigest())


def _read_records(records: Sequence[_Record]) -> list[bytes]:
    """The records' bytes in the given order; every file is opened once and read forwards.

    Raises:
        UserError: a record is not what was written.
    """
    found: dict[str, bytes] = {}
    by_place = sorted(records, key=lambda r: (r.file, r.offset))
    for file, group in itertools.groupby(by_place, key=lambda r: r.file):
        with open(file, "rb") as stream:
            for record in group:
                stream.seek(record.offset)
                found[record.key] = stream.read(record.size)
                if zlib.crc32(found[record.key]) != record.checksum:
                    raise UserError(
                        f"the intermediate file {file} is damaged at clip {record.key!r}, byte "
                        f"{record.offset}: run poet tokenize again, which makes this file anew"
                    )
    return [found[record.key] for record in records]


class _Copies:
    """Counts clips whose codes were seen in a split before."""

    def __init__(self, seen: frozenset[bytes]) -> None:
        self._seen, self.found, self.count = seen, set[bytes](), 0

    def add(self, codes: Sequence[bytes]) -> None:
        value = hashlib.blake2b(b"".join(codes), digest_size=16).digest()
        self.found.add(value)
        self.count += value in self._seen


class _Counter:
    """Counts a stream's codes, apart for the first latent frame; those that are not given do not count."""

    def __init__(self, stream: StreamInfo) -> None:
        self._first = stream.length // stream.grid[0]
        self._counts_FxC = np.zeros((2, 2**stream.bits), np.int64)

    def add(self, codes_N: np.ndarray) -> None:
        parts = codes_N[: self._first], codes_N[self._first :]
        for counts_C, codes in zip(self._counts_FxC, parts):
            np.add.at(counts_C, codes[codes >= 0], 1)

    def statistics(self) -> CodeStatistics:
        return code_statistics(self._counts_FxC)


class _LevelCounter(_Counter):
    """Counts a stream of audio, every level apart."""

    def __init__(self, stream: StreamInfo) -> None:
        self._counts_LxC = np.zeros((stream.grid[0], 2**stream.bits), np.int64)

    def add(self, codes_N: np.ndarray) -> None:
        levels, _ = self._counts_LxC.shape
        codes_LxF = codes_N.reshape(levels, -1)
        np.add.at(self._counts_LxC, (np.arange(levels)[:, None], codes_LxF), 1)

    def statistics(self) -> CodeStatistics:
        return level_statistics(self._counts_LxC)
