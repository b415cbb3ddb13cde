"""Clips at twice their height and width: the Python API of `poet upscale`.

A clip that is longer than those of the model is taken in chunks that share frames, a larger one in tiles that
share codes; what an earlier part has made is given to the later one, and shared frames fade from one to the other.

Shape suffixes: N clips, T frames, h, w rows and columns of the clip, H, W of the result.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from poet.conditioning.nearest import opencv
from poet.sampling import projection, steadying
from poet.sampling.passes import Passes, SamplingParams, Text, passes, sampling_params
from poet.spec import Experiment, UserError, near_names
from poet.spec.base import setting_of
from poet.streams.base import HIDDEN, Grid
from poet.streams.low_resolution import SCALE
from poet.tasks.resolved import Resolved
from poet.tokenizers.text import TextEncoder, load_text_encoder
from poet.tokenizers.video.tiling import windows

DEFAULT_BATCH = 4


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Frames [start, stop) of a clip, of which the first `shared` are also the last of the chunk before."""

    start: int
    stop: int
    shared: int


def chunks(frames: int, length: int, shared: int) -> list[Chunk]:
    """Chunks of `length` frames that cover at least `frames`; neighbours share so many.

    >>> chunks(20, 9, 5)
    [Chunk(start=0, stop=9, shared=0), Chunk(start=4, stop=13, shared=5), Chunk(start=8, stop=17, shared=5), \
Chunk(start=12, stop=21, shared=5)]
    """
    starts = range(0, max(frames - shared, 1), length - shared)
    return [Chunk(start, start + length, shared if start else 0) for start in starts]


# Plan, known codes and `HIDDEN` int32 [B, S], low resolution int32 [B, M], texts, rows int32 [B] -> codes int32 [B, S].
Sampler = Callable[[Passes, np.ndarray, np.ndarray, Text | None, np.ndarray, SamplingParams], Any]


