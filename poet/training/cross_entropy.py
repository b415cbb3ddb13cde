"""Cross-entropy over ranges of output rows that lie split over the mesh, with its gradients.

The logits of a large vocabulary do not fit, so positions are taken in chunks.  Left to the
partitioner, every chunk gathers the rows again and reduces a whole gradient of them: for the 8B
model 24 times the bytes of one gather and one scatter.  Here everything happens inside one
`shard_map`: the legal rows are gathered once, a scan over chunks adds up the loss *and its
gradients* (so that no logits are kept or made twice), and the rows' gradient is scattered once.

The price of gradients in the forward pass is that one number alone can be differentiated: the
objective, loss + z_loss * log_z^2, summed over the weighted tokens.

Shape suffixes: B batch, N positions, D width, V rows of a table (one device's, inside).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from poet.distributed.mesh import BATCH_AXES, DEFAULT_RULES, Rules, several, total
from poet.models import sequence
from poet.models.layers import constrain
from poet.spec.vocabulary import Range

# Logits of one device that may exist at once, in elements (float32: 1 GiB).
LOGITS_BUDGET = 2**28

TABLE_SPEC = Rules().spec(("vocab", "table_embed"))
ROWS_AXIS, COLUMNS_AXES = DEFAULT_RULES["vocab"], DEFAULT_RULES["table_embed"]
# Axes whose devices have tokens of their own.
TOKEN_AXES = (*BATCH_AXES, sequence.AXIS)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over the weighted tokens of one stream, float32 scalars.

    Attributes:
      objective: `loss` plus z_loss times the squared log-partition; the only one with gradients.
      loss: cross-entropy in nats.
      correct: tokens whose label has the largest logit (ties count).
      count: weights.
    """

    objective: jax.Array
    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    def __add__(self, other: Sums) -> Sums:
        return jax.tree.map(jnp.add, self, other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Every token by itself, float32 [B, N], whatever its weight; without gradients.

    Attributes:
      loss: cross-entropy in nats.
      hit: 1 where the label has the largest logit (ties count).
    """

    loss: jax.Array
    hit: jax.Array


Values = tuple[Sums, Tokens]


def cross_entropy(
    x_BxNxD: jax.Array,
    tables: dict[str, jax.Array],
    labels_BxN: jax.Array,
    weights_BxN: jax.Array,
    *,
    ranges: tuple[Range, ...],
    z_loss: float = 0.0,
    smoothing: float = 0.0,
) -> Values:
    """Sums over a span whose softmax runs over the union of `ranges`, and its tokens one by one.

    Args:
      x_BxNxD: states in the compute dtype, which is that of the products and of what is moved.
      tables: head tables [V, D] by name, in the parameter dtype, placed as `mesh.Rules` say.
      labels_BxN: ids; each lies in exactly one of the ranges.
      weights_BxN: float32.
      ranges: at most one of each table.
      smoothing: of labels: the weight in the objective of the mean over all legal ids.

    Differentiable in `x_BxNxD` and `tables`, through `objective`.
    """
    used = tuple(tables[r.table] for r in ranges)
    weights_BxN = jax.lax.stop_gradient(weights_BxN)
    # What fills a span up to be divisible has weight 0.
    tokens = (sequence.split(sequence.filled(a, 1)) for a in (x_BxNxD, labels_BxN, weights_BxN))
    x, labels, weights = tokens
    sums, each = _cross_entropy(_Plan(ranges, z_loss, smoothing), x, used, labels, weights)
    length = labels_BxN.shape[1]
    return sums, jax.tree.map(lambda a: constrain(a, "batch", None)[:, :length], each)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static arguments."""

    ranges: tuple[Range, ...]
    z_loss: float
    smoothing: float

    @property
    def size(self) -> int:
        """Legal ids."""
        return sum(ids.size for ids in self.ranges)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(plan: _Plan, x: jax.Array, tables: Any, labels: Any, weights: Any) -> Values:
    return _everywhere(plan, False, x, tables, labels, weights)[0]


def _forward(plan: _Plan, x: jax.Array, tables: Any, labels: Any, weights: Any) -> tuple[Values, Any]:
    return _everywhere(plan, True, x, tables, labels, weights)


def _backward(plan: _Plan, gradients: Any, cotangent: Values) -> tuple[Any, Any, None, None]:
    del plan
    scale = cotangent[0].objective
    dx, dtables = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients)
    return dx, dtables, None, None


_cross_entropy.defvjp(_forward, _backward)


