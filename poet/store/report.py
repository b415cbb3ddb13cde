"""The final report of `poet tokenize`: clips, dropped clips with reasons, and speed."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from poet.store import filters
from poet.store.encode import PartialShard
from poet.store.manifest import Manifest
from poet.store.stages import STAGES, START


def lines(manifest: Manifest, partials: Mapping[str, Sequence[PartialShard]] | None = None) -> list[str]:
    """A line per split.  Without `partials`, as of a store that was complete before, no speed.

    'train: 20 clips in 4 shards, 2 skipped (undecodable 1, truncated 1); 31.2 clips/s and process (read
    12 %, encode video 80 %, text 5 %, write 3 %), after 9 s of loading and compiling'.  Speed counts all clips that
    were encoded, dropped duplicates too, over the summed time of their ranges, those of interrupted
    runs included, without what a process does once.
    """
    return [_what(manifest, split) + (_speed(partials[split]) if partials else "") for split in manifest.splits]


def _what(manifest: Manifest, split: str) -> str:
    info = manifest.splits[split]
    reasons = filters.dropped(s.reason for s in info.skipped)
    why = f" ({', '.join(f'{name} {count}' for name, count in reasons.items())})" if reasons else ""
    silent = f", {info.silent} without sound" if manifest.audio else ""
    notes = "".join(f", {count} with {name}" for name, count in info.notes.items())
    return f"{split}: {info.clips} clips in {len(info.shards)} shards, {len(info.skipped)} skipped{why}{silent}{notes}"


def _speed(partials: Sequence[PartialShard]) -> str:
    spent = sum((collections.Counter(p.seconds) for p in partials), collections.Counter())
    starting = spent.pop(START, 0.0)
    seconds = sum(spent.values())
    if not seconds:
        return ""
    clips = sum(len(p.clips) for p in partials)
    fractions = [f"{stage} {100 * spent[stage] / seconds:.0f} %" for stage in STAGES if spent[stage]]
    start = f", after {starting:.0f} s of loading and compiling" if starting >= 1 else ""
    return f"; {clips / seconds:.1f} clips/s and process ({', '.join(fractions)}){start}"
