"""Samples as they come: after every latent frame what was sampled, its pictures, progress and time left.

N samples, n rows of a batch, q positions, S layout length, F frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np

from poet.tasks.layout import Layout


class Progress(NamedTuple):
    """The tokens of one call of a program, for some of the samples.

    Attributes:
      rows: int [n], which samples.
      start: first position.
      tokens: int32 [n, q].
      latents: how many latent frames of their pictures were whole before and are now.
      done: fraction of all positions of all samples.
      left_s: seconds that the rest may take; None until there is something to go by.
    """

    rows: np.ndarray
    start: int
    tokens: np.ndarray
    latents: tuple[int, int]
    done: float
    left_s: float | None


class Sampling:
    """An iterator of `Progress`: each step decodes the next latent frame of a batch, or level of sound, or text.

    Who stops taking steps has cancelled the rest; `close` also frees what the device holds for it.

    Attributes:
      tokens: int32 [N, S] so far; a position that is not sampled yet holds its lowest legal id.
    """

    def __init__(
        self,
        layout: Layout,
        count: int,
        parts: Generator[tuple[np.ndarray, int, np.ndarray]],
        detokenize: Callable[[str, np.ndarray], np.ndarray],
        on_step: OnStep | None = None,
    ):
        """`parts` gives (rows [n], start, tokens [n, q]): what is given of each batch, then what is sampled.

        `on_step` is called after each step; what it raises ends the iteration.
        """
        lowest_S = np.concatenate([np.full(s.length, s.ids.low) for s in layout.segments])
        self.tokens = np.tile(lowest_S.astype(np.int32), (count, 1))
        self._layout, self._parts, self._detokenize, self._on_step = layout, parts, detokenize, on_step
        self._pictures = next((span for span in layout.loss_spans if span.segment.frame), None)
        self._begun, self._first, self._done, self._whole = 0.0, 0, 0, 0

    def __iter__(self) -> Sampling:
        return self

    def __next__(self) -> Progress:
        rows, start, tokens = next(self._parts)
        self.tokens[rows, start : start + tokens.shape[1]] = tokens
        self._done += tokens.size
        if start == 0:  # What is given, and no news.
            self._whole = 0
            return next(self)
        before, self._whole = self._whole, self._latents(start + tokens.shape[1])
        progress = Progress(rows, start, tokens, (before, self._whole), self._done / self.tokens.size, self._left_s())
        if self._on_step is not None:
            self._on_step(self, progress)
        return progress

    def close(self) -> None:
        """Ends it; what was sampled stays in `tokens`."""
        self._parts.close()

    def frames(self, progress: Progress) -> np.ndarray | None:
        """uint8 [n, F, H, W, 3]: the frames that a step has finished, each once; None where it has none.

        They are the frames of the whole clip to the bit: the decoder is causal, and runs at the size of whole clips.
        """
        low, high = progress.latents
        if low == high:
            return None
        segment = self._pictures.segment
        codes = self._layout.parse(self.tokens[progress.rows])[segment.stream]
        video = self._detokenize(segment.stream, codes)
        step = (video.shape[1] - 1) // max(segment.grid[0] - 1, 1)
        low, high = (latents and 1 + (latents - 1) * step for latents in (low, high))
        return video[:, low:high]

    def _latents(self, stop: int) -> int:
        """Whole latent frames of video before a position."""
        if self._pictures is None:
            return 0
        segment = self._pictures.segment
        return min(max(stop - self._pictures.start, 0) // segment.frame, segment.grid[0])

    def _left_s(self) -> float | None:
        """By the pace since the first step, which compiles."""
        now = time.monotonic()
        if not self._first:
            self._begun, self._first = now, self._done
            return None
        return (now - self._begun) / (self._done - self._first) * (self.tokens.size - self._done)


# Called after each step of a sampling.
OnStep = Callable[[Sampling, Progress], None]
