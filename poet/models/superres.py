"""The super-resolution transformer: codes of a clip at twice its height and width, from those that it has.

High-resolution codes are masked or known; every block has three layers whose attention stays within
windows (tall, wide, long in time), each of which also attends to the window of the low-resolution grid that
shows the same place; then the block attends to the text (VideoPoet §4.4; spec §1.14).  Codes are factorised
as in the language model (`MODEL.visual_head`), whose parameters, tables and rules of placement are used.

Shape suffixes: B batch, S high-resolution positions, M low-resolution positions, P positions of all windows,
D width, L text positions, E width of text states, K key-value heads, G query heads per key-value head,
H head dim.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from poet.models import attention, layers, tables, transformer, windows
from poet.models.declaration import Normal, Tree, Weight
from poet.models.layers import constrain, normed
from poet.models.transformer import Params, Text
from poet.models.windows import Partition
from poet.spec import ModelSpec, SuperResolutionSpec, UserError
from poet.spec.vocabulary import Range, Special, Vocabulary
from poet.streams.base import HIDDEN, Grid
from poet.streams.low_resolution import SCALE
from poet.tasks.resolved import Resolved

# Of the learnt vectors' elements, beside embedded codes of 1.
STDDEV = 0.5
AXES = ("vertical", "horizontal", "temporal")


@dataclasses.dataclass(frozen=True)
class _Visual(Vocabulary):
    """A vocabulary of which the visual codes alone have tables."""

    @property
    def tables(self) -> dict[str, Range]:
        return {tables.VISUAL: super().tables[tables.VISUAL]}


def _declare_embedding(spec: ModelSpec, vocabulary: Vocabulary, text_width: int) -> Tree:
    """Rows of codes, shared by both resolutions; what stands for a masked code and for no text."""
    shared = tables.declare_embedding(
        spec.replace(condition_marker=True, aligned_conditions=False, condition_encoder=0, guidance_input=False),
        vocabulary,
        text_width,
    )
    vector = Weight((1, spec.width), (None, None), Normal(STDDEV), spec.param_dtype)
    return {**shared, "masked": vector, "no_text": vector}


def _declare_block(spec: ModelSpec) -> Tree:
    """A layer for each axis (self-attention, attention to the low resolution, an MLP), attention to the text."""
    norm, attend = layers.norm(spec.width, spec.param_dtype), layers.declare_attention(spec)
    norms = {"attention_norm": norm, "cross_norm": norm, "mlp_norm": norm}
    layer = {**norms, "attention": attend, "cross": attend, "mlp": layers.declare_mlp(spec)}
    return {**dict.fromkeys(AXES, layer), "text_norm": norm, "text": attend}


@dataclasses.dataclass(frozen=True)
class _Place:
    """The windows of one layer on both grids, and their rotary tables [2, P, H // 2]."""

    high: Partition
    low: Partition
    high_rotary: np.ndarray
    low_rotary: np.ndarray


def _layer(weights: Tree, x_BxPxD: jax.Array, low_BxPxD: jax.Array, place: _Place) -> jax.Array:
    """Self-attention within windows, attention to low-resolution windows, and an MLP; everything in the
    order of `place`'s windows."""
    high, low = jnp.asarray(place.high_rotary), jnp.asarray(place.low_rotary)
    q, k, v = layers.project(weights["attention"], normed(weights["attention_norm"], x_BxPxD), (high, high))
    o = windows.attend(q, k, v, place.high, place.high)
    x_BxPxD += layers.merge(weights["attention"], o, layers.like(x_BxPxD))
    q = layers.queries(weights["cross"], normed(weights["cross_norm"], x_BxPxD), high)
    k, v = layers.keys(weights["cross"], low_BxPxD, low)
    x_BxPxD += layers.merge(weights["cross"], windows.attend(q, k, v, place.high, place.low), layers.like(x_BxPxD))
    return x_BxPxD + layers.mlp(weights["mlp"], normed(weights["mlp_norm"], x_BxPxD))


def _block(
    weights: Tree,
    x_BxSxD: jax.Array,
    low_BxMxD: jax.Array,
    text_BxLxD: jax.Array,
    seen_BxL: jax.Array,
    places: tuple[_Place, ...],
) -> jax.Array:
    for name, place in zip(AXES, places):
        cut = place.high.cut(x_BxSxD), place.low.cut(low_BxMxD)
        x_BxSxD = place.high.join(_layer(weights[name], *cut, place))
    q = layers.queries(weights["text"], normed(weights["text_norm"], x_BxSxD), None)
    k, v = layers.keys(weights["text"], text_BxLxD, None)
    o = attention.scaled_dot_product(q, k, v, seen_BxL[:, None])
    return x_BxSxD + layers.merge(weights["text"], o, layers.like(x_BxSxD))


@dataclasses.dataclass(frozen=True)
class SuperResolution(transformer.Model):
    """The network of some size over the visual codes of a vocabulary; holds no arrays.

    Parameters {"embedding", "blocks", "head"}, tables and the factors of a code are those of
    `transformer.Model`; `MODEL.layers` counts the layers of all blocks.
    """

    windows: SuperResolutionSpec

    def __post_init__(self) -> None:
        if self.spec.layers % len(AXES):
            raise UserError(
                f"MODEL.layers = {self.spec.layers}: a block of super-resolution has {len(AXES)} layers, so it must "
                f"be a multiple of {len(AXES)}"
            )

    @property
    def blocks(self) -> int:
        """Blocks of three layers."""
        return self.spec.layers // len(AXES)

    @property
    def stacked(self) -> int:
        return self.blocks

    @functools.cached_property
    def declared(self) -> dict[str, Tree]:
        return {
            "embedding": _declare_embedding(self.spec, self.vocabulary, self.text_width),
            "blocks": _declare_block(self.spec),
            "head": tables.declare_head(self.spec, self.vocabulary),
        }

    # --------------------------------------------------------------------------------- the network

    def states(
        self, params: Params, codes_BxS: jax.Array, low_BxM: jax.Array, grid: Grid, text: Text | None = None
    ) -> jax.Array:
        """Final-normed states x_BxSxD, compute dtype, that score the code of each position.

        Args:
          codes_BxS: int32 codes of the high resolution, `HIDDEN` where they are masked.
          low_BxM: int32 codes of the low resolution, `HIDDEN` where they are not given.
          grid: (t, h, w) of the high resolution, static.
          text: states [B, L, E] and bool [B, L]; None is no text.

        Raises UserError, while tracing, for a grid that has no lower resolution.
        """
        places = self.places(grid)
        x_BxSxD, low_BxMxD, text_BxLxD, seen_BxL = self._embedded(params, codes_BxS, low_BxM, grid, text)

        def body(x_BxSxD: jax.Array, block: Params) -> tuple[jax.Array, None]:
            weights = layers.gathered(self.declared["blocks"], block, self.dtype)
            return _block(weights, x_BxSxD, low_BxMxD, text_BxLxD, seen_BxL, places), None

        run = layers.remat(body, self.spec.remat)
        unroll = self.blocks if self.blocks <= transformer.UNROLLED_LAYERS // len(AXES) else 1
        x_BxSxD, _ = jax.lax.scan(run, x_BxSxD, params["blocks"], unroll=unroll)
        return self._final_norm(params, x_BxSxD)

    def places(self, grid: Grid) -> tuple[_Place, ...]:
        """The windows of a block's layers.

        Raises UserError for a grid that has no lower resolution, or windows that none has.
        """
        found = []
        for window in self.windows.windows:
            high = windows.partition(grid, window, SCALE)
            low = windows.coarser(high, SCALE)
            rotary = (
                layers.rotary_table(cells, self.spec.head_dim, self.spec.rope_base)
                for cells in (high.places(), low.places(SCALE))
            )
            found.append(_Place(high, low, *rotary))
        return tuple(found)

    def _embedded(
        self, params: Params, codes_BxS: jax.Array, low_BxM: jax.Array, grid: Grid, text: Text | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """x_BxSxD, low_BxMxD, text_BxLxD with its mask: what blocks work on and attend to."""
        embedding, factors = params["embedding"], self.factors(self.vocabulary.visual)
        low_BxMxD = tables.embed_condition(self.spec, embedding, factors, self._ids(low_BxM), self.dtype)
        masked_BxSx1 = (codes_BxS == HIDDEN)[..., None]
        codes_BxS = self._ids(jnp.maximum(codes_BxS, 0))
        rows_BxSxD = tables.embed(self.spec, embedding, factors, codes_BxS, self.dtype)
        hidden_D = embedding["masked"][0].astype(self.dtype)
        if self.windows.masked_cells == "condition":
            hidden_D = hidden_D + enlarged(low_BxMxD, grid)
        x_BxSxD = constrain(jnp.where(masked_BxSx1, hidden_D, rows_BxSxD), "batch", None, None)
        clips = codes_BxS.shape[0]
        nothing_D = embedding["no_text"][0].astype(self.dtype)
        nothing_Bx1xD = constrain(jnp.broadcast_to(nothing_D, (clips, 1, self.spec.width)), "batch", None, None)
        seen_Bx1 = constrain(jnp.ones((clips, 1), bool), "batch", None)
        if text is None:
            return x_BxSxD, low_BxMxD, nothing_Bx1xD, seen_Bx1
        text_BxLxD = transformer.embed_text(embedding["text_states"], text, self.dtype)
        states = jnp.concatenate([nothing_Bx1xD, text_BxLxD], axis=1)
        return x_BxSxD, low_BxMxD, states, jnp.concatenate([seen_Bx1, text[1]], axis=1)

    def _ids(self, codes: jax.Array) -> jax.Array:
        return jnp.where(codes == HIDDEN, int(Special.HIDDEN), codes + self.vocabulary.visual.low)

    # ------------------------------------------------------------------------------------ its size

    def forward_flops(self, grid: Grid, text_length: int = 0) -> int:
        """FLOPs of the forward pass of one clip, with its logits; those of products alone, as in `training.flops`."""
        spec, high, low, text = self.spec, math.prod(grid), math.prod(grid) // SCALE**2, text_length + 1
        head = 2 * spec.width * spec.head_dim
        read_write, keys = 2 * head * spec.heads, 2 * head * spec.kv_heads
        pairs = sum(high * math.prod(p.window) for place in self.places(grid) for p in (place.high, place.low))
        mlps = len(AXES) * high * 6 * spec.width * spec.mlp_width
        products = len(AXES) * (high * (2 * read_write + keys) + low * keys) + high * read_write + text * keys
        scores = 4 * (pairs + high * text) * spec.heads * spec.head_dim
        rows = self.factors(self.vocabulary.visual).rows
        return self.blocks * (mlps + products + scores) + 2 * spec.width * (high * rows + text_length * self.text_width)


def enlarged(low_BxMxD: jax.Array, grid: Grid) -> jax.Array:
    """[B, M, D] of the low-resolution grid -> [B, S, D]: each cell where it lies in the grid (t, h, w)."""
    cells = np.arange(math.prod(grid) // SCALE**2).reshape(grid[0], grid[1] // SCALE, grid[2] // SCALE)
    return low_BxMxD[:, cells.repeat(SCALE, 1).repeat(SCALE, 2).reshape(-1)]


def build(spec: ModelSpec, windows: SuperResolutionSpec, vocabulary: Vocabulary, text_width: int) -> SuperResolution:
    """A network from its parts; UserError for a number of layers that makes no blocks."""
    return SuperResolution(spec, _Visual(vocabulary.spec), text_width, windows)


def build_model(resolved: Resolved) -> SuperResolution:
    """The super-resolution network of a run; errors as of `build`."""
    spec = resolved.spec
    return build(spec.model, spec.super_resolution, resolved.vocabulary, spec.text.width)
