"""The tables of the vocabulary: rows that embed an id, and rows that score it.

One table for every range of ids; its rows embed and score (`MODEL.tables = 'tied'`), or the output has
tables of its own.  Visual codes may be taken as two factors instead (`MODEL.visual_head =
'factorised'`): the leading bits, then the rest given the leading ones, so that 2^18 rows become 2^9 + 2^9
or 2^6 + 2^12 and the likelihood stays exact.  The rows of factors are always tied (MAGVIT-v2, 2310.05737
§3.2).

Rows begin with a deviation of width^-0.5: a normalised state scores them with a deviation of 1, and times
the square root of the width they are as large as what a block adds to (T5, Gemma).  Those of visual codes
begin as a sum over their bits (`MODEL.code_rows = 'bits'`) with a part of their own: a bit of a lookup-free
quantizer is the sign of one latent channel, so that codes that differ in few bits look alike, and what is
learnt of one holds for its neighbours from the start.  Measured in conditions.md.

Shape suffixes: V rows of a table, D width, E width of text states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from poet.models import condition_encoder, guidance, layers
from poet.models.declaration import Initializer, Normal, Tree, Weight, fan_in, zeros
from poet.models.lookup import lookup
from poet.spec import ModelSpec
from poet.spec.vocabulary import Range, Special, Vocabulary

LEADING, REST, GIVEN = "visual_leading", "visual_rest", "visual_given"
FACTORS = (LEADING, REST)
VISUAL = "visual"
# The fraction of the rows' initial variance that comes from their bits.
SHARED_BY_BITS = 0.9
# Of the markers' elements; that of embedded codes is 1.
MARKER_STDDEV = 0.5


@dataclasses.dataclass(frozen=True)
class Factors:
    """The factors of an id, sampled one after the other.

    Attributes:
      ids: the range.
      ranges: itself; or, of a factorised code, the ranges of its leading bits and of the rest.
    """

    ids: Range
    ranges: tuple[Range, ...]

    @property
    def rows(self) -> int:
        """Output rows that score one id."""
        return sum(part.size for part in self.ranges)

    def split(self, tokens: jax.Array) -> tuple[jax.Array, ...]:
        """Ids -> an id of every factor, of the same shape."""
        if len(self.ranges) == 1:
            return (tokens,)
        codes, (_, rest) = tokens - self.ids.low, self.ranges
        return codes // rest.size, codes % rest.size

    def join(self, sampled: Sequence[jax.Array]) -> jax.Array:
        """The reverse of `split`: ids, shaped like each of those given."""
        if len(self.ranges) == 1:
            return sampled[0]
        leading, rest = sampled
        return leading * self.ranges[1].size + rest + self.ids.low


def factors(spec: ModelSpec, vocabulary: Vocabulary, ids: Range) -> Factors:
    """How ids of a range are sampled."""
    if spec.visual_head == "full" or ids.table != "visual":
        return Factors(ids, (ids,))
    bits = vocabulary.spec.visual_bits
    leading = spec.visual_leading or bits // 2
    sizes = {LEADING: 2**leading, REST: 2 ** (bits - leading)}
    return Factors(ids, tuple(Range(0, size, name, 0) for name, size in sizes.items()))


def declare_embedding(spec: ModelSpec, vocabulary: Vocabulary, text_width: int) -> Tree:
    """Rows of every range, the linear layer into the width for text states, and the markers [2, D] of
    conditions: the first is added to given codes, the second stands where a code is not given.  `aligned` [D, D]
    takes an embedded condition to where its place is predicted; it begins as if it were not there, and so do
    `guidance` [F, D] and `conditions`, the condition encoder."""
    dtype = spec.param_dtype
    tree: Tree = {"tables": _declare_tables(spec, _sizes(spec, vocabulary))}
    if spec.condition_marker:
        tree["markers"] = Weight((2, spec.width), (None, None), Normal(MARKER_STDDEV), dtype)
    if spec.aligned_conditions:
        tree["aligned"] = Weight((spec.width, spec.width), (None, "table_embed"), zeros, dtype)
    if spec.guidance_input:
        tree["guidance"] = guidance.declare(spec.width, dtype)
    text = Weight((text_width, spec.width), ("text", "table_embed"), fan_in(text_width), dtype)
    tree["text_states"] = text
    if spec.condition_encoder:
        tree["conditions"] = condition_encoder.declare(spec, vocabulary)
    return tree


def declare_head(spec: ModelSpec, vocabulary: Vocabulary) -> Tree:
    """The final norm and the output rows that are no embedding too."""
    sizes = _sizes(spec, vocabulary)
    own = {} if spec.tables == "tied" else {k: v for k, v in sizes.items() if k not in FACTORS}
    if LEADING in sizes:
        own[GIVEN] = sizes[LEADING]
    tree = {"norm": layers.norm(spec.width, spec.param_dtype)}
    return {**tree, "tables": _declare_tables(spec, own)} if own else tree


def embed(spec: ModelSpec, embedding: Tree, factors: Factors, tokens_BxN: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Embedded ids of a range, [B, N, D]: the sum over its factors; `embedding` holds the weights."""
    pairs = zip(factors.ranges, factors.split(tokens_BxN))
    found = (lookup(embedding["tables"][d.table], ids - d.table_low, dtype) for d, ids in pairs)
    return sum(found) * jnp.asarray(spec.embedding_scale or spec.width**0.5, dtype)


