"""Next-token loss and accuracy of the language model, per task and stream.

The loss is the mean cross-entropy in nats over the tokens that carry loss in training: boundary
tokens are forced and known frames are given, so neither counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from poet.data.loader import eval_batches
from poet.evaluation import unigram
from poet.evaluation.image_metrics import ratio_and_error
from poet.distributed.mesh import batch_sharding, check_batch
from poet.models.transformer import Model, Params
from poet.distributed.processes import Share, batch_share, global_array, whole
from poet.spec import Experiment, UserError
from poet.store.manifest import Manifest
from poet.store.reader import check_split
from poet.tasks.layout import Layout
from poet.tasks.resolved import Resolved
from poet.training.losses import TokenScores
from poet.training.step import evaluate_step

TRAINING_SPLIT = "train"
# One program per (model, layout, batch shape), shared by everything in the process.
_STEP = jax.jit(evaluate_step, static_argnums=(0, 3, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamLikelihood:
    """Means over `tokens` tokens; accuracy counts a label that has the largest logit.

    `loss_nats_error` is the standard error over batches, None where one alone was scored.  Where no token was scored, the means do not exist and are None.
    """

    loss_nats: float | None
    loss_nats_error: float | None
    accuracy: float | None
    tokens: int


def likelihood(
    model: Model,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    layout: Layout,
    mesh: Mesh,
    loss_vocabulary: str = "legal",
) -> dict[str, StreamLikelihood]:
    """Output stream -> likelihood over all batches; call under `jax.set_mesh(mesh)`.

    Args:
      params: in any sharding on the mesh.
      batches: this process's share of each global batch, every process giving equally many.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        scores = token_scores(model, params, batch, layout, mesh, loss_vocabulary)
        for stream, found in by_stream(scores, layout).items():
            values = (found.loss, found.correct, found.count)
            parts.setdefault(stream, []).append(np.array([x.sum(dtype=np.float64) for x in values]))
    return {stream: _means(*np.array(values).T) for stream, values in parts.items()}


def token_scores(
    model: Model,
    params: Params,
    batch: Mapping[str, np.ndarray],
    layout: Layout,
    mesh: Mesh,
    loss_vocabulary: str,
) -> tuple[TokenScores, ...]:
    """The tokens of a global batch, float32 [B, N] of each loss span, whole on every process.

    Args:
      batch: this process's share of it.
    """
    placed = place(batch, mesh, batch_share(mesh))
    return jax.tree.map(whole, _STEP(model, params, placed, layout, loss_vocabulary))


def by_stream(scores: Sequence[TokenScores], layout: Layout) -> dict[str, TokenScores]:
    """Output stream -> the tokens of its spans, one after the other."""
    parts: dict[str, list[TokenScores]] = {}
    for span, found in zip(layout.loss_spans, scores, strict=True):
        parts.setdefault(span.segment.stream, []).append(found)
    return {
        stream: jax.tree.map(lambda *each: np.concatenate(each, axis=1), *found)
        for stream, found in parts.items()
    }


def _means(losses_N: np.ndarray, correct_N: np.ndarray, counts_N: np.ndarray) -> StreamLikelihood:
    """From the sums of N batches."""
    count = counts_N.sum()
    loss, error = ratio_and_error(losses_N, counts_N) if count else (None, None)
    return StreamLikelihood(
        loss_nats=loss,
        loss_nats_error=error,
        accuracy=float(correct_N.sum() / count) if count else None,
        tokens=round(count),
    )


def task_batches(
    experiment: Experiment, task: str, mesh: Mesh, batches: int
) -> Iterable[Mapping[str, np.ndarray]]:
    """This process's share of at most `batches` batches of EVAL.batch clips of EVAL.split."""
    spec = experiment.eval
    return eval_batches(Resolved(experiment), task, spec.split, spec.batch, batches, share=batch_share(mesh))


def check_split_feeds(experiment: Experiment, manifest: Manifest, mesh: Mesh) -> None:
    """Raises UserError unless EVAL.split holds a batch of EVAL.batch that the mesh divides."""
    spec = experiment.eval
    check_split(manifest, spec.split)
    check_batch(mesh, spec.batch, "EVAL.batch")
    clips = manifest.splits[spec.split].clips
    if clips < spec.batch:
        raise UserError(
            f"EVAL.batch = {spec.batch}: split {spec.split!r} of {experiment.data.store} holds "
            f"{clips} clips, less than one batch; choose a smaller EVAL.batch or another EVAL.split"
        )


def unigram_nats(
    experiment: Experiment, manifest: Manifest, task: str, layout: Layout
) -> dict[str, tuple[float, float | None]]:
    """Output stream -> cross-entropy (nats) of the training split's unigram on what is scored, and its
    error; {} where the store has no training clips to count.

    All of it is read by every process, without a device.
    """
    spec, known = experiment.eval, manifest.splits.get(TRAINING_SPLIT)
    if known is None or known.clips < spec.batch:
        return {}
    training = eval_batches(
        Resolved(experiment), task, TRAINING_SPLIT, spec.batch, -(-unigram.TRAINING_CLIPS // spec.batch)
    )
    scored = eval_batches(Resolved(experiment), task, spec.split, spec.batch, spec.batches)
    return unigram.cross_entropies(training, scored, layout)


def place(batch: Mapping[str, np.ndarray], mesh: Mesh, share: Share) -> dict[str, Any]:
    """Host arrays of a share as global arrays, batches over the batch axes."""
    sharding = batch_sharding(mesh)
    return {name: global_array(np.asarray(x), sharding, share) for name, x in batch.items()}