def _everywhere(plan: _Plan, derive: bool, x: jax.Array, *others: Any) -> tuple[Values, Any]:
    """`_local` on every device of the mesh; on one device where no mesh is set."""
    local = functools.partial(_local, plan, derive)
    if jax.sharding.get_abstract_mesh().empty:
        return local(x, *others)
    tokens = PartitionSpec(BATCH_AXES, *several(sequence.AXIS))
    tables = (TABLE_SPEC,) * len(plan.ranges)
    # Nothing is differentiated through the map, so its replication types need no proof.
    return jax.shard_map(
        local,
        in_specs=(tokens, tables, tokens, tokens),
        out_specs=((PartitionSpec(), tokens), (tokens, tables) if derive else None),
        check_vma=False,
    )(x if sequence.is_split() else constrain(x, "batch", None, None), *others)


@dataclasses.dataclass(frozen=True)
class _Head:
    """Rows that one device holds of one range.

    Attributes:
      rows_VxD: compute dtype, whole in D.
      first: id of row 0; traced where rows are split over devices.
      legal_V: bool; None if every row is legal.
    """

    rows_VxD: jax.Array
    first: jax.Array | int
    legal_V: jax.Array | None

    def logits(self, x_BxNxD: jax.Array) -> jax.Array:
        """float32, -inf at rows that are not legal."""
        logits = jnp.einsum("bnd,vd->bnv", x_BxNxD, self.rows_VxD, preferred_element_type=jnp.float32)
        return logits if self.legal_V is None else jnp.where(self.legal_V, logits, -jnp.inf)

    def legal(self, x_BxNxV: jax.Array) -> jax.Array:
        """0 at rows that are not legal."""
        return x_BxNxV if self.legal_V is None else jnp.where(self.legal_V, x_BxNxV, 0.0)

    def is_label(self, labels_BxN: jax.Array) -> jax.Array:
        """bool [B, N, V]."""
        shape = (*labels_BxN.shape, self.rows_VxD.shape[0])
        return jax.lax.broadcasted_iota(jnp.int32, shape, 2) == (labels_BxN - self.first)[..., None]


def _gathered(ids: Range, table_VxD: jax.Array, dtype: jnp.dtype) -> _Head:
    """The legal rows of this device's shard.  Rows split over devices cannot be cut: they are masked."""
    first, legal_V = ids.table_low, None
    if not several(ROWS_AXIS):
        table_VxD = table_VxD[ids.low - ids.table_low : ids.high - ids.table_low]
        first = ids.low
    else:
        first = ids.table_low + jax.lax.axis_index(ROWS_AXIS) * table_VxD.shape[0]
        row_ids = first + jnp.arange(table_VxD.shape[0])
        legal_V = (row_ids >= ids.low) & (row_ids < ids.high)
    rows_VxD = table_VxD.astype(dtype)
    if several(COLUMNS_AXES):
        rows_VxD = jax.lax.all_gather(rows_VxD, several(COLUMNS_AXES), axis=1, tiled=True)
    return _Head(rows_VxD, first, legal_V)


def _local(plan: _Plan, derive: bool, x: jax.Array, tables: Any, labels: Any, weights: Any) -> tuple[Values, Any]:
    """Sums of the whole mesh, this device's tokens, and its shards of the objective's gradients."""
    heads = [_gathered(ids, table, x.dtype) for ids, table in zip(plan.ranges, tables)]
    rows = sum(head.rows_VxD.shape[0] for head in heads)
    chunks = chunk_count(x.shape[1], x.shape[0] * rows)
    zero = Sums(*(jnp.zeros((), jnp.float32),) * 4)
    drows = [jnp.zeros(h.rows_VxD.shape, jnp.float32) for h in heads] if derive else []

    def add(so_far: Any, piece: Any) -> tuple[Any, Any]:
        sums, each, dx, parts = _chunk(plan, heads, derive, *piece)
        return (so_far[0] + sums, jax.tree.map(jnp.add, so_far[1], parts)), (each, dx)

    if chunks == 1:
        (sums, drows), (each, dx) = add((zero, drows), (x, labels, weights))
    else:
        pieces = jax.tree.map(lambda a: _cut(a, chunks), (x, labels, weights))
        (sums, drows), per_chunk = jax.lax.scan(add, (zero, drows), pieces)
        each, dx = jax.tree.map(_join, per_chunk)
    values = jax.tree.map(lambda s: total(s, TOKEN_AXES), sums), each
    if not derive:
        return values, None
    dtables = tuple(
        _scattered(ids, table, part.astype(x.dtype)) for ids, table, part in zip(plan.ranges, tables, drows)
    )
    return values, (total(dx, ROWS_AXIS), dtables)


