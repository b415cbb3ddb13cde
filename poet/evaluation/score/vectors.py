"""Vectors of clips, kept on the disk by what was in the clip, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from poet.evaluation.features import Features
from poet.evaluation.score.sides import Item, content_hash
from poet.media import replacing
from poet.runs import arrays

# A network's folder: its name, its weights, and what else its vectors depend on.
_UNSAFE = re.compile(r"[^a-z0-9_]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Vectors below `folder`: NETWORK-WEIGHTS-READS/HASH.npy."""

    folder: Path

    def __call__(self, network: Features, item: Item) -> np.ndarray | None:
        """float32 [K, D] of what the network reads of a clip; None where the clip has none of it."""
        media = _read(network, item)
        if media is None:
            return None
        path = self._folder_of(network) / f"{content_hash(media)}.npy"
        if (found := _stored(path, network.width)) is not None:
            return found
        made = network(media)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file, file.open("wb") as stream:
            np.save(stream, made)
        return made

    def _folder_of(self, network: Features) -> Path:
        reads = content_hash(json.dumps(dict(network.reads), sort_keys=True, default=str))
        return self.folder / f"{_UNSAFE.sub('_', network.name)}-{network.fingerprint}-{reads}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Once:
    """Vectors by the names of clips, for a set that is compared several times: each clip is read and decoded once."""

    vectors: Callable[[Features, Item], np.ndarray | None]
    found: dict[str, dict[str, np.ndarray | None]] = dataclasses.field(default_factory=dict)

    def knows(self, name: str) -> bool:
        return name in self.found

    def __call__(self, network: Features, item: Item) -> np.ndarray | None:
        known = self.found.setdefault(item.key, {})
        if network.prefix not in known:
            known[network.prefix] = self.vectors(network, item)
        return known[network.prefix]


def _read(network: Features, item: Item) -> Any:
    if network.medium == "text":
        return item.caption
    return item.sound if network.medium == "sound" else item.video


def _stored(path: Path, width: int) -> np.ndarray | None:
    """None of a file that is not there, or is not whole."""
    try:
        found = arrays.read_npy(path)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and found.shape[1] == width and found.dtype == np.float32 else None
