"""A frozen video tokenizer: clips to integer grids and back, with a fingerprint.

Work is cut three ways, by attributes of the tokenizer: sub-batches of clips and tiles, which a mesh
splits; chunks of frames, which are exact; tiles of latents, which are approximate
(`poet.tokenizers.video.tiling`).

Shape legend: B batch, T H W pixels, t h w latents.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from poet.distributed.mesh import BATCH_AXES, batch_ways
from poet.models import declaration
from poet.models.declaration import Tree
from poet.spec import UserError, VideoTokenizerSpec
from poet.tokenizers import frozen
from poet.tokenizers.video import lfq, magvit, tiling
from poet.tokenizers.video.magvit import Frames

# Frames with a smaller side hold one latent of the full-size network, or none.
MIN_SIDE = 9

Tile = tuple[tiling.Window, tiling.Window]  # rows, columns
Step = Callable[..., tuple[jax.Array, Frames]]


def encode_chunk(
    spec: VideoTokenizerSpec, params: Tree, video_BxTxHxWx3: jax.Array, frames: Frames
) -> tuple[jax.Array, Frames]:
    """Pixels uint8, or floats in [0, 1] -> (ids (B, t, h, w), frames that the next chunk needs)."""
    whole_range = 255.0 if video_BxTxHxWx3.dtype == jnp.uint8 else 1.0
    x = video_BxTxHxWx3.astype(jnp.float32) / whole_range
    z, frames = magvit.encode_chunk(spec, params, x, frames)
    return lfq.quantize(z)[1], frames


def decode_chunk(
    spec: VideoTokenizerSpec, params: Tree, ids_Bxtxhxw: jax.Array, frames: Frames
) -> tuple[jax.Array, Frames]:
    """Ids -> (uint8 pixels (B, T, H, W, 3), frames that the next chunk needs)."""
    corners = lfq.ids_to_bits(ids_Bxtxhxw, spec.bits)
    pixels, frames = magvit.decode_chunk(spec, params, corners, frames)
    return jnp.round(jnp.clip(pixels, 0.0, 1.0) * 255.0).astype(jnp.uint8), frames


# Shared by all streams, so that a new one compiles nothing that another has compiled.
_DECODE = jax.jit(decode_chunk, static_argnums=0)


@functools.cache
def _compiled(step: Step, spec: VideoTokenizerSpec, mesh: Mesh | None) -> Step:
    """(weights, block, frames of the chunk before) -> (output, frames), jitted.

    On a mesh every device runs the network on its part of the batch, and none waits for another.
    """
    run = functools.partial(step, spec)
    if mesh is not None:
        whole, parts = PartitionSpec(), PartitionSpec(BATCH_AXES)
        run = jax.shard_map(run, mesh=mesh, in_specs=(whole, parts, parts), out_specs=parts)
    return jax.jit(run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTokenizer(frozen.FrozenTokenizer):
    """Encodes and decodes clips of any legal length and size in one or more calls of the network.

    Attributes:
      params: as `magvit.declare`.
      batch: most clips (tiles, where clips are tiled) per call.
      chunk_frames: frames per call, a multiple of the temporal factor (the first call takes one
        more); 0 takes whole clips.  It changes memory, not the result.
      tile: latents per side of a tile; 0 takes whole frames.  Codes and pixels of a tiled frame are
        approximately those of the whole one.
      overlap: least number of latents that neighbouring tiles share.
    """

    SPEC = VideoTokenizerSpec

    chunk_frames: int = 0
    tile: int = 0
    overlap: int = 8

    def __post_init__(self) -> None:
        factor = self.spec.factor[0]
        if self.chunk_frames < 0 or self.chunk_frames % factor:
            raise UserError(
                f"chunks of {self.chunk_frames} frames: give a multiple of {factor}, the frames "
                "of one latent, or 0 for whole clips"
            )
        if self.batch < 1 or self.tile < 0:
            raise UserError(
                f"batch = {self.batch} and tile = {self.tile}: a batch has at least one clip, and "
                "a tile is 0 (whole frames) or a positive number of latents"
            )
        tiling.windows(self.tile, self.tile, self.overlap)

    @classmethod
    def shapes(cls, spec: VideoTokenizerSpec) -> Tree:
        return declaration.shapes(magvit.declare(spec))

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return 2**self.spec.bits

    def encode(self, video_BxTxHxWx3: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
        """Clips (B, T, H, W, 3) -> int32 ids (B, t, h, w) in 0..codes-1.

        Args:
          video_BxTxHxWx3: uint8, or floats in [0, 1].
          names: what errors call the clips; () counts them.

        Raises UserError on another dtype or rank, a size the network cannot take, or pixels out of
        range.
        """
        video = np.asarray(video_BxTxHxWx3)
        self._check_video(video, names)
        (frames, _, _), (t, h, w) = self.spec.factor, self.spec.grid(*video.shape[1:4])
        ids = np.empty((len(video), t, h, w), np.int32)
        spans = tiling.chunks(video.shape[1], self.chunk_frames)
        latents = tiling.chunks(t, self.chunk_frames // frames)
        scale = self.spec.factor[1:]
        for items, number, codes in self._outputs(encode_chunk, video, spans, self._tiles(h, w), scale):
            for (clip, (rows, columns)), codes_txhxw in zip(items, codes):
                owned = codes_txhxw[:, rows.inner, columns.inner]
                ids[clip, latents[number], rows.owned, columns.owned] = owned
        return ids

    def decode(self, ids_Bxtxhxw: np.ndarray) -> np.ndarray:
        """Integer ids (B, t, h, w) -> uint8 clips (B, T, H, W, 3).

        Raises UserError on another rank, on ids that are not integers or outside the codebook.
        """
        ids = self._checked_ids(np.asarray(ids_Bxtxhxw))
        (ft, fh, fw), (count, t, h, w) = self.spec.factor, ids.shape
        tiles = self._tiles(h, w)
        # Blended tiles are sums of parts.
        dtype = np.uint8 if len(tiles) == 1 else np.float32
        video = np.zeros((count, 1 + ft * (t - 1), h * fh, w * fw, magvit.RGB), dtype)
        spans = tiling.chunks(t, self.chunk_frames // ft)
        frames = tiling.chunks(video.shape[1], self.chunk_frames)
        for items, number, parts in self._outputs(decode_chunk, ids, spans, tiles, (1, 1)):
            for (clip, tile), pixels_TxHxWx3 in zip(items, parts):
                target = _cut(video[clip, frames[number]], tile, (fh, fw))
                if len(tiles) == 1:
                    target[...] = pixels_TxHxWx3
                else:
                    rows, columns = tile[0].weights(fh), tile[1].weights(fw)
                    target += pixels_TxHxWx3 * rows[:, None, None] * columns[:, None]
        return video if dtype == np.uint8 else np.round(video).astype(np.uint8)

    def traced(self, part: str) -> tuple[Callable[[Tree, jax.Array], jax.Array], Tree]:
        """`encode` or `decode` of whole clips as a pure function of weights and a batch, and the weights that it reads.

        Args:
          part: 'encoder', of uint8 (B, T, H, W, 3), or 'decoder', of int32 (B, t, h, w).
        """
        step = {"encoder": encode_chunk, "decoder": decode_chunk}[part]
        return lambda params, block: step(self.spec, params, block, None)[0], {part: self.params[part]}

    def decode_step(self, ids_1xtxhxw: np.ndarray, frames: Frames) -> tuple[jax.Array, Frames]:
        """New latents of one clip -> (uint8 frames (1, T, H, W, 3), what the next chunk needs).

        `frames` is what the chunk before handed on; None: these are the first.
        """
        return _DECODE(self.spec, self.weights, ids_1xtxhxw, frames)

    def steps(self, part: str, height: int, width: int) -> frozen.Steps:
        """One latent frame at a time as a pure function, `part` as in `traced`."""
        step = {"encoder": encode_chunk, "decoder": decode_chunk}[part]
        factor, fh, fw = self.spec.factor
        latent = (1, 1, height // fh, width // fw)
        first, following = ((1, frames, height, width, magvit.RGB) for frames in (1, factor))
        run, weights = functools.partial(step, self.spec), {part: self.params[part]}
        if part == "encoder":
            return frozen.Steps(run, weights, first, following, "uint8")
        return frozen.Steps(run, weights, latent, latent, "int32")

    def _check_video(self, video: np.ndarray, names: Sequence[str]) -> None:
        prefix = f"{', '.join(names)}: " if names else ""
        floating = np.issubdtype(video.dtype, np.floating)
        known = floating or video.dtype == np.uint8
        if video.ndim != 5 or video.shape[-1] != magvit.RGB or not known:
            raise UserError(
                f"{prefix}a batch of clips has dtype {video.dtype} and shape {video.shape}: "
                "expected (batch, frames, height, width, 3), uint8 or floats in [0, 1]"
            )
        height, width = video.shape[2:4]
        if min(height, width) < MIN_SIDE:
            raise UserError(
                f"{prefix}a clip of {height}x{width} pixels cannot be tokenized: a side needs {MIN_SIDE} or more"
            )
        try:
            self.spec.grid(*video.shape[1:4])
        except UserError as error:
            raise UserError(f"{prefix}{error}") from None
        for i, clip in enumerate(video if floating else ()):
            name = names[i] if names else f"clip {i} of the batch"
            if not np.isfinite(clip).all():
                raise UserError(f"{name} has pixels that are NaN or infinite")
            if clip.min() < 0 or clip.max() > 1:
                raise UserError(
                    f"{name} has pixels in {clip.min():g}..{clip.max():g}: floats must lie in "
                    "[0, 1]; divide by 255, or give uint8"
                )

    def _checked_ids(self, ids: np.ndarray) -> np.ndarray:
        if not np.issubdtype(ids.dtype, np.integer) or ids.ndim != 4 or 0 in ids.shape[1:]:
            raise UserError(f"codes have dtype {ids.dtype} and shape {ids.shape}: expected integers (batch, t, h, w)")
        if ids.size and (ids.min() < 0 or ids.max() >= self.codes):
            raise UserError(
                f"codes lie in {ids.min()}..{ids.max()}: this tokenizer has 0..{self.codes - 1}; "
                "subtract the vocabulary offset of the visual range first"
            )
        return ids.astype(np.int32)

    def _tiles(self, h: int, w: int) -> list[Tile]:
        sides = (tiling.windows(size, self.tile, self.overlap) for size in (h, w))
        return list(itertools.product(*sides))

    def _outputs(
        self, step: Step, source: np.ndarray, spans: Sequence[slice], tiles: Sequence[Tile], scale: tuple[int, int]
    ) -> Iterator[tuple[list[tuple[int, Tile]], int, np.ndarray]]:
        """Runs `step` over all clips, tiles and chunks: (clips and tiles, chunk number, output)."""
        items = list(itertools.product(range(len(source)), tiles))
        size = self._sub_batch(len(items), tiled=len(tiles) > 1)
        run = _compiled(step, self.spec, self.mesh)

        def results() -> Iterator[tuple[list[tuple[int, Tile]], int, jax.Array]]:
            for start in range(0, len(items), size):
                part, frames = items[start : start + size], None
                padded = part + part[-1:] * (size - len(part))
                for number, span in enumerate(spans):
                    cuts = [_cut(source[clip, span], tile, scale) for clip, tile in padded]
                    output, frames = run(self.weights, self.placed(np.stack(cuts)), frames)
                    yield part, number, output

        for part, number, output in _one_behind(results()):
            yield part, number, np.asarray(output)[: len(part)]

    def _sub_batch(self, count: int, tiled: bool) -> int:
        """At most `batch`, so that few shapes compile and little is padding.

        Few clips run at the next power of two; tiles, of which every clip of a size has as many, at
        equal sizes.
        """
        size = min(self.batch, 1 << max(count - 1, 0).bit_length())
        if tiled and count:
            size = -(-count // -(-count // self.batch))
        return size + -size % (batch_ways(self.mesh) if self.mesh is not None else 1)


def _cut(x_TxHxWx: np.ndarray, tile: Tile, scale: tuple[int, int]) -> np.ndarray:
    """The tile's view of frames that have `scale` elements per latent."""
    rows, columns = (slice(window.start * f, window.stop * f) for window, f in zip(tile, scale))
    return x_TxHxWx[:, rows, columns]


def _one_behind(items: Iterator[Any]) -> Iterator[Any]:
    """Yields each item after the next was begun: the host reads one while the device makes one."""
    held = next(items, None)
    for item in items:
        yield held
        held = item
    if held is not None:
        yield held
