"""Phase 1 of a store: a range of a source becomes one intermediate file, by a pure function."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from poet import media, streams
from poet.runs import networks
from poet.spec import UserError
from poet.store import filters, reader
from poet.store.manifest import Plan, SkippedInfo
from poet.store.raw import RawClip, Skipped
from poet.store.stages import START, Stages
from poet.streams.base import Encoders
from poet.streams.text import LENGTH, STATES

# What is noted of a clip that has none.
NO_CAPTION = "no caption"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartialShard:
    """The intermediate file of one range: serialized examples end to end, and an index of them.

    `clips` are (key, size in bytes) in the order of the source, `checksums` the CRC-32 of each; `silent` have no
    sound track, which counts in stores with audio alone.  `hashes` are theirs, where copies are looked for.
    `notes` count what was done to clips, by its kind.  `seconds` are those of `poet.store.stages`.
    """

    file: pathlib.Path
    clips: tuple[tuple[str, int], ...]
    checksums: tuple[int, ...]
    skipped: tuple[SkippedInfo, ...]
    truncated_captions: int
    silent: int = 0
    hashes: tuple[filters.Hash, ...] = ()
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def is_intact(self) -> bool:
        """Whether the file holds what was written; reads it."""
        try:
            with open(self.file, "rb") as stream:
                pairs = zip(self.clips, self.checksums, strict=True)
                intact = all(zlib.crc32(stream.read(size)) == known for (_, size), known in pairs)
                return intact and not stream.read(1)
        except OSError:
            return False


def encode_range(
    items: Iterator[RawClip | Skipped],
    plan: Plan,
    encoders: Encoders,
    file: pathlib.Path,
    on_progress: Callable[[int], Any] = lambda clips: None,
) -> PartialShard:
    """Encodes the items of a range into `file` and its index beside it.

    `on_progress` is called after every batch with the number of its clips, skipped ones included.
    """
    made, stages = _Made(), Stages()
    with stages.timed(START):
        import tensorflow  # noqa: F401  which is loaded once, and would count as writing
    found = stages.reading(_filtered(items, plan))
    with media.replacing(file) as temporary, open(temporary, "wb") as out:
        for run in _batches(found, plan.batch):
            batch = [item for item in run if isinstance(item, RawClip)]
            made.skipped += [SkippedInfo(key=i.key, reason=i.reason) for i in run if isinstance(i, Skipped)]
            examples, cut = encode_batch(batch, plan, encoders, stages)
            made.truncated_captions += cut
            with stages.timed("write"):
                made.note(batch, plan)
                for example in examples:
                    record = reader.serialize(example)
                    made.clips.append((example["key"], out.write(record)))
                    made.checksums.append(zlib.crc32(record))
            on_progress(len(run))
    partial = made.partial(file, stages)
    _save_index(partial)
    return partial


@dataclasses.dataclass
class _Made:
    """The results of a range so far; see `PartialShard`."""

    clips: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    checksums: list[int] = dataclasses.field(default_factory=list)
    skipped: list[SkippedInfo] = dataclasses.field(default_factory=list)
    hashes: list[filters.Hash] = dataclasses.field(default_factory=list)
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    truncated_captions: int = 0
    silent: int = 0

    def note(self, batch: Sequence[RawClip], plan: Plan) -> None:
        """Counts what is odd about clips, and keeps what their copies are found by."""
        for clip in batch:
            notes = clip.notes if clip.caption else (*clip.notes, NO_CAPTION)
            self.notes.update(map(filters.kind, notes))
            self.silent += plan.has_audio and clip.audio is None
        if plan.ingest.deduplicate >= 0:
            self.hashes += [filters.perceptual_hash(clip.video) for clip in batch]

    def partial(self, file: pathlib.Path, stages: Stages) -> PartialShard:
        return PartialShard(
            file=file,
            clips=tuple(self.clips),
            checksums=tuple(self.checksums),
            skipped=tuple(self.skipped),
            truncated_captions=self.truncated_captions,
            silent=self.silent,
            hashes=tuple(self.hashes),
            notes=self.notes,
            seconds=stages.seconds,
        )


def _filtered(items: Iterator[RawClip | Skipped], plan: Plan) -> Iterator[RawClip | Skipped]:
    """The items; clips that the plan's filters drop have become skipped ones."""
    clip_filter = filters.ClipFilter(plan.ingest, plan.has_audio)
    for item in items:
        if isinstance(item, RawClip):
            reason = clip_filter.reason(item.video, item.audio)
            yield Skipped(key=item.key, reason=reason) if reason else item
        else:
            yield item


