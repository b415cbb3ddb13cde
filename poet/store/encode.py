"""Phase 1 of a store: a range of a source becomes one intermediate file, by a pure function."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from poet import conditioning, media
from poet.specs import AudioTokenizerSpec, ConditioningSpec, VideoTokenizerSpec
from poet.store import filters, reader
from poet.store.manifest import Plan, SkippedInfo, StreamInfo
from poet.store.sources import RawClip, Skipped, Source


# What is noted of a clip that has none.
NO_CAPTION = "no caption"


class VideoTokenizer(Protocol):
    """A frozen tokenizer: uint8 (B, T, H, W, 3) to int32 (B, t, h, w) in [0, 2**spec.bits)."""

    spec: VideoTokenizerSpec
    fingerprint: str

    def encode(self, video_BxTxHxWx3: np.ndarray) -> Any: ...


class AudioTokenizer(Protocol):
    """A frozen tokenizer: int16 (B, S) to int32 (B, levels, frames) in [0, spec.codes)."""

    spec: AudioTokenizerSpec
    fingerprint: str

    def encode(self, audio_BxS: np.ndarray, levels: int = 0) -> Any: ...


class TextEncoder(Protocol):
    """See `poet.tokenizers.text.TextEncoder`."""

    name: str
    length: int
    width: int
    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> Any: ...


class Pieces(Protocol):
    """See `poet.tokenizers.pieces.Pieces`."""

    size: int
    fingerprint: str

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray, int]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoders:
    """The frozen networks of a store; no `audio` makes one without sound, no `pieces` one without
    captions to be written.  `conditioning` shapes the conditions that its plan names."""

    tokenizer: VideoTokenizer
    text: TextEncoder
    audio: AudioTokenizer | None = None
    pieces: Pieces | None = None
    conditioning: ConditioningSpec = ConditioningSpec()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartialShard:
    """The intermediate file of one range: serialized examples end to end, and an index of them.

    `clips` are (key, size in bytes) in the order of the source; `silent` of them have no sound
    track, which counts in stores with audio alone.  `hashes` are theirs, where duplicates are looked
    for.  `notes` count what was done to clips, by its kind.  The range took `seconds`, of which the
    encoders took `encoder_seconds`.
    """

    file: pathlib.Path
    clips: tuple[tuple[str, int], ...]
    skipped: tuple[SkippedInfo, ...]
    truncated_captions: int
    silent: int = 0
    hashes: tuple[filters.Hash, ...] = ()
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    encoder_seconds: float = 0.0


def source_ranges(items: int, plan: Plan) -> list[tuple[int, int]]:
    """The units of work: ranges of about a shard, each but the last a multiple of the batch."""
    size = -(-plan.clips_per_shard // plan.batch) * plan.batch
    return [(start, min(start + size, items)) for start in range(0, items, size)]


def encode_range(
    source: Source,
    start: int,
    stop: int,
    plan: Plan,
    encoders: Encoders,
    file: pathlib.Path,
    on_progress: Callable[[int], Any] = lambda items: None,
) -> PartialShard:
    """Encodes the items start..stop-1 of a source into `file` and its index beside it.

    `on_progress` is told after every batch how many items were done.
    """
    clips: list[tuple[str, int]] = []
    hashes: list[filters.Hash] = []
    skipped: list[SkippedInfo] = []
    notes = collections.Counter[str]()
    truncated = silent = 0
    began, encoder_seconds, progress = time.monotonic(), 0.0, _Progress(plan)
    found = _filtered(source.read(start, stop), plan, sound=encoders.audio is not None)
    with media.replacing(file) as temporary, open(temporary, "wb") as out:
        for items in _batches(found, plan.batch):
            batch = [item for item in items if isinstance(item, RawClip)]
            skipped += [
                SkippedInfo(key=i.key, reason=i.reason) for i in items if isinstance(i, Skipped)
            ]
            encoding = time.monotonic()
            examples, cut = encode_batch(batch, plan, encoders)
            encoder_seconds += time.monotonic() - encoding
            if plan.ingest.deduplicate >= 0:
                hashes += [filters.perceptual_hash(clip.video) for clip in batch]
            truncated += cut
            for clip in batch:
                notes.update(map(filters.kind, clip.notes if clip.caption else (*clip.notes, NO_CAPTION)))
            silent += sum(clip.audio is None for clip in batch) if encoders.audio else 0
            for example in examples:
                record = reader.serialize(example)
                clips.append((example["key"], out.write(record)))
            on_progress(progress.finished(items))
    on_progress(stop - start - progress.done)
    partial = PartialShard(
        file=file,
        clips=tuple(clips),
        skipped=tuple(skipped),
        truncated_captions=truncated,
        silent=silent,
        hashes=tuple(hashes),
        notes=notes,
        seconds=time.monotonic() - began,
        encoder_seconds=encoder_seconds,
    )
    _save_index(partial)
    return partial


def _filtered(
    items: Iterator[RawClip | Skipped], plan: Plan, sound: bool
) -> Iterator[RawClip | Skipped]:
    """The items; clips that the plan's filters drop have become skipped ones."""
    clip_filter = filters.ClipFilter(plan.ingest, sound)
    for item in items:
        if isinstance(item, RawClip):
            reason = clip_filter.reason(item.video, item.audio)
            yield Skipped(key=item.key, reason=reason) if reason else item
        else:
            yield item


class _Progress:
    """Counts items of a source by what they gave; one that gives several counts with the first."""

    def __init__(self, plan: Plan) -> None:
        self._expands, self._item, self.done = plan.ingest.expands, "", 0

    def finished(self, items: Sequence[RawClip | Skipped]) -> int:
        """How many items begin among these."""
        count = len(items)
        if self._expands:
            files = [self._item, *(item.key.rpartition("#")[0] or item.key for item in items)]
            count = sum(one != other for one, other in itertools.pairwise(files))
            self._item = files[-1]
        self.done += count
        return count