class Upscaler:
    """A super-resolution network with its frozen networks, of a checkpoint or an export (`poet.sampling.larger`).

    Attributes:
      resolved: of the spec in the checkpoint; its clips have the high resolution.
      sampler: the network's programs.
      video_tokenizer: `poet.tokenizers.video.base.VideoTokenizer`, or what stands for one in an export.
      on_part: called with the fraction of a clip that is made, after each tile; what it raises ends the upscaling.
    """

    on_part: Callable[[float], None] | None = None

    def __init__(
        self, resolved: Resolved, sampler: Sampler, video_tokenizer: Any, text_encoder: TextEncoder | None = None
    ):
        self.resolved, self.sampler, self.video_tokenizer = resolved, sampler, video_tokenizer
        self._text_encoder = text_encoder

    def changed(self, **settings: Any) -> Upscaler:
        """The same network by other values of SUPER_RESOLUTION; UserError for one that shapes a network."""
        spec = self.experiment.super_resolution
        free = [f.name for f in dataclasses.fields(spec) if (found := setting_of(f)) and found.changes == "nothing"]
        for name in settings:
            if name not in free:
                raise UserError(f"super-resolution takes no {name!r} from a request{near_names(name, free)}")
        other = copy.copy(self)
        other.resolved = Resolved(self.experiment.replace(super_resolution=spec.replace(**settings)))
        return other

    @property
    def experiment(self) -> Experiment:
        """The spec of `resolved`."""
        return self.resolved.spec

    @property
    def text_encoder(self) -> TextEncoder:
        """Loaded when a text first needs it."""
        if self._text_encoder is None:
            self._text_encoder = load_text_encoder(self.experiment.text)
        return self._text_encoder

    @property
    def grid(self) -> Grid:
        """High-resolution latents (t, h, w) that the network sees at once."""
        return self.resolved.format.video

    # --------------------------------------------------------------------------------- whole clips

    def upscale(
        self,
        video_NxTxhxwx3: np.ndarray,
        prompts: Sequence[str] = (),
        *,
        seed: int = 0,
        batch: int = DEFAULT_BATCH,
        first: int = 0,
        codes_Nxtxhxw: np.ndarray | None = None,
    ) -> np.ndarray:
        """uint8 [N, T, H, W, 3] of twice the height and width.

        Args:
          video_NxTxhxwx3: uint8 at the frame rate of the model's clips.
          prompts: one for each clip, or none.
          seed: with a clip's place in the request, of all that is sampled for it.
          batch: clips that are sampled together; in float32 it changes no sample.
          first: number of the first clip in its request.
          codes_Nxtxhxw: int32 codes of the clips by the model's tokenizer, where they are known: clips as long as
            the model's are then not encoded again.

        Raises UserError for clips that the model or its tokenizer cannot take, before anything is sampled.
        """
        video = np.asarray(video_NxTxhxwx3)
        self.check(video.shape, prompts)
        text = self._text(prompts)
        spec, factor = self.experiment.super_resolution, self.video_tokenizer.spec.factor[0]
        frames, length = video.shape[1], self.experiment.clip.frames
        shared = min(1 + (spec.overlap_time - 1) * factor, length - factor)
        parts = chunks(frames, length, shared)
        held = np.concatenate([video, video[:, -1:].repeat(parts[-1].stop - frames, axis=1)], axis=1)
        made = np.zeros((*held.shape[:2], SCALE * video.shape[2], SCALE * video.shape[3], 3), np.uint8)
        for number, part in enumerate(parts):
            opening = made[:, part.start : part.start + part.shared]
            low = codes_Nxtxhxw
            if low is None or frames != length:
                low = self.video_tokenizer.encode(held[:, part.start : part.stop])
            new = self._chunk(low, opening, text, seed, number, batch, first, len(parts))
            new = self._consistent(new, held[:, part.start : part.stop])
            made[:, part.start : part.stop] = faded(opening, new)
        return self._steadied(made[:, :frames], video)

    def check(self, shape: Sequence[int], prompts: Sequence[str] = ()) -> None:
        """Raises UserError unless clips of this shape [N, T, h, w, 3] can be upscaled with these prompts."""
        if self.experiment.super_resolution.steadiness:
            opencv("SUPER_RESOLUTION.steadiness above 0")
        check(self.resolved, shape, prompts)

    def _text(self, prompts: Sequence[str]) -> Text | None:
        if not any(prompts):
            return None
        found = self.text_encoder(list(prompts))
        lengths_N = np.asarray(found.lengths_B)
        states = np.asarray(found.states_BxLxD).astype(np.float16)  # As a store keeps them.
        return states, np.arange(states.shape[1])[None] < lengths_N[:, None]

    def corrected(self, made: np.ndarray, given: np.ndarray) -> np.ndarray:
        """uint8 [N, T, H, W, 3]: what becomes of clips `made` for clips `given` [N, T, h, w, 3], whoever made them."""
        return self._steadied(self._consistent(made, given), given)

    def _steadied(self, made: np.ndarray, given: np.ndarray) -> np.ndarray:
        """uint8 [N, T, H, W, 3]: `made`, with less flicker (SUPER_RESOLUTION.steadiness)."""
        spec = self.experiment.super_resolution
        if not spec.steadiness:
            return made
        return np.stack([steadying.steadied(*pair, spec.steadiness, spec.consistency) for pair in zip(made, given)])

    def _consistent(self, made: np.ndarray, given: np.ndarray) -> np.ndarray:
        """uint8 [N, T, H, W, 3]: `made`, corrected by `given` (SUPER_RESOLUTION.consistency and .detail)."""
        spec = self.experiment.super_resolution
        if not spec.consistency and spec.detail == 1:
            return made
        return np.stack([projection.projected(*pair, spec.consistency, spec.detail) for pair in zip(made, given)])

    # ------------------------------------------------------------------------------------- one chunk

    def _chunk(
        self,
        low: np.ndarray,
        opening: np.ndarray,
        text: Text | None,
        seed: int,
        number: int,
        batch: int,
        first: int,
        chunks: int,
    ) -> np.ndarray:
        """uint8 [N, T, H, W, 3] of a chunk of codes [N, t, h, w]; its first frames are known at the high resolution."""
        count, t, h, w = low.shape
        canvas = np.full((count, t, SCALE * h, SCALE * w), HIDDEN, np.int32)
        if opening.shape[1]:
            known = self.video_tokenizer.encode(opening)
            canvas[:, : known.shape[1]] = known
        tiles = [*self._tiles(h, w)]
        for place, (rows, columns) in enumerate(tiles):
            part = number << 16 | place
            high_rows, high_columns = (slice(SCALE * s.start, SCALE * s.stop) for s in (rows, columns))
            target = canvas[:, :, high_rows, high_columns]
            target[...] = self._sampled(target, low[:, :, rows, columns], text, seed, part, batch, first)
            if self.on_part is not None:
                self.on_part((number + (place + 1) / len(tiles)) / chunks)
        return self.video_tokenizer.decode(canvas)

    def _tiles(self, h: int, w: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the low-resolution grid."""
        overlap = self.experiment.super_resolution.overlap // SCALE
        sides = zip((h, w), (side // SCALE for side in self.grid[1:]))
        cut = (windows(size, tile, min(overlap, tile - 1)) for size, tile in sides)
        yield from itertools.product(*([slice(each.start, each.stop) for each in side] for side in cut))

    def _sampled(
        self, codes: np.ndarray, low: np.ndarray, text: Text | None, seed: int, part: int, batch: int, first: int
    ) -> np.ndarray:
        """int32 [N, t, h, w]: what is hidden of `codes`, sampled; the last batch is filled up."""
        spec, count = self.experiment.super_resolution, len(codes)
        plan = passes(spec, self.grid, text is not None)
        params = sampling_params(spec, text is not None, seed, part)
        found = []
        for start in range(0, count, batch):
            rows = np.arange(start, start + batch)
            take = np.minimum(rows, count - 1)
            given = None if text is None else (text[0][take], text[1][take])
            flat = (x[take].reshape(batch, -1) for x in (codes, low))
            found.append(np.asarray(self.sampler(plan, *flat, given, np.int32(first + rows), params)))
        return np.concatenate(found)[:count].reshape(codes.shape)


def check(resolved: Resolved, shape: Sequence[int], prompts: Sequence[str] = ()) -> None:
    """Raises UserError unless a network of this experiment upscales clips of this shape [N, T, h, w, 3]."""
    if len(shape) != 5 or shape[-1] != 3:
        raise UserError(f"clips of shape {tuple(shape)}: expected (clips, frames, height, width, 3)")
    count, frames, height, width, _ = shape
    if prompts and len(prompts) != count:
        raise UserError(f"{len(prompts)} prompts for {count} clips: give one for each clip, or none")
    clip = resolved.spec.clip
    grid = resolved.spec.video_tokenizer.grid(clip.frames, height, width)
    least = tuple(side // SCALE for side in resolved.format.video)
    if grid[1] < least[1] or grid[2] < least[2] or not frames:
        raise UserError(
            f"a clip of {frames} frames of {height}x{width} is smaller than what the model upscales, "
            f"{clip.height // SCALE}x{clip.width // SCALE}: give a larger clip, or a model of smaller ones"
        )


def faded(opening: np.ndarray, new: np.ndarray) -> np.ndarray:
    """uint8 [N, T, H, W, 3]: `new`, whose first frames come in gradually over those of `opening`."""
    shared = opening.shape[1]
    weight = (np.arange(1, shared + 1) / (shared + 1))[:, None, None, None]
    mixed = np.round((1 - weight) * opening + weight * new[:, :shared]).astype(np.uint8)
    return np.concatenate([mixed, new[:, shared:]], axis=1)


def chained(
    upscalers: Sequence[Upscaler],
    video_NxTxhxwx3: np.ndarray,
    prompts: Sequence[str] = (),
    *,
    seed: int = 0,
    batch: int = 1,
    first: int = 0,
    codes_Nxtxhxw: np.ndarray | None = None,
) -> np.ndarray:
    """uint8 [N, T, H, W, 3]: the clips by each of the networks in turn, which doubles their height and width.

    Arguments and errors are those of `Upscaler.upscale`.
    """
    for upscaler in upscalers:
        video_NxTxhxwx3 = upscaler.upscale(
            video_NxTxhxwx3, prompts, seed=seed, batch=batch, first=first, codes_Nxtxhxw=codes_Nxtxhxw
        )
        codes_Nxtxhxw = None
    return video_NxTxhxwx3
