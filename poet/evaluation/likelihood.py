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
from poet.mesh import batch_sharding, check_batch
from poet.models.transformer import Model, Params
from poet.processes import Share, batch_share, global_array
from poet.specs import Experiment, UserError
from poet.store.manifest import Manifest
from poet.store.reader import check_split
from poet.tasks.layout import Layout
from poet.training.step import evaluate_step

# One program per (model, layout, batch shape), shared by everything in the process.
_STEP = jax.jit(evaluate_step, static_argnums=(0, 3, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamLikelihood:
    """Means over `tokens` tokens; accuracy counts a label that has the largest logit.

    Where no token was scored, the means do not exist and are None.
    """

    loss_nats: float | None
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
    totals: dict[str, np.ndarray] = {}
    for batch in batches:
        placed = place(batch, mesh, batch_share(mesh))
        sums = jax.device_get(_STEP(model, params, placed, layout, loss_vocabulary))
        for stream, part in sums.items():
            values = np.array([part.loss, part.correct, part.count], np.float64)
            totals[stream] = totals.get(stream, 0) + values
    return {
        stream: StreamLikelihood(
            loss_nats=float(loss / count) if count else None,
            accuracy=float(correct / count) if count else None,
            tokens=round(count),
        )
        for stream, (loss, correct, count) in totals.items()
    }


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


def unigram_entropy_nats(manifest: Manifest, split: str, stream: str) -> float | None:
    """Entropy of a stream's codes in a split: the loss of the best model that ignores context.

    An image is the first latent frame of a clip.  None for a stream that the store does not count.
    """
    statistics = manifest.splits[split].statistics
    if stream == "image" and "video" in statistics:
        return statistics["video"].first_frame_entropy_nats
    return statistics[stream].entropy_nats if stream in statistics else None


def place(batch: Mapping[str, np.ndarray], mesh: Mesh, share: Share) -> dict[str, Any]:
    """Host arrays of a share as global arrays, batches over the batch axes."""
    sharding = batch_sharding(mesh)
    return {name: global_array(np.asarray(x), sharding, share) for name, x in batch.items()}