def _batches(
    items: Iterator[RawClip | Skipped], batch: int
) -> Iterator[list[RawClip | Skipped]]:
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
    clips: Sequence[RawClip], plan: Plan, encoders: Encoders
) -> tuple[list[dict[str, Any]], int]:
    """Examples as `reader.features` wants them, and how many captions were cut."""
    if not clips:
        return [], 0
    streams = {name: _encode_stream(name, clips, plan, encoders) for name in plan.streams}
    text = encoders.text([clip.caption for clip in clips])
    examples = []
    for row, (clip, states_LxD, length) in enumerate(
        zip(clips, text.states_BxLxD, text.lengths_B, strict=True)
    ):
        sounding = {"sounding": int(clip.audio is not None)} if encoders.audio else {}
        examples.append(
            {
                **sounding,
                "key": clip.key,
                "caption": clip.caption,
                **{name: codes_BxN[row] for name, codes_BxN in streams.items()},
                "text_states": np.asarray(states_LxD[:length], np.float16),
                "text_length": int(length),
            }
        )
    return examples, int(text.truncated)


def _encode_stream(
    name: str, clips: Sequence[RawClip], plan: Plan, encoders: Encoders
) -> np.ndarray:
    """int32 (B, codes) of a stream of the plan."""
    if name == "audio":
        return _encode_audio(clips, plan, encoders.audio)
    if name == "pieces":
        return _encode_pieces(clips, plan, encoders.pieces)
    return _encode_video(clips, plan, encoders, name)


def _encode_video(
    clips: Sequence[RawClip], plan: Plan, encoders: Encoders, name: str
) -> np.ndarray:
    """int32 (B, codes) of the clips, or of a condition that is made from them.

    The last clip fills the batch up, so that one program is compiled.
    """
    shown = [_shown(name, clip, encoders) for clip in clips]
    codes = np.asarray(encoders.tokenizer.encode(_filled(shown, plan.batch)))
    return _checked(codes, plan.streams[name])[: len(clips)]


def _shown(name: str, clip: RawClip, encoders: Encoders) -> np.ndarray:
    if name == "video":
        return clip.video
    return conditioning.make(
        name,
        clip.video,
        encoders.conditioning,
        key=clip.key,
        depth=clip.depth,
        factor=encoders.tokenizer.spec.factor[0],
    )


def _encode_pieces(clips: Sequence[RawClip], plan: Plan, pieces: Pieces) -> np.ndarray:
    """int32 (B, pieces) of the captions."""
    stream = plan.streams["pieces"]
    ids_BxL, _, _ = pieces.encode([clip.caption for clip in clips], stream.length)
    return _checked(ids_BxL.reshape(len(clips), *stream.grid), stream)


def _encode_audio(
    clips: Sequence[RawClip], plan: Plan, tokenizer: AudioTokenizer
) -> np.ndarray:
    """int32 (B, codes), level by level; a clip without sound is silence."""
    silence, stream = np.zeros(plan.clip.samples, np.int16), plan.streams["audio"]
    levels, frames, _ = stream.grid
    sounds = [silence if clip.audio is None else clip.audio for clip in clips]
    codes = np.asarray(tokenizer.encode(_filled(sounds, plan.batch), levels=levels))
    # The network's codes have no third dim.
    return _checked(codes[..., None], stream)[: len(clips)]


def _filled(arrays: Sequence[np.ndarray], batch: int) -> np.ndarray:
    return np.stack([*arrays, *[arrays[-1]] * (batch - len(arrays))])


def _checked(codes: np.ndarray, stream: StreamInfo) -> np.ndarray:
    """int32 (B, codes) of codes that the stream declares."""
    if codes.shape[1:] != stream.grid:
        raise ValueError(f"the tokenizer gave {codes.shape}, its grid is {stream.grid}")
    if codes.min() < 0 or codes.max() >= 2**stream.bits:
        raise ValueError(f"the tokenizer gave codes outside [0, 2**{stream.bits})")
    return codes.reshape(len(codes), -1).astype(np.int32)


def _index_file(file: pathlib.Path) -> pathlib.Path:
    return file.with_suffix(".json")


def _save_index(partial: PartialShard) -> None:
    """Written after the examples: where an index stands, its range is complete."""
    index = {
        "clips": partial.clips,
        "skipped": [[s.key, s.reason] for s in partial.skipped],
        "truncated_captions": partial.truncated_captions,
        "silent": partial.silent,
        "notes": dict(sorted(partial.notes.items())),
        "hashes": [[f"{value:016x}" for value in values] for values in partial.hashes],
        "seconds": [partial.seconds, partial.encoder_seconds],
    }
    media.write_text(_index_file(partial.file), json.dumps(index))


def load_partial(file: pathlib.Path) -> PartialShard | None:
    """The intermediate file of a range, or None where it is not complete."""
    if not _index_file(file).exists():
        return None
    index = json.loads(_index_file(file).read_text())
    seconds, encoder_seconds = index.get("seconds", (0.0, 0.0))
    return PartialShard(
        file=file,
        clips=tuple((key, size) for key, size in index["clips"]),
        skipped=tuple(SkippedInfo(key=key, reason=reason) for key, reason in index["skipped"]),
        truncated_captions=index["truncated_captions"],
        silent=index.get("silent", 0),
        hashes=tuple(tuple(int(v, 16) for v in values) for values in index.get("hashes", ())),
        notes=index.get("notes", {}),
        seconds=seconds,
        encoder_seconds=encoder_seconds,
    )
