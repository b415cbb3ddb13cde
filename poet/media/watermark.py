"""An invisible watermark: 32 bits in every frame that say that poet made it, and how they are found again.

Spread-transform dither modulation (Chen and Wornell 2001, IEEE Trans. Inf. Theory 47:1423) of the lowest waves of the
red-difference colour, V.  Each bit has a few two-dimensional cosines of its own, with signs that are drawn once.  Their
signed sum in a frame is moved to the nearest point of a lattice of `STEP`, a quarter of a step above its points for a
1, below them for a 0; what the frame shows of itself costs nothing, however large it is.  Waves are counted by frame,
so that the mark is found at any size and shape that the frame is scaled to.  All frames of a film vote.

What is found by chance: the signs are fair coins, and to turn all signs of a bit turns its vote, so the 32 votes of a
clip that carries no mark are fair coins as well.  `ENOUGH` of them are right with probability 2.7e-4, the tail of the
binomial distribution (`chance`).

It is a label and no proof: whoever reads this file can take it away, or put it where it does not belong.  Pictures
turned to grey lose it, and crops cost bits (`poet/sampling/README.md` has what was measured).

T frames, H height, W width.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from poet.media.files import PathLike
from poet.media.film import open_film

_LOG = logging.getLogger(__name__)

BITS = 32
# Right bits with which a mark counts as found.
ENOUGH = 26
# Frames with a shorter side lose it to H.264 at a crf of 28.
LEAST_SIDE = 128
# Distance of lattice points, in levels of V (root mean square of a wave over the frame).
STEP = 1.875
# Waves have a radius, in half periods a side, from the first to below the second.
_WAVES = 2, 16
# What is clipped at black and white, and rounded, is moved again.
_ROUNDS = 4
# V of BT.601 full range, and what one level of it does to red, green and blue.
_TO_V = np.array([0.5, -0.418688, -0.081312])
_FROM_V = np.array([1.402, -0.714136, 0.0])
GIVEN = "given pixels come back bit by bit"
# What the comment of every generated file begins with.
GENERATED = "Made by a generative model (trainedAlgorithmicMedia)"
NO_PICTURE = "no picture was made"


@dataclasses.dataclass(frozen=True)
class Marker:
    """Marks the frames of one format.  lacking: why they carry no mark; '' where they do."""

    lacking: str = ""

    @classmethod
    def of(cls, video: np.ndarray | None, lacking: str = "") -> Marker:
        """A marker of frames like these, [..., H, W, 3]; the log says what it does.

        Args:
          lacking: why they shall carry no mark, whatever they are; only then there may be none.
        """
        found = cls(lacking) if lacking else cls.of_size(*video.shape[-3:-1])
        _LOG.info("watermark: %s", found)
        return found

    @classmethod
    def of_size(cls, height: int, width: int, lacking: str = "") -> Marker:
        """A marker of frames of so many pixels; `lacking` as of `of`."""
        if not lacking and min(height, width) < LEAST_SIDE:
            lacking = f"{width}x{height} pixels are too few, the shorter side needs {LEAST_SIDE}"
        return cls(lacking)

    def __str__(self) -> str:
        return f"none: {self.lacking}" if self.lacking else f"{BITS} bits in the frames that were made, none in sound"

    def __call__(self, video_TxHxWx3: np.ndarray, given: int = 0) -> np.ndarray:
        """uint8 [T, H, W, 3] with the mark; the first `given` frames stay as they are."""
        if self.lacking or given >= len(video_TxHxWx3):
            return video_TxHxWx3
        return np.concatenate([video_TxHxWx3[:given], embed(video_TxHxWx3[given:])])


class Found(NamedTuple):
    """What a check found.

    bits: those that are right, of `BITS`.  frames: those that voted.  side: the shorter one of the largest frame.
    """

    bits: int
    frames: int
    side: int

    @property
    def is_marked(self) -> bool:
        return self.bits >= ENOUGH

    @property
    def chance(self) -> float:
        """Probability that a clip without a mark has as many right bits."""
        return chance(self.bits)

    def __str__(self) -> str:
        verdict = "made by poet" if self.is_marked else "no watermark found"
        return (
            f"{verdict}: {self.bits} of {BITS} bits are right, {ENOUGH} are enough; as many by chance: "
            f"{self.chance:.1e} (frames: {self.frames}){self._too_small}"
        )

    @property
    def _too_small(self) -> str:
        if self.is_marked or self.side >= LEAST_SIDE:
            return ""
        return f"; poet marks frames from {LEAST_SIDE} pixels on, the shorter side of these has {self.side}"


def chance(bits: int) -> float:
    """Probability that at least so many of `BITS` fair coins show what they should.

    >>> f"{chance(ENOUGH):.1e}"
    '2.7e-04'
    """
    return sum(math.comb(BITS, k) for k in range(bits, BITS + 1)) / 2**BITS


def embed(video_TxHxWx3: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3]: the frames, each with the mark, about 39 dB from what they were."""
    return np.stack([_marked(frame) for frame in video_TxHxWx3])


