"""Filters of clips: pure functions of a clip, and of the hashes of all clips.

A reason starts with its kind, a word or two before a colon; kinds in CHOSEN are those that an
`IngestSpec` asked for, those in OTHER are of whole files that show nothing; all others are damage, of
which `STORE.max_skipped` accepts so much.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from PIL import Image

from poet.spec import IngestSpec, UserError

CHOSEN = ("short shot", "static", "black", "quiet", "nsfw", "near duplicate")
OTHER = ("no video stream",)

FULL_SCALE = 32768.0
# A difference hash compares 8 x 8 pairs of neighbours.
HASH_SIDE = 8
HASH_BITS = HASH_SIDE * HASH_SIDE


def kind(reason: str) -> str:
    """'static: motion 0.0001 < 0.01' is of the kind 'static'."""
    return reason.partition(":")[0]


def is_damage(reason: str) -> bool:
    """Whether a clip was neither dropped by choice nor never one."""
    return kind(reason) not in CHOSEN + OTHER


def dropped(reasons: Iterable[str]) -> dict[str, int]:
    """How often each kind of reason stands, frequent ones first, equal ones by name."""
    counts = collections.Counter(map(kind, reasons))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# -------------------------------------------------------------------------------------- one clip


def motion(video_TxHxWx3: np.ndarray) -> float:
    """Mean absolute difference of successive frames, 0..1 of full scale; 0 for a single frame."""
    if len(video_TxHxWx3) < 2:
        return 0.0
    differences = np.diff(video_TxHxWx3.astype(np.int16), axis=0)
    return float(np.abs(differences).mean() / 255)


def brightness(video_TxHxWx3: np.ndarray) -> float:
    """Mean of all pixels, 0..1."""
    return float(video_TxHxWx3.mean() / 255)


def loudness_db(audio_S: np.ndarray | None) -> float:
    """Root mean square of int16 samples in dB of full scale; -inf for silence and without sound."""
    if audio_S is None or not audio_S.any():
        return -math.inf
    return 20 * math.log10(math.sqrt(np.square(audio_S.astype(np.float64)).mean()) / FULL_SCALE)


def load_hook(name: str) -> Callable[[np.ndarray], bool] | None:
    """The function 'module:function'; None for ''.

    Raises:
        UserError: no such module, or no such function in it.
    """
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"INGEST.nsfw = {name!r} cannot be loaded: {error}; give 'module:function' of a module "
            "that Python finds (PYTHONPATH)"
        ) from None
    if not callable(found):
        raise UserError(f"INGEST.nsfw = {name!r} is a {type(found).__name__}, not a function")
    return found


class ClipFilter:
    """Says why a clip is dropped.  `sound`: whether the store has any."""

    def __init__(self, spec: IngestSpec, sound: bool) -> None:
        self._spec, self._sound = spec, sound
        self._hook = load_hook(spec.nsfw)

    def reason(self, video_TxHxWx3: np.ndarray, audio_S: np.ndarray | None) -> str:
        """'' for a clip that stays.  The hook is asked last: it may be a network."""
        spec = self._spec
        if spec.min_motion and len(video_TxHxWx3) > 1:
            if (value := motion(video_TxHxWx3)) < spec.min_motion:
                return f"static: motion {value:.4g}, INGEST.min_motion is {spec.min_motion:g}"
        if spec.min_brightness:
            if (value := brightness(video_TxHxWx3)) < spec.min_brightness:
                least = f"INGEST.min_brightness is {spec.min_brightness:g}"
                return f"black: brightness {value:.4g}, {least}"
        if spec.min_loudness_db and self._sound:
            if (value := loudness_db(audio_S)) < spec.min_loudness_db:
                heard = "no sound track" if audio_S is None else f"{value:.1f} dB"
                return f"quiet: {heard}, INGEST.min_loudness_db is {spec.min_loudness_db:g}"
        if self._hook and bool(self._hook(video_TxHxWx3)):
            return f"nsfw: {spec.nsfw} said so"
        return ""


# ----------------------------------------------------------------------------------- duplicates


def perceptual_hash(video_TxHxWx3: np.ndarray) -> tuple[int, int, int]:
    """Difference hashes of the first, middle and last frame, 64 bits each.

    Bit k is 1 if cell k of a grey 8 x 9 thumbnail is darker than its right neighbour, so
    size, compression and brightness change few bits.  Flat frames are all alike to it.
    """
    last = len(video_TxHxWx3) - 1
    first, middle, end = (difference_hash(video_TxHxWx3[i]) for i in (0, last // 2, last))
    return first, middle, end


def difference_hash(frame_HxWx3: np.ndarray) -> int:
    grey = Image.fromarray(np.ascontiguousarray(frame_HxWx3)).convert("L")
    small = grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    cells = np.asarray(small, np.int16)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes())


def distance(one: Iterable[int], other: Iterable[int]) -> int:
    """Bits that differ in the pair of frames where most do."""
    return max((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


Hash = tuple[int, int, int]


@dataclasses.dataclass
class Deduplicator:
    """Finds clips within `bits` of one that stays.

    Clips are taken in the order of their keys and each stays unless one before it is too near: the
    outcome depends on the set of clips alone, not on their order or on who hashed them.  A second
    call knows the clips that stayed in the first.
    """

    bits: int
    _index: dict[tuple[int, int], list[tuple[str, Hash]]] = dataclasses.field(default_factory=dict)

    def drop(self, hashes: Mapping[str, Hash]) -> dict[str, str]:
        """Key of a clip that is dropped -> key of the one that it is like."""
        found = {}
        for key in sorted(hashes):
            twin = self._twin(hashes[key])
            if twin is None:
                for band in _bands(hashes[key][0], self.bits + 1):
                    self._index.setdefault(band, []).append((key, hashes[key]))
            else:
                found[key] = twin
        return found

    def _twin(self, value: Hash) -> str | None:
        """The first key, of those that stayed, that is near enough."""
        near = [
            key
            for band in _bands(value[0], self.bits + 1)
            for key, other in self._index.get(band, ())
            if distance(value, other) <= self.bits
        ]
        return min(near, default=None)


def _bands(value: int, count: int) -> Iterator[tuple[int, int]]:
    """The hash cut into `count` pieces: two hashes that differ in fewer bits share one of them."""
    edges = [HASH_BITS * i // count for i in range(count + 1)]
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        yield number, (value >> low) & ((1 << (high - low)) - 1)
