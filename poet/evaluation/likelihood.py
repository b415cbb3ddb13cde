"""Next-token loss and accuracy of the language model, per task and stream.

The loss is the mean cross-entropy in nats over the tokens that carry loss in training: boundary
tokens are forced and known frames are given, so neither counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from poet.data.loader import eval_batches
from poet.evaluation import unigram
from poet.evaluation.image_metrics import ratio_and_error
from poet.mesh import batch_sharding, check_batch
from poet.models.transformer import Model, Params
from poet.processes import Share, batch_share, global_array
from poet.specs import Experiment, UserError
from poet.store.manifest import Manifest
from poet.store.reader import check_split
from poet.tasks.layout import Layout
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
        placed = place(batch, mesh, batch_share(mesh))
        sums = jax.device_get(_STEP(model, params, placed, layout, loss_vocabulary))
        for stream, part in sums.items():
            values = np.array([part.loss, part.correct, part.count], np.float64)
            parts.setdefault(stream, []).append(values)
    return {stream: _means(*np.array(values).T) for stream, values in parts.items()}


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
    return eval_batches(experiment, task, spec.split, spec.batch, batches, share=batch_share(mesh))


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
        experiment, task, TRAINING_SPLIT, spec.batch, -(-unigram.TRAINING_CLIPS // spec.batch)
    )
    scored = eval_batches(experiment, task, spec.split, spec.batch, spec.batches)
    return unigram.cross_entropies(training, scored, layout)


def place(batch: Mapping[str, np.ndarray], mesh: Mesh, share: Share) -> dict[str, Any]:
    """Host arrays of a share as global arrays, batches over the batch axes."""
    sharding = batch_sharding(mesh)
    return {name: global_array(np.asarray(x), sharding, share) for name, x in batch.items()}
