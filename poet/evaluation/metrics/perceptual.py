"""Distances between frames by a network (`poet.tokenizers.video.perceptual`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from poet.evaluation.metric import Metric
from poet.evaluation.metrics.pixels import PAIRS, PEAK, by_pair
from poet.tokenizers.video.perceptual import Perceptual

# Of every fourth frame, one of each latent of the paper: the network costs far more than all else here.
EVERY = 4


def distance(perceptual: Perceptual) -> Metric:
    """The distance of a network, as a metric that is called as the network is."""
    compiled = jax.jit(
        lambda params, a, b: perceptual.distance(params, a.astype(jnp.float32) / PEAK, b.astype(jnp.float32) / PEAK)
    )

    def clip_distance(truth_TxHxWx3: np.ndarray, other_TxHxWx3: np.ndarray) -> float:
        frames = truth_TxHxWx3[::EVERY], other_TxHxWx3[::EVERY]
        return np.asarray(compiled(perceptual.params, *frames)).mean()

    return Metric(
        name=perceptual.label,
        better="less",
        needs=PAIRS,
        measure=by_pair(clip_distance),
        tables=("renderings",),
        note=f"{perceptual.label} is the mean over frames 0, {EVERY}, {2 * EVERY}, ...",
        protocol={"network": perceptual.name, "every": EVERY},
    )
