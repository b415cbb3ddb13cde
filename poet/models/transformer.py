"""The prefix language model: pure functions of a nested dict of parameters.

The layout is static, so it decides at trace time which table embeds a position, which rows can
follow it, where rotary positions lie and how attention is cut.  The transformer blocks are one
declaration whose parameters carry a leading `layers` dim and are run by a scan.

Shape suffixes: B batch, S sequence, N leading positions, O output positions, D width, L text
positions, E width of text states, V rows of a table, C cache length, K key-value heads, H head dim.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poet.models import attention, condition_encoder, declaration, guidance, kernels, layers, sequence, tables
from poet.models import cache as cache_lib
from poet.models.cache import Cache, Places
from poet.models.declaration import Tree
from poet.models.layers import constrain
from poet.models.stored import is_stored, restored
from poet.spec import ModelSpec, UserError
from poet.spec.vocabulary import Range, Vocabulary
from poet.tasks.layout import Layout, Segment, Span
from poet.tasks.resolved import Resolved

Params = dict[str, Any]
# States [B, L, E] of the frozen text encoder; bool [B, L], True where a piece stands; and, for a model with
# `guidance_input`, beta [B] of guidance by this text (`poet.models.guidance`), without which it is 1.
Text = tuple[jax.Array, ...]

# Shallow models are unrolled: every layer then reads its parameters in place and keeps its
# residuals apart, instead of slicing and updating stacked arrays.  Deep ones compile one layer.
UNROLLED_LAYERS = 8


@dataclasses.dataclass(frozen=True)
class Model:
    """A prefix LM of some size over a vocabulary; holds no arrays.

    Under `jax.set_mesh` activations are sharded over the batch axes, heads, MLP and vocabulary over
    `tensor`, positions between attentions over `sequence`; with no mesh set the same functions run on
    one device.

    Attributes:
      text_width: width of the text encoder's states.
    """

    spec: ModelSpec
    vocabulary: Vocabulary
    text_width: int

    # ------------------------------------------------------------------------------- parameters

    @functools.cached_property
    def declared(self) -> dict[str, Tree]:
        """The weights of each part, {"embedding", "blocks", "head"}; of "blocks" those of one layer."""
        return {
            "embedding": tables.declare_embedding(self.spec, self.vocabulary, self.text_width),
            "blocks": layers.declare_block(self.spec),
            "head": tables.declare_head(self.spec, self.vocabulary),
        }

    def init(self, key: jax.Array) -> Params:
        """Random parameters: {"embedding", "blocks", "head"}, in `ModelSpec.param_dtype`."""
        keys = dict(zip(self.declared, jax.random.split(key, 3)))
        keys["blocks"] = jax.random.split(keys["blocks"], self.stacked)

        def make(part: str) -> Callable[[jax.Array], Params]:
            made = functools.partial(declaration.init, self.declared[part], streams=declaration.as_declared)
            return jax.vmap(made) if part == "blocks" else made

        return {part: make(part)(part_key) for part, part_key in keys.items()}

    @property
    def stacked(self) -> int:
        """Blocks, whose parameters lie stacked."""
        return self.spec.layers

    def abstract(self) -> Params:
        """ShapeDtypeStruct of every parameter."""
        return declaration.shapes(self._all_layers())

    def axes(self) -> Params:
        """Logical axes of every parameter, a tree like `abstract()`."""
        return declaration.axes(self._all_layers())

    def _all_layers(self) -> dict[str, Tree]:
        blocks = declaration.stacked(self.declared["blocks"], self.stacked, "layers")
        return {**self.declared, "blocks": blocks}

    # ------------------------------------------------------------------------ the full sequence

    def hidden(self, params: Params, tokens_BxS: jax.Array, layout: Layout, text: Text | None = None) -> jax.Array:
        """Final-normed states x_BxOxD, compute dtype: row i predicts output position i.

        They stand at sequence positions prefix_length - 1 .. S - 2; the last token is never read.
        Where the mesh has a sequence axis, it splits D.
        """
        x_BxNxD, _ = self._residual(params, tokens_BxS[:, :-1], layout, text, layout.length)
        x_BxNxD, _ = self._forward(params, x_BxNxD, layout, text, keep_keys=False)
        x_BxNxD = sequence.whole(x_BxNxD)
        return self._final_norm(params, x_BxNxD[:, layout.prefix_length - 1 : layout.length - 1])

    def _forward(
        self, params: Params, x_BxNxD: jax.Array, layout: Layout, text: Text | None, keep_keys: bool
    ) -> tuple[jax.Array, Any]:
        """Leading N positions through all blocks; stacked keys and values if asked for.

        Where positions are split, the states are those of N positions filled up to be divisible.
        """
        given = x_BxNxD.shape[1]
        x_BxNxD = sequence.filled(x_BxNxD, 1)
        length = x_BxNxD.shape[1]
        kernel = kernels.choose_kernel(self.spec.attention, self.dtype)
        attend = functools.partial(
            attention.attend if kernel == "xla" else functools.partial(kernels.attend, kernel),
            prefix_length=layout.prefix_length,
            key_mask_BxS=_key_mask(layout, text, length),
        )
        rotary = sequence.filled(self._rotary(layout)[:, :, :given], 2)

        def body(x_BxNxD, block_params):
            def mix(q_split, k, v):
                q, k, v = sequence.to_heads(q_split, k, v)
                o = sequence.from_heads(attend(q, k, v), q_split)
                return o, (k[:, :given], v[:, :given]) if keep_keys else None

            return layers.block(self.declared["blocks"], restored(block_params, self.dtype), x_BxNxD, rotary, mix)

        return jax.lax.scan(
            layers.remat(body, self.spec.remat), sequence.split(x_BxNxD), params["blocks"], unroll=self._unroll
        )

    def _residual(
        self, params: Params, tokens_BxN: jax.Array, layout: Layout, text: Text | None, stop: int
    ) -> tuple[jax.Array, jax.Array | None]:
        """What the first block takes of N leading positions; and `Cache.aligned` of outputs below `stop` > N."""
        x_BxNxD, first = self._embed(params, tokens_BxN, layout, text), layout.prefix_length
        aligned_BxOxD = self._aligned(params, tokens_BxN, x_BxNxD, layout, stop)
        if aligned_BxOxD is not None:
            predicting_BxMxD = aligned_BxOxD[:, : x_BxNxD.shape[1] + 1 - first]
            x_BxNxD += jnp.pad(predicting_BxMxD, ((0, 0), (first - 1, 0), (0, 0)))
        if text is not None and len(text) > 2:  # Attention takes it from the prefix to all other positions.
            read_Bx1xF = guidance.features(text[2], self.dtype)[:, None]
            read_Bx1xD = project_in(read_Bx1xF, params["embedding"]["guidance"])
            x_BxNxD += jnp.where(jnp.arange(x_BxNxD.shape[1])[:, None] < first, read_Bx1xD, 0)
        return x_BxNxD, aligned_BxOxD

    def _aligned(
        self, params: Params, tokens_BxN: jax.Array, x_BxNxD: jax.Array, layout: Layout, stop: int
    ) -> jax.Array | None:
        """What conditions add where their places are predicted, [B, stop - prefix, D]; None where nothing."""
        first, pieces = layout.prefix_length, []
        for output, x_BxLxE, kernel_ExD in self._conditions(params, tokens_BxN, x_BxNxD, layout):
            length = min(output.stop, stop) - output.start
            if length > 0:
                room = ((0, 0), (output.start - first, stop - output.start - length), (0, 0))
                pieces.append(jnp.pad(project_in(x_BxLxE[:, :length], kernel_ExD), room))
        return functools.reduce(jnp.add, pieces) if pieces else None

    def _conditions(
        self, params: Params, tokens_BxN: jax.Array, x_BxNxD: jax.Array, layout: Layout
    ) -> Iterator[tuple[Span, jax.Array, jax.Array]]:
        """(Output span, what conditions it [B, L, E], the product [E, D] that adds this), several times for some."""
        if self.spec.aligned_conditions:
            for given, output in layout.aligned:
                x_BxLxD = constrain(x_BxNxD[:, given.start : given.stop], "batch", None, None)
                yield output, x_BxLxD, params["embedding"]["aligned"]
        if self.spec.condition_encoder:
            weights, bits = params["embedding"]["conditions"], self.vocabulary.spec.visual_bits
            yield from condition_encoder.encode(weights, tokens_BxN, layout, bits, self.dtype)

    def _embed(self, params: Params, tokens_BxN: jax.Array, layout: Layout, text: Text | None) -> jax.Array:
        """Each run of positions through its own table; text positions through the linear layer."""
        embedding, pieces = params["embedding"], []
        for segment, start, stop in _table_runs(layout, tokens_BxN.shape[1]):
            if segment.is_text:
                pieces.append(embed_text(embedding["text_states"], text, self.dtype))
            else:
                embed = tables.embed_condition if segment.may_hide else tables.embed
                ids = self.factors(segment.ids), tokens_BxN[:, start:stop]
                pieces.append(embed(self.spec, embedding, *ids, self.dtype))
        return jnp.concatenate([sequence.whole(x_BxNxD) for x_BxNxD in pieces], axis=1)

    def _rotary(self, layout: Layout) -> jax.Array:
        """Rotary tables of queries and of keys, [2, 2, S, head_dim // 2]."""
        keys_Sx3 = layout.positions(shared=self.spec.axes == "shared")
        queries_Sx3 = keys_Sx3.copy()
        if self.spec.query_place == "target":
            first = layout.prefix_length - 1
            queries_Sx3[first:-1] = keys_Sx3[first + 1 :]
        tables_of = (
            layers.rotary_table(positions, self.spec.head_dim, self.spec.rope_base)
            for positions in (queries_Sx3, keys_Sx3)
        )
        return jnp.asarray(np.stack(list(tables_of)))

    def _final_norm(self, params: Params, x: jax.Array) -> jax.Array:
        return layers.rms_normalise(x, params["head"]["norm"]["scale"])

    @property
    def dtype(self) -> jnp.dtype:
        """Compute dtype."""
        return jnp.dtype(self.spec.dtype)

    @property
    def unrolled(self) -> bool:
        """Whether a program has every layer, one after the other, and not one layer in a loop."""
        return self.spec.layers <= UNROLLED_LAYERS

    @property
    def _unroll(self) -> int:
        return self.spec.layers if self.unrolled else 1

    # ----------------------------------------------------------------------------------- logits

    def factors(self, ids: Range) -> tables.Factors:
        """The factors of an id of a range: itself, or several, sampled one after the other."""
        return tables.factors(self.spec, self.vocabulary, ids)

    def head(self, params: Params, ids: Range) -> jax.Array:
        """Output rows [ids.size, D] of a factor's range, compute dtype, split over `tensor`."""
        rows_VxD = jnp.asarray(tables.output_tables(params)[ids.table])
        if ids.size != rows_VxD.shape[0]:
            low = ids.low - ids.table_low
            rows_VxD = constrain(rows_VxD, None, None)[low : low + ids.size]
        return constrain(rows_VxD.astype(self.dtype), "vocab", None)

    def logits(self, params: Params, x: jax.Array, ids: Range) -> jax.Array:
        """float32 logits [..., ids.size] of a factor from final-normed states [..., D]."""
        return project(x, self.head(params, ids))

    def given(self, params: Params, x: jax.Array, leading: jax.Array) -> jax.Array:
        """States [..., D] for the second factor of a code, after the first [...]."""
        return tables.given_leading(params, x, leading)

    # ------------------------------------------------------------------------- cached decoding

    def compute_params(self, params: Params) -> Params:
        """Parameters in the compute dtype, so that a decoding loop reads half the bytes.

        Tables are made whole over fsdp, once instead of at every token.
        """
        cast = jax.tree.map(lambda p: p.astype(self.dtype), params)
        for part in ("embedding", "head"):
            found = cast[part].get("tables", {})
            whole = {name: constrain(rows, "vocab", None) for name, rows in found.items()}
            cast[part] = {**cast[part], "tables": whole} if found else cast[part]
        return cast

    def by_layer(self, params: Params) -> Params:
        """Parameters for a loop of `decode`: on CPU a shallow model's blocks as a list of layers.

        XLA's CPU compiler copies a layer's weights whenever it takes them out of their stack: here
        once, before the loop, instead of at every token.  The blocks then stand in memory twice.
        """
        if not self.unrolled or jax.default_backend() != "cpu":
            return params
        return {**params, "blocks": self._apart(params["blocks"])}

    def _apart(self, blocks: Any) -> list[Tree]:
        """Each layer's parameters, of all in a stack."""
        count = range(self.spec.layers)
        return [jax.tree.map(lambda p, i=i: p[i], blocks, is_leaf=is_stored) for i in count]

    def prefill(
        self, params: Params, tokens_BxN: jax.Array, layout: Layout, text: Text | None, cache_length: int
    ) -> tuple[Cache, jax.Array]:
        """Runs the N leading positions (prefix and given output tokens) at once.

        Returns the cache, filled up to N of `cache_length` positions, and the final-normed state
        x_BxD that predicts position N.

        Raises:
          UserError: fewer positions than the prefix, or more than the cache holds.
        """
        length = tokens_BxN.shape[1]
        if not layout.prefix_length <= length <= cache_length:
            raise UserError(
                f"prefill of {length} positions: must hold the prefix ({layout.prefix_length}) and "
                f"fit the cache ({cache_length})"
            )
        x_BxNxD, aligned = self._residual(params, tokens_BxN, layout, text, cache_length + 1)
        x_BxNxD, (k, v) = self._forward(params, x_BxNxD, layout, text, keep_keys=True)
        keys, values = (cache_lib.filled(new, cache_length, self.unrolled) for new in (k, v))
        mask_BxC = _key_mask(layout, text, cache_length)
        if mask_BxC is None:
            batch = tokens_BxN.shape[0]
            mask_BxC = constrain(jnp.ones((batch, cache_length), bool), "batch", None)
        last_BxD = constrain(sequence.whole(x_BxNxD)[:, length - 1], "batch", None)
        return Cache(keys, values, mask_BxC, aligned), self._final_norm(params, last_BxD)

    def decode(
        self, params: Params, cache: Cache, token_B: jax.Array, position: jax.Array | int, layout: Layout, ids: Range
    ) -> tuple[Cache, jax.Array]:
        """One output token: writes its keys at `position` and returns the state after it.

        Args:
          params: as `init` makes them, or from `by_layer`.
          token_B: ids standing at `position`, all from the table of `ids` (static).
          position: index into the sequence, traced or not; keys before it are in the cache.

        Returns:
          The cache, and x_BxD (final-normed) that predicts position + 1.
        """
        rotary = jax.lax.dynamic_slice_in_dim(self._rotary(layout), position, 1, axis=2)
        visible_BxC = cache.mask & (jnp.arange(cache.mask.shape[1]) <= position)
        write = functools.partial(cache_lib.write, position=position)
        x_Bx1xD = tables.embed(self.spec, params["embedding"], self.factors(ids), token_B[:, None], self.dtype)
        if cache.aligned is not None:
            x_Bx1xD += jax.lax.dynamic_slice_in_dim(cache.aligned, position + 1 - layout.prefix_length, 1, axis=1)
        cache, x_Bx1xD = self._cached_blocks(params, cache, x_Bx1xD, rotary, visible_BxC[:, None], write)
        return cache, x_Bx1xD[:, 0]

    def decode_several(
        self,
        params: Params,
        cache: Cache,
        tokens_BxQ: jax.Array,
        places: Places,
        visible_QxC: jax.Array,
        layout: Layout,
        ids: Range,
    ) -> tuple[Cache, jax.Array]:
        """Several output tokens at once, all from the table of `ids`; the cache, and the states x_BxQxD after them.

        Args:
          visible_QxC: bool, the keys that each of them sees beside `Cache.mask`; those that are written here are there.
        """
        queries, keys = self._rotary(layout)
        # A state for a position has the place of the query that stands in front of it.
        rotary = jnp.stack([queries[:, places.targets - 1], keys[:, places.inputs]])
        # What is not kept is written behind the end, and so dropped.
        behind = cache.mask.shape[1] + np.arange(tokens_BxQ.shape[1])
        write = functools.partial(cache_lib.scatter, positions=jnp.where(places.kept, places.inputs, behind))
        x_BxQxD = tables.embed(self.spec, params["embedding"], self.factors(ids), tokens_BxQ, self.dtype)
        if cache.aligned is not None:
            x_BxQxD += cache.aligned[:, places.targets - layout.prefix_length]
        return self._cached_blocks(params, cache, x_BxQxD, rotary, cache.mask[:, None] & visible_QxC, write)

    def _cached_blocks(
        self,
        params: Params,
        cache: Cache,
        x_BxQxD: jax.Array,
        rotary: jax.Array,
        visible_BxQxC: jax.Array,
        write: Callable[..., tuple[jax.Array, jax.Array]],
    ) -> tuple[Cache, jax.Array]:
        """All blocks and the final norm; `write(held, new, layer)` puts keys or values into what the cache holds."""

        def body(carry, layer):
            x_BxQxD, k_held, v_held = carry
            index, block_params = layer

            def mix(q_whole, k, v):
                q, k, v = sequence.to_heads(q_whole, k, v)
                keys, k_layer = write(k_held, k, index)
                values, v_layer = write(v_held, v, index)
                o = attention.cached(q, k_layer, v_layer, visible_BxQxC)
                return sequence.from_heads(o, q_whole), (keys, values)

            weights = restored(block_params, self.dtype)
            x_BxQxD, held = layers.block(self.declared["blocks"], weights, x_BxQxD, rotary, mix)
            return (x_BxQxD, *held), None

        written: list[tuple[jax.Array, ...]] = []
        if self.unrolled:
            blocks = params["blocks"]
            for block, *held in zip(blocks if isinstance(blocks, list) else self._apart(blocks), cache.k, cache.v):
                (x_BxQxD, *pair), _ = body((x_BxQxD, *held), (None, block))
                written.append(tuple(pair))
        else:
            # The cache is scan carry, not scan input and output: those would copy it at every token.
            begin: Any = (x_BxQxD, *cache.k, *cache.v)
            (x_BxQxD, *pair), _ = jax.lax.scan(body, begin, (jnp.arange(self.spec.layers), params["blocks"]))
            written.append(tuple(pair))
        keys, values = zip(*written)
        return cache._replace(k=keys, v=values), self._final_norm(params, x_BxQxD)


def build(spec: ModelSpec, vocabulary: Vocabulary, text_width: int) -> Model:
    """A model from its parts."""
    return Model(spec, vocabulary, text_width)


def build_model(resolved: Resolved) -> Model:
    """The prefix LM of a run."""
    return build(resolved.spec.model, resolved.vocabulary, resolved.spec.text.width)


def project(x: jax.Array, rows_VxD: jax.Array) -> jax.Array:
    """float32 logits [..., V] of states [..., D] against output rows, split over `tensor`."""
    return jax.lax.platform_dependent(x, rows_VxD, cpu=_project_rows, default=_project)


def _project(x: jax.Array, rows_VxD: jax.Array) -> jax.Array:
    return jnp.einsum("...d,vd->...v", x, rows_VxD, preferred_element_type=jnp.float32)


def _project_rows(x: jax.Array, rows_VxD: jax.Array) -> jax.Array:
    """`_project` with the table on the left, where XLA's CPU compiler reads it in half the time.

    Without the barrier the compiler turns the product round again.
    """
    logits = jnp.einsum("vd,...d->v...", rows_VxD, x, preferred_element_type=jnp.float32)
    return jnp.moveaxis(jax.lax.optimization_barrier(logits), 0, -1)


def embed_text(kernel_ExD: jax.Array, text: Text | None, dtype: jnp.dtype) -> jax.Array:
    """Text states [B, L, E] through the linear layer [E, D]; positions without a piece are zero.

    Raises UserError where there is no text.
    """
    if text is None:
        raise UserError("this layout has text positions: pass text=(states, mask)")
    states_BxLxE, mask_BxL = text[:2]
    return project_in(jnp.where(mask_BxL[..., None], states_BxLxE, 0).astype(dtype), kernel_ExD)


def project_in(x_BxLxE: jax.Array, kernel_ExD: jax.Array) -> jax.Array:
    """Through a linear layer [E, D] into the residual stream [B, L, D], in the dtype of `x_BxLxE`."""
    kernel_ExD = kernel_ExD.astype(x_BxLxE.dtype)
    kernel_ExD = constrain(kernel_ExD, None, "columns" if sequence.is_split() else None)
    return sequence.whole(jnp.einsum("ble,ed->bld", x_BxLxE, kernel_ExD))


def _key_mask(layout: Layout, text: Text | None, length: int) -> jax.Array | None:
    """bool [B, length], False at text positions without a piece; None if there is no text."""
    span = layout.text_span
    if span is None or text is None:
        return None
    room = ((0, 0), (span.start, length - span.stop))
    return jnp.pad(text[1], room, constant_values=True)


def _table_runs(layout: Layout, length: int) -> list[tuple[Segment, int, int]]:
    """Maximal runs [start, stop) below `length` that are embedded alike, each with its first segment."""

    def key(span: Span) -> tuple[str, bool, bool]:
        return span.segment.ids.table, span.segment.is_text, span.segment.may_hide

    runs = []
    for _, spans in itertools.groupby(layout.spans, key):
        members = list(spans)
        start, stop = members[0].start, min(members[-1].stop, length)
        if start < stop:
            runs.append((members[0].segment, start, stop))
    return runs
