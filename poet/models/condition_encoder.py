"""What a conditioning picture tells of the places around a cell, added to the states that predict there.

`MODEL.aligned_conditions` takes the row of one code to the state that predicts the same place.  What flow and depth
say of a place needs the bits of a neighbourhood, and products of them: two layers read the bits of the 3x3 codes around
each cell.  The last product of each use begins at 0, where the encoder does nothing:

* a picture's cell is added where the cell of that place is predicted (as by ControlAR's encoder, 2410.02705);
* the cells of a latent frame, pooled by learnt attention, and those of the frames before and after it, are added to all
  sound of that time, by its time within the latent frame and its level.

Shape suffixes: B batch, N prefix positions, C cells of a picture, K bits, I inputs, F features, H pooling heads, T
latent frames, Y rows, X columns, S positions of an output, W waves, L levels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poet.models.declaration import Tree, Weight, fan_in, zeros
from poet.models.layers import constrain
from poet.spec import ModelSpec
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Layout, Span

SIDE = 3  # Of the neighbourhood, in cells.
AROUND = 3  # Latent frames that a moment of sound reads.
HEADS = 4
# Half periods of waves over a latent frame, in which about 25 codes of sound lie.
WAVES = np.arange(1, 7)


def declare(spec: ModelSpec, vocabulary: Vocabulary) -> Tree:
    """Two layers for cells, `picture` [F, D], and the layers of sound, of which `sound` [F, D] is the last."""
    features = spec.condition_encoder
    out = Weight((features, spec.width), (None, "table_embed"), zeros, spec.param_dtype)

    def read(inputs: int, outputs: int = features) -> Weight:
        return Weight((inputs, outputs), (None, None), fan_in(inputs), spec.param_dtype)

    return {
        "first": read(SIDE**2 * vocabulary.spec.visual_bits + 2),
        "second": read(features),
        "picture": out,
        "heads": read(features, HEADS),
        "frames": read(AROUND * HEADS * features),
        "times": read(2 * len(WAVES)),
        "levels": read(vocabulary.spec.audio_levels),
        "sound": out,
    }


def encode(
    weights: Tree, tokens_BxN: jax.Array, layout: Layout, bits: int, dtype: jnp.dtype
) -> Iterator[tuple[Span, jax.Array, jax.Array]]:
    """(Output span, its features [B, S, F] in `dtype`, the product [F, D] that adds them) of each conditioned span.

    Args:
      tokens_BxN: ids, the whole prefix among them.
      bits: of a visual code.
    """
    inner = {name: constrain(w.astype(dtype), None, None) for name, w in weights.items()}
    for given, outputs in _by_picture(layout):
        z_BxCxF = _cells(inner, tokens_BxN, given, bits)
        frames_BxTxF = None
        for output in outputs:
            if output.segment.frame:
                yield output, z_BxCxF[:, : output.stop - output.start], weights["picture"]
                continue
            frames_BxTxF = _frames(inner, z_BxCxF, given) if frames_BxTxF is None else frames_BxTxF
            yield output, _heard(inner, frames_BxTxF, output), weights["sound"]


def flops(weights: Tree, layout: Layout) -> int:
    """Products of the forward pass for one sequence, 2 for each multiplication; `weights` are declared or real ones."""
    cost = {name: 2 * math.prod(w.shape) for name, w in weights.items()}
    total = 0
    for given, outputs in _by_picture(layout):
        total += given.segment.length * (cost["first"] + cost["second"])
        if any(not output.segment.frame for output in outputs):
            total += given.segment.length * 2 * cost["heads"] + given.segment.grid[0] * cost["frames"]
        total += sum((output.stop - output.start) * cost["picture"] for output in outputs)
    return total


def _by_picture(layout: Layout) -> list[tuple[Span, list[Span]]]:
    """Conditioning pictures, each with the outputs that it conditions."""
    found: dict[int, tuple[Span, list[Span]]] = {}
    for given, output in (*layout.aligned, *layout.accompanied):
        found.setdefault(given.start, (given, []))[1].append(output)
    return list(found.values())


def _cells(weights: Tree, tokens_BxN: jax.Array, given: Span, bits: int) -> jax.Array:
    """Features [B, C, F] of the cells of a picture: of the bits around each, 0 where there are none, and its place."""
    segment, (frames, height, width) = given.segment, given.segment.grid
    ids_BxCx1 = tokens_BxN[:, given.start : given.start + segment.length, None]
    bits_BxCxK = jnp.where(ids_BxCx1 == Special.HIDDEN, 0, (ids_BxCx1 - segment.ids.low >> np.arange(bits) & 1) * 2 - 1)
    x = bits_BxCxK.astype(weights["first"].dtype).reshape(-1, frames, height, width, bits)
    edge = SIDE // 2
    x = jnp.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge), (0, 0)))
    around = [x[:, :, y : y + height, z : z + width] for y in range(SIDE) for z in range(SIDE)]
    place_YxXx2 = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (height, width)), indexing="ij"), axis=-1)
    place = jnp.broadcast_to(jnp.asarray(place_YxXx2, x.dtype), (*around[0].shape[:-1], 2))
    place = constrain(place, "batch", None, None, None, None)
    x_BxCxI = jnp.concatenate([*around, place], axis=-1).reshape(len(ids_BxCx1), segment.length, -1)
    z_BxCxF = jax.nn.gelu(jnp.einsum("bci,if->bcf", x_BxCxI, weights["first"]))
    return jax.nn.gelu(jnp.einsum("bcf,fg->bcg", z_BxCxF, weights["second"]))


def _frames(weights: Tree, z_BxCxF: jax.Array, given: Span) -> jax.Array:
    """Features [B, T, F] of each latent frame and those beside it, before the nonlinearity."""
    frames, height, width = given.segment.grid
    z_BxTxCxF = z_BxCxF.reshape(len(z_BxCxF), frames, height * width, -1)
    share_BxTxCxH = jax.nn.softmax(jnp.einsum("btcf,fh->btch", z_BxTxCxF, weights["heads"]), axis=2)
    pooled_BxTxI = jnp.einsum("btch,btcf->bthf", share_BxTxCxH, z_BxTxCxF).reshape(len(z_BxCxF), frames, -1)
    pooled_BxTxI = jnp.pad(pooled_BxTxI, ((0, 0), (AROUND // 2, AROUND // 2), (0, 0)))
    around = jnp.concatenate([pooled_BxTxI[:, i : i + frames] for i in range(AROUND)], axis=-1)
    return jnp.einsum("bti,if->btf", around, weights["frames"])


def _heard(weights: Tree, frames_BxTxF: jax.Array, output: Span) -> jax.Array:
    """Features [B, S, F] of the pictures at the time of each code of sound."""
    moments = _moments(weights, frames_BxTxF.shape[1], output)
    latent_SxT, times_SxW, level_SxL = (jnp.asarray(x, frames_BxTxF.dtype) for x in moments)
    moment_SxF = times_SxW @ weights["times"] + level_SxL @ weights["levels"]
    return jax.nn.gelu(jnp.einsum("st,btf->bsf", latent_SxT, frames_BxTxF) + moment_SxF)


def _moments(weights: Tree, frames: int, output: Span) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each code of sound: its latent frame, as 0 and 1, waves of its time within it, and its level, as 0 and 1."""
    segment: Any = output.segment
    first, step = segment.time
    # The middle of latent frame k is at time k.
    time_S = first + step * np.arange(segment.length) + 0.5
    latent_S = np.clip(np.floor(time_S), 0, frames - 1).astype(int)
    angle_SxW = np.pi * WAVES * (time_S - latent_S)[:, None]
    level_S = np.full(segment.length, segment.part // segment.length)
    waves = np.concatenate([np.cos(angle_SxW), np.sin(angle_SxW)], axis=1)
    return np.eye(frames)[latent_S], waves, np.eye(weights["levels"].shape[0])[level_S]
