"""The manifest of a token store: `manifest.json`, written last, marks a store as complete.

A `Plan` is everything that determines the bytes of the shards; it is compared when an interrupted
run is taken up again.  A `Manifest` adds what came out: shards with their hashes, clips that were
skipped and why, and the statistics of the codes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from poet.runs import networks
from poet.spec import ClipSpec, IngestSpec, Spec, UserError, foreign, from_dict, limited, to_dict
from poet.streams import in_store
from poet.streams.base import Stream, StreamInfo

VERSION = 2
MANIFEST_FILE = "manifest.json"
DIGEST = "sha256"

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInfo(Spec):
    """The text encoder: its states have `width` numbers at `length` positions at most."""

    name: str
    fingerprint: str
    length: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Spec):
    """Everything that determines the shards' bytes.

    `items` and `sources` give for every split the number of items, of which each gives a clip unless
    `ingest` asks for more, and the source's fingerprint.
    """

    version: int = VERSION
    items: dict[str, int]
    sources: dict[str, str]
    clip: ClipSpec
    streams: dict[str, StreamInfo]
    text: TextInfo
    clips_per_shard: int
    batch: int
    seed: int
    ingest: IngestSpec = IngestSpec()

    @property
    def flagged(self) -> tuple[Stream, ...]:
        """Streams that not every clip has: a feature of its own says whether one does."""
        return tuple(stream for stream in map(in_store, self.streams) if stream.flag)

    @property
    def has_audio(self) -> bool:
        return networks.AUDIO in self.streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardInfo(Spec):
    """One TFRecord file of the store."""

    file: str
    clips: int
    size_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkippedInfo(Spec):
    """A clip of the source that is not in the store, and why."""

    key: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeStatistics(Spec):
    """The unigram distribution of a stream's codes in one split.

    The entropies (nats) are those of the empirical distribution: the loss of the best model that
    ignores all context, so the line that a trained model must get below on the same codes.
    `first_frame_entropy_nats` counts only the codes of the first latent frame.

    Levels of audio are separate, since the position determines the level: `used` counts pairs of level
    and code, `entropy_nats` is the mean over levels, `first_frame_entropy_nats` that of level 0.
    """

    codes: int
    used: int
    entropy_nats: float
    first_frame_entropy_nats: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitInfo(Spec):
    """The content of one split.

    `truncated_captions` were longer than the text encoder takes.  `silent` clips have no sound
    track and were stored as silence, which counts in stores with audio alone.  `notes` count what was
    done to clips, by its kind.
    """

    clips: int
    shards: tuple[ShardInfo, ...]
    skipped: tuple[SkippedInfo, ...]
    truncated_captions: int
    statistics: dict[str, CodeStatistics]
    silent: int = 0
    notes: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(Spec):
    """A complete store.

    `metadata` are the SHA-256 of what TFDS keeps beside the shards.
    """

    source: str
    plan: Plan
    splits: dict[str, SplitInfo]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def clip(self) -> ClipSpec:
        return self.plan.clip

    @property
    def text(self) -> TextInfo:
        return self.plan.text

    @property
    def video(self) -> StreamInfo:
        return self.plan.streams[networks.VIDEO]

    @property
    def audio(self) -> StreamInfo | None:
        """None for a store without sound."""
        return self.plan.streams.get(networks.AUDIO)

    @property
    def networks(self) -> dict[str, str]:
        """Fingerprints of the frozen networks (`poet.runs.networks`): one per stream, and the text encoder's."""
        streams = {name: stream.fingerprint for name, stream in self.plan.streams.items()}
        return {**streams, networks.TEXT: self.text.fingerprint}

    def identity(self, split: str) -> str:
        """16 hex digits of what a split holds, wherever the store lies."""
        files = [[shard.sha256, shard.clips] for shard in self.splits[split].shards]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


class _Described(Protocol):
    name: str
    fingerprint: str
    length: int
    width: int


def text_info(encoder: _Described) -> TextInfo:
    """The entry of a text encoder in a manifest."""
    return TextInfo(name=encoder.name, fingerprint=encoder.fingerprint, length=encoder.length, width=encoder.width)


