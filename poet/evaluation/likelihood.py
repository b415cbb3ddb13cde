"""Tokens of a split as the language model scores them, per task and stream.

The loss is the mean cross-entropy in nats over the tokens that carry loss in training: boundary
tokens are forced and conditioning frames are given, so neither counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from poet.data.loader import eval_batches
from poet.distributed.mesh import batch_sharding, check_batch
from poet.distributed.processes import Share, batch_share, global_array, whole
from poet.evaluation.metric import GROUPS, PLACES, Batch
from poet.evaluation.unigram import TRAINING_CLIPS, Unigram
from poet.models.transformer import Model, Params
from poet.spec import UserError
from poet.store.manifest import Manifest
from poet.store.reader import check_split
from poet.tasks.layout import Layout
from poet.tasks.resolved import Resolved
from poet.training.losses import TokenScores
from poet.training.step import evaluate_step

TRAINING_SPLIT = "train"
# One program per (model, layout, batch shape), shared by everything in the process.
_STEP = jax.jit(evaluate_step, static_argnums=(0, 3, 4))


def scored(
    model: Model,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    layout: Layout,
    mesh: Mesh,
    loss_vocabulary: str = "legal",
    unigram: Unigram | None = None,
) -> Iterator[dict[str, Batch]]:
    """For each batch, output stream -> what `poet.evaluation.metrics.tokens` needs, whole on every process.

    The examples of a batch are one group.  Call under `jax.set_mesh(mesh)`.

    Args:
      params: in any sharding on the mesh.
      batches: whole ones, of one size, on every process.
    """
    for number, batch in enumerate(batches):
        size = len(batch["tokens"])
        common = {PLACES: number * size + np.arange(size), GROUPS: np.full(size, number)}
        found = by_stream(token_scores(model, params, batch, layout, mesh, loss_vocabulary), layout)
        beside = unigram.nats(batch, layout) if unigram else {}
        yield {stream: {**common, **fields(scores), **beside.get(stream, {})} for stream, scores in found.items()}


def fields(scores: TokenScores) -> Batch:
    """Tokens of a stream as fields of a batch."""
    return {"loss": scores.loss, "correct": scores.correct, "count": scores.count}


def token_scores(
    model: Model, params: Params, batch: Mapping[str, np.ndarray], layout: Layout, mesh: Mesh, loss_vocabulary: str
) -> tuple[TokenScores, ...]:
    """The tokens of a global batch, float32 [B, N] of each loss span, whole on every process.

    Args:
      batch: all of it, on every process.
    """
    share = batch_share(mesh)
    rows = share.rows(len(batch["tokens"]))
    placed = place({name: x[rows] for name, x in batch.items()}, mesh, share)
    return jax.tree.map(whole, _STEP(model, params, placed, layout, loss_vocabulary))


def by_stream(scores: Sequence[TokenScores], layout: Layout) -> dict[str, TokenScores]:
    """Output stream -> the tokens of its spans, one after the other."""
    parts: dict[str, list[TokenScores]] = {}
    for span, found in zip(layout.loss_spans, scores, strict=True):
        parts.setdefault(span.segment.stream, []).append(found)
    return {stream: jax.tree.map(lambda *each: np.concatenate(each, axis=1), *found) for stream, found in parts.items()}


def split_batches(resolved: Resolved, task: str, batches: int) -> Iterable[Mapping[str, np.ndarray]]:
    """At most `batches` whole batches of EVAL.batch clips of EVAL.split, on every process."""
    return eval_batches(resolved, task, resolved.spec.eval.split, resolved.spec.eval.batch, batches)


def check_feeds(resolved: Resolved, manifest: Manifest, mesh: Mesh) -> None:
    """Raises UserError unless EVAL.split holds a batch of EVAL.batch that the mesh divides, and
    EVAL.conditioning_frames fits every task of the mixture."""
    for task in resolved.mixture:
        resolved.eval_latents(task)
    spec = resolved.spec.eval
    check_split(manifest, spec.split)
    check_batch(mesh, spec.batch, "EVAL.batch")
    clips = manifest.splits[spec.split].clips
    if clips < spec.batch:
        raise UserError(
            f"EVAL.batch = {spec.batch}: split {spec.split!r} of {resolved.spec.data.store} holds "
            f"{clips} clips, less than one batch; choose a smaller EVAL.batch or another EVAL.split"
        )


def training_unigram(resolved: Resolved, manifest: Manifest, task: str, layout: Layout) -> Unigram | None:
    """The unigram of the training split's first clips; None if the store has none."""
    size, known = resolved.spec.eval.batch, manifest.splits.get(TRAINING_SPLIT)
    if known is None or known.clips < size:
        return None
    return Unigram.of(eval_batches(resolved, task, TRAINING_SPLIT, size, -(-TRAINING_CLIPS // size)), layout)


def place(batch: Mapping[str, np.ndarray], mesh: Mesh, share: Share) -> dict[str, Any]:
    """Host arrays of a share as global arrays, batches over the batch axes."""
    sharding = batch_sharding(mesh)
    return {name: global_array(np.asarray(x), sharding, share) for name, x in batch.items()}