def _batches(items: Iterator[RawClip | Skipped], batch: int) -> Iterator[list[RawClip | Skipped]]:
    """Runs of items with `batch` clips each, the last with fewer; skipped items ride along."""
    run: list[RawClip | Skipped] = []
    clips = 0
    for item in items:
        run.append(item)
        clips += isinstance(item, RawClip)
        if clips == batch:
            yield run
            run, clips = [], 0
    if run:
        yield run


def encode_batch(
    clips: Sequence[RawClip], plan: Plan, encoders: Encoders, stages: Stages
) -> tuple[list[dict[str, Any]], int]:
    """Examples as `reader.features` wants them, and how many captions were cut."""
    if not clips:
        return [], 0
    codes = {name: _encode_stream(name, clips, plan, encoders, stages) for name in plan.streams}
    with stages.timed("text"):
        text = encoders.networks[networks.TEXT]([clip.caption for clip in clips])
        lengths_B = np.asarray(text.lengths_B)
        states_BxLxD = _stored_states(np.asarray(text.states_BxLxD), lengths_B)
    examples = [
        {
            **{stream.flag: int(stream.has(clip)) for stream in plan.flagged},
            "key": clip.key,
            "caption": clip.caption,
            **{name: codes_BxN[row] for name, codes_BxN in codes.items()},
            STATES: states_LxD[:length],
            LENGTH: int(length),
        }
        for row, (clip, states_LxD, length) in enumerate(zip(clips, states_BxLxD, lengths_B, strict=True))
    ]
    return examples, int(text.truncated)


def _stored_states(states_BxLxD: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """float16 states; UserError where one within its text's length is not finite, or becomes so."""
    with np.errstate(over="ignore"):
        stored_BxLxD = np.asarray(states_BxLxD, np.float16)
    real_BxL = np.arange(stored_BxLxD.shape[1]) < np.asarray(lengths_B)[:, None]
    if not np.isfinite(stored_BxLxD[real_BxL]).all():
        raise UserError(
            "the text encoder has states that are NaN, infinite or beyond float16: its weights are "
            "damaged or too large; set TEXT.path to others"
        )
    return stored_BxLxD


def _encode_stream(name: str, clips: Sequence[RawClip], plan: Plan, encoders: Encoders, stages: Stages) -> np.ndarray:
    """int32 (B, codes) of a stream of the plan.

    The last clip fills the batch up, so that one program is compiled.
    """
    stream = streams.in_store(name)
    with stages.timed(stream.stage):
        items = [stream.read(clip, plan.clip, encoders) for clip in clips]
        items += items[-1:] * (plan.batch - len(items))
        return stream.tokenize(items, plan.streams[name], encoders)[: len(clips)]


def index_file(file: pathlib.Path) -> pathlib.Path:
    return file.with_suffix(".json")


def _save_index(partial: PartialShard) -> None:
    """Written after the examples: where an index stands, its range is complete.

    Its second line is the SHA-256 of the first.
    """
    index = {
        "clips": partial.clips,
        "checksums": partial.checksums,
        "skipped": [[s.key, s.reason] for s in partial.skipped],
        "truncated_captions": partial.truncated_captions,
        "silent": partial.silent,
        "notes": dict(sorted(partial.notes.items())),
        "hashes": [[f"{value:016x}" for value in values] for values in partial.hashes],
        "seconds": dict(partial.seconds),
    }
    line = json.dumps(index)
    digest = hashlib.sha256(line.encode()).hexdigest()
    media.write_text(index_file(partial.file), f"{line}\n{digest}\n")


def load_partial(file: pathlib.Path) -> PartialShard | None:
    """The intermediate file of a range, or None where it is not complete or its index is damaged."""
    try:
        line, _, digest = index_file(file).read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(line).hexdigest().encode() != digest.strip():
        return None
    index = json.loads(line)
    return PartialShard(
        file=file,
        clips=tuple((key, size) for key, size in index["clips"]),
        checksums=tuple(index["checksums"]),
        skipped=tuple(SkippedInfo(key=key, reason=reason) for key, reason in index["skipped"]),
        truncated_captions=index["truncated_captions"],
        silent=index.get("silent", 0),
        hashes=tuple(tuple(int(v, 16) for v in values) for values in index.get("hashes", ())),
        notes=index.get("notes", {}),
        seconds=index.get("seconds", {}),
    )
