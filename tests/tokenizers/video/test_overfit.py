"""The whole tokenizer learns one clip by heart, without the quantizer and with it.

Both runs go through the step of `poet tokenizer-train`.  The L2 term alone has a weight, so that
the encoder learns through the decoder or not at all: a gradient that is lost on the way leaves a
weight where it started, and a wrong one the reconstruction below the stated PSNR.
"""

from __future__ import annotations

import jax
import numpy as np
import optimised
import pytest

from poet.models.declaration import Tree
from poet.spec import (
    ClipSpec,
    Experiment,
    OptimizerSpec,
    TokenizerTrainSpec,
    TrainSpec,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.tokenizers.video import lfq, training
from poet.training.trainable import State

pytestmark = pytest.mark.slow

FRAMES, SIDE = 5, 16
# Two levels, so that time and space are halved and restored inside the network; 3x4x4 latents.
SPEC = VideoTokenizerSpec(
    base_channels=16, multipliers=(1, 2), blocks=1, temporal_downsample=(True,), stem=(1, 2, 2), norm_groups=4, bits=10
)


def experiment(steps: int) -> Experiment:
    return Experiment(
        clip=ClipSpec(frames=FRAMES, height=SIDE, width=SIDE),
        vocabulary=VocabularySpec(visual_bits=SPEC.bits),
        video_tokenizer=SPEC,
        optimizer=OptimizerSpec(learning_rate=1e-2, warmup_steps=20, b2=0.99, weight_decay=0.0, final_fraction=0.02),
        tokenizer_train=TokenizerTrainSpec(batch=1, commitment_weight=0.0, entropy_weight=0.0),
        train=TrainSpec(steps=steps),
    )


def clip() -> np.ndarray:
    """uint8 (1, FRAMES, SIDE, SIDE, 3): a striped disc and a checked square on a shaded ground."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    video = np.empty((1, FRAMES, SIDE, SIDE, 3))
    for t, frame in enumerate(video[0]):
        frame[:] = np.stack([0.3 + 0.4 * x, 0.5 - 0.3 * y, 0.4 + 0.2 * np.sin(9 * (x + y))], -1)
        left, top = 0.1 + 0.1 * t, 0.6 - 0.05 * t
        disc = (x - 0.7 + 0.08 * t) ** 2 + (y - 0.3) ** 2 < 0.05
        square = (abs(x - left - 0.15) < 0.15) & (abs(y - top - 0.15) < 0.15)
        stripes = 0.5 + 0.5 * np.sin(20 * (x + 0.08 * t))
        checks = (np.floor((x - left) * 8) + np.floor((y - top) * 8)) % 2
        frame[disc] = np.stack([stripes, 0.2 + 0 * x, 1 - stripes], -1)[disc]
        frame[square] = np.stack([0.9 - 0.5 * checks, 0.8 * checks, 0.1 + 0 * x], -1)[square]
    return np.round(video * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def initial() -> State:
    """One fresh state for both runs; draws of the rbg generator compile fastest."""
    trainable = training.trainable(experiment(1))
    return jax.device_get(jax.jit(trainable.init)(jax.random.key(0, impl="rbg")))


def overfit(exp: Experiment, state: State) -> tuple[dict[str, float], Tree]:
    """(metrics of the last step, weights at the end)."""
    trainable = training.trainable(exp)
    step = optimised.jit(trainable.groups["clip"].step, donate_argnums=0)
    batch, key = {"video": clip()}, jax.random.key(1)
    state = jax.device_put(state)
    for number in range(exp.train.steps):
        state, metrics = step(state, batch, key, trainable.rate(number))
    return {name: float(m) for name, m in metrics.items()}, jax.device_get(state["params"])


def unmoved(start: Tree, end: Tree) -> list[str]:
    """Names of weights of which no entry has changed."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(end), strict=True)
    return [jax.tree_util.keystr(path) for (path, a), b in pairs if np.array_equal(a, b)]


def test_network_alone_learns_a_clip(initial: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder gets the latents as they are."""
    ids_of = lfq.quantize
    monkeypatch.setattr(lfq, "quantize", lambda z: (z, ids_of(z)[1]))
    metrics, end = overfit(experiment(400), initial)
    assert not unmoved(initial["params"], end)
    assert metrics["psnr_db"] > 32


def test_network_learns_a_clip_through_the_quantizer(initial: State) -> None:
    metrics, end = overfit(experiment(400), initial)
    assert not unmoved(initial["params"], end)
    assert metrics["psnr_db"] > 28