def _chunk(
    plan: _Plan, heads: list[_Head], derive: bool, x: jax.Array, labels: Any, weights: Any
) -> tuple[Sums, Tokens, jax.Array | None, list[jax.Array]]:
    """Sums over the chunk on this device, its tokens, the states' gradient (this device's rows' share of it, in
    the dtype of x), and the rows' gradients in float32."""
    logits = [head.logits(x) for head in heads]
    peak = _largest(functools.reduce(jnp.maximum, (jnp.max(part, axis=-1) for part in logits)), ROWS_AXIS)
    weighed = [jnp.exp(part - peak[..., None]) for part in logits]
    mass = total(sum(jnp.sum(part, axis=-1) for part in weighed), ROWS_AXIS)
    is_label = [head.is_label(labels) for head in heads]
    label = total(sum(jnp.sum(jnp.where(i, part, 0.0), axis=-1) for i, part in zip(is_label, logits)), ROWS_AXIS)
    log_z = jnp.log(mass) + peak
    each = Tokens(loss=log_z - label, hit=(label >= peak).astype(jnp.float32))
    loss = jnp.sum(each.loss * weights)
    objective = loss + plan.z_loss * jnp.sum(log_z**2 * weights)
    if plan.smoothing:
        mean = total(sum(jnp.sum(h.legal(part), -1) for h, part in zip(heads, logits)), ROWS_AXIS) / plan.size
        objective += plan.smoothing * jnp.sum((label - mean) * weights)
    sums = Sums(objective=objective, loss=loss, correct=jnp.sum(each.hit * weights), count=jnp.sum(weights))
    if not derive:
        return sums, each, None, []
    scale = (weights * (1 + 2 * plan.z_loss * log_z) / mass)[..., None]
    dlogits = [
        (part * scale - jnp.where(i, weights[..., None], 0.0)).astype(x.dtype) for i, part in zip(is_label, weighed)
    ]
    if plan.smoothing:
        share = plan.smoothing * weights[..., None]
        dlogits = [
            (d + jnp.where(i, share, 0.0) - h.legal(share / plan.size)).astype(x.dtype)
            for d, i, h in zip(dlogits, is_label, heads)
        ]
    dx = sum(
        jnp.einsum("bnv,vd->bnd", d, h.rows_VxD, preferred_element_type=jnp.float32) for d, h in zip(dlogits, heads)
    )
    drows = [jnp.einsum("bnv,bnd->vd", d, x, preferred_element_type=jnp.float32) for d in dlogits]
    return sums, each, dx.astype(x.dtype), drows


def _scattered(ids: Range, table_VxD: jax.Array, drows_VxD: jax.Array) -> jax.Array:
    """The gradient of this device's shard of a table, in the table's dtype."""
    axes = several(COLUMNS_AXES)
    if axes:
        drows_VxD = jax.lax.psum_scatter(drows_VxD, axes, scatter_dimension=1, tiled=True)
    rest = tuple(axis for axis in TOKEN_AXES if axis not in COLUMNS_AXES)
    drows_VxD = total(drows_VxD, rest).astype(table_VxD.dtype)
    above = ids.low - ids.table_low
    missing = table_VxD.shape[0] - drows_VxD.shape[0]
    return jnp.pad(drows_VxD, ((above, missing - above), (0, 0))) if missing else drows_VxD


def chunk_count(length: int, elements_per_position: int) -> int:
    """Smallest divisor of `length` that keeps one chunk's logits within the budget.

    >>> chunk_count(1280, 4 * 2**18)
    5
    """
    for chunks in range(1, length + 1):
        if length % chunks == 0 and length // chunks * elements_per_position <= LOGITS_BUDGET:
            return chunks
    return length


def _cut(a: jax.Array, chunks: int) -> jax.Array:
    """[B, N, ...] -> [chunks, B, N / chunks, ...]."""
    return jnp.moveaxis(a.reshape(a.shape[0], chunks, -1, *a.shape[2:]), 1, 0)


def _join(a: jax.Array) -> jax.Array:
    """The reverse of `_cut`."""
    a = jnp.moveaxis(a, 0, 1)
    return a.reshape(a.shape[0], -1, *a.shape[3:])


def _largest(x: jax.Array, axes: str) -> jax.Array:
    return jax.lax.pmax(x, several(axes)) if several(axes) else x