def find(frames: Iterable[np.ndarray]) -> Found:
    """The mark in frames, uint8 [H, W, 3] each, of any size."""
    votes, count, side = np.zeros(BITS), 0, 0
    for frame in frames:
        votes, count = votes + np.sin(2 * np.pi / STEP * _sums(frame)), count + 1
        side = max(side, min(frame.shape[:2]))
    return Found(int((votes * _WANTED > 0).sum()), count, side)


def check(path: PathLike) -> Found:
    """The mark in a film or a picture.  Raises MediaError as `poet.media.read_clip`."""
    with open_film(path) as film:
        return find(frame.pixels() for frame, _ in film.timed())


def _marked(frame_HxWx3: np.ndarray) -> np.ndarray:
    pixels = frame_HxWx3.astype(np.float64)
    goal = STEP / 4 * _WANTED
    for _ in range(_ROUNDS):
        beyond = _sums(np.round(pixels)) - goal
        move_HxW = _picture(STEP * np.round(beyond / STEP) - beyond, *pixels.shape[:2])
        pixels = np.clip(pixels + move_HxW[..., None] * _FROM_V, 0, 255)
    return np.round(pixels).astype(np.uint8)


def _sums(frame_HxWx3: np.ndarray) -> np.ndarray:
    """[BITS]: the signed sum of each bit's waves, in levels."""
    v_HxW = frame_HxWx3 @ _TO_V
    height, width = v_HxW.shape
    waves = _cosines(height) @ v_HxW @ _cosines(width).T / (height * width)
    return (waves.ravel()[_CARRIERS] * _SIGNS).sum(1)


def _picture(moves: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width] of V that moves the sums by so much."""
    waves = np.zeros(_WAVES[1] ** 2)
    waves[_CARRIERS] = moves[:, None] * _SIGNS
    return _cosines(height).T @ waves.reshape(_WAVES[1], -1) @ _cosines(width)


@functools.lru_cache(maxsize=8)
def _cosines(side: int) -> np.ndarray:
    """[waves, side], each of root mean square 1."""
    waves = np.arange(_WAVES[1])[:, None]
    return np.where(waves, math.sqrt(2), 1) * np.cos(np.pi / side * waves * (np.arange(side) + 0.5))


def _drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drawn by SHA-256, so that they are the same for ever.

    Returns: the bits, as [BITS] of -1 and 1; places [BITS, n] of each one's waves; their signs, [BITS, n] of unit rows.
    """
    word = np.unpackbits(np.frombuffer(hashlib.sha256(b"made by poet").digest(), np.uint8))[:BITS]
    radius = np.hypot(*np.indices((_WAVES[1], _WAVES[1])))
    inside = np.flatnonzero((radius >= _WAVES[0]) & (radius < _WAVES[1]))
    digests = {int(place): hashlib.sha256(b"wave %d" % place).digest() for place in inside}
    each = len(inside) // BITS
    places = np.array(sorted(digests, key=digests.__getitem__)[: BITS * each]).reshape(BITS, each)
    signs = np.array([1 - 2 * (digests[place][-1] & 1) for place in places.ravel()]).reshape(places.shape)
    return 2.0 * word - 1, places, signs / math.sqrt(each)


_WANTED, _CARRIERS, _SIGNS = _drawn()
