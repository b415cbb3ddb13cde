"""How a film drifts: each second beside the first one, in pixels and in codes, and how much is left to see.

A still film drifts nowhere, and one that falls apart loses detail or movement: no number says all by itself.
T frames, t h w latents, K bits of a code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Second:
    """One second of a film.

    Attributes:
      pixels: mean absolute difference to the nearest frame of the first second, in levels of 0..255.
      colours: the same of the mean colour of a frame.
      bits: part of the bits of a code that differ from the nearest latent frame of the first second, 0..1.
      detail: mean absolute difference of a pixel to its neighbours below and to the right, in levels.
      movement: mean absolute difference of a frame to the one before it, in levels.
      codes: different codes in a latent frame, beside its codes, 0..1.
    """

    pixels: float
    colours: float
    bits: float
    detail: float
    movement: float
    codes: float


def curve(video_TxHxWx3: np.ndarray, codes_txhxw: np.ndarray, rate_hz: float, bits: int, factor: int) -> list[Second]:
    """Each whole second of a film.

    Args:
      video_TxHxWx3: uint8.
      codes_txhxw: of the film as one stream: the first shows one frame, each other one `factor` frames.
    """
    count = round(rate_hz)
    video, small = video_TxHxWx3.astype(np.float32), _bits(codes_txhxw, bits)
    first_frames, first_codes = video[:count], small[: max(count // factor, 1)]
    found = []
    for start in range(0, len(video) - count + 1, count):
        frames = video[start : start + count]
        latents = slice(max((start - 1) // factor + 1, 0), max((start + count - 1) // factor + 1, 1))
        found.append(
            Second(
                pixels=_nearest(frames, first_frames),
                colours=_nearest(frames.mean(axis=(1, 2)), first_frames.mean(axis=(1, 2))),
                bits=_nearest(small[latents], first_codes),
                detail=float(np.abs(np.diff(frames, axis=1)).mean() + np.abs(np.diff(frames, axis=2)).mean()) / 2,
                movement=float(np.abs(np.diff(video[max(start - 1, 0) : start + count], axis=0)).mean()),
                codes=float(np.mean([len(np.unique(frame)) / frame.size for frame in codes_txhxw[latents]])),
            )
        )
    return found


def seam_step(video_TxHxWx3: np.ndarray, seams: Sequence[int], factor: int) -> float:
    """How much more a frame differs from the one before it where a clip begins than where another latent frame does.

    A film without seams has 1, where its clips are as lively at their beginnings as elsewhere.

    Args:
      video_TxHxWx3: uint8.
      seams: numbers of the first new frames of clips.
      factor: frames of a latent frame but the first.
    """
    steps = np.abs(np.diff(video_TxHxWx3.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))[::factor]
    at_seam = np.isin(np.arange(1, len(video_TxHxWx3), factor), seams)
    return float(steps[at_seam].mean() / steps[~at_seam].mean())


def _bits(codes_txhxw: np.ndarray, bits: int) -> np.ndarray:
    return ((codes_txhxw[..., None] >> np.arange(bits)) & 1).astype(np.float32)


def _nearest(items: np.ndarray, first: np.ndarray) -> float:
    """The mean over items [n, ...] of the mean absolute difference to the nearest of `first` [m, ...]."""
    return float(np.mean([min(np.abs(item - other).mean() for other in first) for item in items]))
