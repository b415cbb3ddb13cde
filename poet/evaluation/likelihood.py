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
from poet.specs import Experiment, UserError
from poet.store.manifest import Manifest, SplitInfo
from poet.store.reader import check_split
from poet.tasks.layout import Layout
from poet.training.step import evaluate_step

# One program per (model, layout, batch shape), shared by everything in the process.
_STEP = jax.jit(evaluate_step, static_argnums=(0, 3, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamLikelihood:
    """Means over `tokens` tokens; accuracy counts a label that has the largest logit."""

    loss_nats: float
    accuracy: float
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
        sums = jax.device_get(_STEP(model, params, place(batch, mesh), layout, loss_vocabulary))
        for stream, part in sums.items():
            values = np.array([part.loss, part.correct, part.count], np.float64)
            totals[stream] = totals.get(stream, 0) + values
    return {
        stream: StreamLikelihood(
            loss_nats=float(loss / max(count, 1)),
            accuracy=float(correct / max(count, 1)),
            tokens=round(count),
        )
        for stream, (loss, correct, count) in totals.items()
    }


def task_batches(
    experiment: Experiment, task: str, manifest: Manifest, batches: int
) -> Iterable[Mapping[str, np.ndarray]]:
    """This process's share of at most `batches` batches of EVAL.batch clips of EVAL.split."""
    spec, processes = experiment.eval, jax.process_count()
    local = spec.batch // processes
    return eval_batches(
        experiment,
        task,
        spec.split,
        local,
        min(batches, common_batches(manifest.splits[spec.split], local, processes)),
        process_index=jax.process_index(),
        process_count=processes,
    )


def common_batches(split: SplitInfo, local_batch: int, processes: int) -> int:
    """Whole local batches that every process finds in its files (every `processes`-th one)."""
    sizes = [shard.clips for shard in split.shards if shard.clips]
    return min(sum(sizes[i::processes]) // local_batch for i in range(processes))


def check_split_feeds(experiment: Experiment, manifest: Manifest, mesh: Mesh) -> None:
    """Raises UserError unless EVAL.split holds a batch of EVAL.batch that the mesh divides."""
    spec, processes = experiment.eval, jax.process_count()
    check_split(manifest, spec.split)
    check_batch(mesh, spec.batch, "EVAL.batch")
    if spec.batch % processes:
        raise UserError(f"EVAL.batch = {spec.batch} does not divide over {processes} processes")
    split = manifest.splits[spec.split]
    if not common_batches(split, spec.batch // processes, processes):
        raise UserError(
            f"EVAL.batch = {spec.batch}: split {spec.split!r} of {experiment.data.store} holds "
            f"{split.clips} clips in {len(split.shards)} files, less than one batch for each of "
            f"{processes} process(es); choose a smaller EVAL.batch or another EVAL.split"
        )


def unigram_entropy_nats(manifest: Manifest, split: str, stream: str) -> float | None:
    """Entropy of a stream's codes in a split: the loss of the best model that ignores context.

    An image is the first latent frame of a clip.  None for a stream that the store does not count.
    """
    statistics = manifest.splits[split].statistics
    if stream == "image" and "video" in statistics:
        return statistics["video"].first_frame_entropy_nats
    return statistics[stream].entropy_nats if stream in statistics else None


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Host arrays of this process's share as global arrays, batches over the batch axes."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
        for name, array in batch.items()
    }