def to_json(spec: Spec) -> str:
    """Deterministic, so that equal stores have equal bytes.

    `silent`, `notes` and `metadata` stand only where they say something; `ingest` only where it differs
    from its defaults.  `sha256` is that of the text without it.
    """
    values = to_dict(spec)
    plan = values.get("plan", values)
    if plan.get("ingest") == to_dict(IngestSpec()):
        del plan["ingest"]
    for split in values.get("splits", {}).values():
        for field in ("silent", "notes"):
            if not split[field]:
                del split[field]
    if not values.get("metadata", True):
        del values["metadata"]
    return _text(values | {DIGEST: hashlib.sha256(_text(values).encode()).hexdigest()})


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def read_json(cls: type, path: pathlib.Path) -> Any:
    """Inverse of `to_json`; a file that is not one is a UserError that names it.

    One from before there were hashes in it is read with a warning.
    """
    try:
        values = json.loads(limited(path, foreign.LISTING).read_text())
        digest = values.pop(DIGEST, None)
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; write the store again") from None
    version = values.get("plan", values).get("version")
    if version != VERSION:
        raise UserError(f"{path} has version {version}, this program reads {VERSION}; run poet tokenize again")
    if digest is None:
        _LOG.warning("%s has no hash of itself: edits cannot be detected", path)
    elif hashlib.sha256(_text(values).encode()).hexdigest() != digest:
        raise UserError(f"{path} is damaged or was edited: its hash differs; write the store again")
    try:
        return from_dict(cls, values)
    except TypeError as error:
        raise UserError(f"{path} is damaged: {error}; write the store again") from None


def code_statistics(counts_FxC: np.ndarray) -> CodeStatistics:
    """From how often each of C codes occurs in the first latent frame [0] and in later ones [1]."""
    counts_C = counts_FxC.sum(axis=0)
    return CodeStatistics(
        codes=int(counts_C.sum()),
        used=int((counts_C > 0).sum()),
        entropy_nats=_entropy_nats(counts_C),
        first_frame_entropy_nats=_entropy_nats(counts_FxC[0]),
    )


def level_statistics(counts_LxC: np.ndarray) -> CodeStatistics:
    """From how often each of C codes occurs in every level of the audio."""
    entropies = [_entropy_nats(counts_C) for counts_C in counts_LxC]
    return CodeStatistics(
        codes=int(counts_LxC.sum()),
        used=int((counts_LxC > 0).sum()),
        entropy_nats=float(np.mean(entropies)),
        first_frame_entropy_nats=entropies[0],
    )


def _entropy_nats(counts_C: np.ndarray) -> float:
    fractions = counts_C[counts_C > 0] / max(counts_C.sum(), 1)
    return float(-(fractions * np.log(fractions)).sum()) + 0.0


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names every leaf of two nested dicts that is not equal: 'clip.frames is 17, not 41'."""
    lines = []
    for key in sorted({*stored, *wanted}):
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += [f"{key}.{line}" for line in differences(old, new)]
        elif old != new:
            lines.append(f"{key} is {old!r}, not {new!r}")
    return lines


def check_store(
    manifest: Manifest, *, text: TextInfo | None = None, streams: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> None:
    """Raises UserError naming all that differs between a store and what a run expects of it.

    Args:
      text: the text encoder; an empty fingerprint is not compared.
      streams: fields of the `StreamInfo` of streams that the store must have, by name; None is not compared.
    """
    wanted = {"text": to_dict(text) if text else {}, **streams}
    if text and not text.fingerprint:
        del wanted["text"]["fingerprint"]
    stored = {name: to_dict(stream) for name, stream in manifest.plan.streams.items()}
    stored["text"] = to_dict(manifest.text)
    lines = []
    for part, fields in wanted.items():
        fields = {name: value for name, value in fields.items() if value is not None}
        known = {name: stored.get(part, {}).get(name) for name in fields}
        lines += differences({part: known}, {part: fields})
    if lines:
        raise UserError(
            f"the token store made from {manifest.source} does not fit this run: "
            f"{'; '.join(lines)}. Tokenize again with this configuration, or use the one that "
            "made the store"
        )
