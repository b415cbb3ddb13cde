"""Samples that collapsed: pictures that stand still or repeat themselves, sound that holds one code.

Codes are looked at, before anything is decoded.  A still scene or silence has the same codes as a collapse: what
is found is named, never dropped.

N samples, M codes of a stream, t h w latents.
"""

from __future__ import annotations

import numpy as np

from poet.tasks.layout import Layout

# The fraction of codes that must agree.
AGREE = 0.95
# Codes of a picture, fewer of which agree by chance.
LEAST = 16


def findings(layout: Layout, tokens_NxS: np.ndarray) -> list[list[str]]:
    """Findings for each of N whole sequences, in words; [] for none.

    Text is not looked at.
    """
    codes, found = layout.parse(tokens_NxS), [[] for _ in tokens_NxS]
    first = {span.segment.stream: span.segment for span in reversed(layout.loss_spans)}
    for name, segment in first.items():
        if segment.padding is not None:
            continue
        look = _sound if segment.time is not None or segment.ids.table == "audio" else pictures
        for words, codes_M in zip(found, codes[name]):
            words += [f"{name}: {word}" for word in look(codes_M[: segment.length].reshape(segment.grid))]
    return found


def pictures(codes_txhxw: np.ndarray) -> list[str]:
    """Frozen to the end over at least two latent frames (one of two), or tiled."""
    same_T = np.mean(codes_txhxw[1:] == codes_txhxw[:-1], axis=(1, 2)) >= AGREE
    moving = np.flatnonzero(~same_T)
    start = moving[-1] + 1 if len(moving) else 0
    words, still = [], len(same_T) - start
    if still >= min(2, max(len(same_T), 1)):
        words.append(f"frozen from latent frame {start} on")
    tiled = [frame for frame, codes_hxw in enumerate(codes_txhxw) if _period(codes_hxw)]
    if tiled:
        down, across = _period(codes_txhxw[tiled[0]])
        shift = f"{down} rows" if down else f"{across} columns"
        words.append(f"tiled, the same after {shift} of codes, in {len(tiled)} of {len(codes_txhxw)} latent frames")
    return words


def _period(codes_hxw: np.ndarray) -> tuple[int, int] | None:
    """The least shift (rows, columns) after which a picture repeats itself, up to half its sides; None of few codes."""
    height, width = codes_hxw.shape
    if codes_hxw.size < LEAST:
        return None
    shifts = [(0, dx) for dx in range(1, width // 2 + 1)] + [(dy, 0) for dy in range(1, height // 2 + 1)]
    for dy, dx in sorted(shifts, key=max):
        shifted = codes_hxw[dy:, dx:] == codes_hxw[: height - dy, : width - dx]
        if shifted.mean() >= AGREE:
            return dy, dx
    return None


def _sound(codes_Fx1x1: np.ndarray) -> list[str]:
    """The first level repeats with a short period."""
    codes_F = codes_Fx1x1.reshape(-1)
    for period in range(1, min(4, len(codes_F) // 3) + 1):
        if np.mean(codes_F[period:] == codes_F[:-period]) >= AGREE:
            return [f"repeats every {period} codes" if period > 1 else "holds one code"]
    return []