def embed_condition(
    spec: ModelSpec, embedding: Tree, factors: Factors, tokens_BxN: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """Embedded ids of a condition, [B, N, D]; `Special.HIDDEN` among them where none is given."""
    hidden_BxN = tokens_BxN == Special.HIDDEN
    tokens_BxN = jnp.where(hidden_BxN, factors.ids.low, tokens_BxN)
    x_BxNxD = embed(spec, embedding, factors, tokens_BxN, dtype)
    given_D = none_D = jnp.zeros((), dtype)
    if "markers" in embedding:
        given_D, none_D = embedding["markers"].astype(dtype)
    return jnp.where(hidden_BxN[..., None], none_D, x_BxNxD + given_D)


def output_tables(params: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Output rows by the table's name, of a model's parameters: those of the head, or else tied ones."""
    return {**params["embedding"]["tables"], **params["head"].get("tables", {})}


def given_leading(params: Mapping[str, Any], x: jax.Array, leading: jax.Array) -> jax.Array:
    """Final-normed states [..., D] that score the rest of a code, from those that scored its leading
    bits and these bits [...]; x is [B, D] or [B, N, D]."""
    rows_VxD = params["head"]["tables"][GIVEN]
    if x.ndim == 2:
        return x + lookup(rows_VxD, leading[:, None], x.dtype)[:, 0]
    return x + lookup(rows_VxD, leading, x.dtype)


def _sizes(spec: ModelSpec, vocabulary: Vocabulary) -> dict[str, int]:
    """Rows of every table, in id order."""
    every = (factors(spec, vocabulary, ids) for ids in vocabulary.tables.values())
    return {part.table: part.size for each in every for part in each.ranges}


def _declare_tables(spec: ModelSpec, sizes: Mapping[str, int]) -> Tree:
    def rows(name: str, size: int) -> Weight:
        bits = spec.code_rows == "bits" and name in (VISUAL, *FACTORS)
        initializer: Initializer = SharedByBits(spec.width**-0.5) if bits else fan_in(spec.width)
        return Weight((size, spec.width), ("vocab", "table_embed"), initializer, spec.param_dtype)

    return {name: rows(name, size) for name, size in sizes.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class SharedByBits:
    """The initial rows of codes; see the head of this file.

    No two are equal, so that each table is sampled alone: sums are rounded otherwise in a batch of products.
    """

    stddev: float

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: str, out_sharding: PartitionSpec | None = None
    ) -> jax.Array:
        (size, width), sample = shape, Normal(self.stddev)
        bits = size.bit_length() - 1
        signs_VxK = 2.0 * (np.arange(size)[:, None] >> np.arange(bits) & 1) - 1
        bit_KxD = sample(jax.random.fold_in(key, 1), (bits, width), dtype)
        shared_VxD = jnp.matmul(jnp.asarray(signs_VxK, dtype), bit_KxD, out_sharding=out_sharding) * bits**-0.5
        own_VxD = sample(key, shape, dtype, out_sharding)
        return SHARED_BY_BITS**0.5 * shared_VxD + (1 - SHARED_BY_BITS) ** 0.5 * own_VxD
