from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poet import mesh
from poet.specs import MeshSpec, OptimizerSpec
from poet.training import optimizer

AXES = {
    "blocks": {"w": ("layers", "embed", "mlp"), "scale": ("layers", "embed")},
    "table": ("vocab", "table_embed"),
    "bias": ("mlp",),
    "kernel": (None, None, None, "conv_in", "conv_out"),
}
SHAPES = {
    "blocks": {"w": (3, 8, 16), "scale": (3, 8)},
    "table": (32, 8),
    "bias": (16,),
    "kernel": (3, 3, 3, 8, 16),
}


def params() -> dict:
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return jax.tree.map(draw, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def test_matrices_decay_and_vectors_and_tables_do_not() -> None:
    spec = OptimizerSpec(learning_rate=1.0, warmup_steps=0, weight_decay=0.5)
    tx = optimizer.build(spec, 10, AXES)
    before = params()
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, before), tx.init(before), before)
    for name, update in (("w", updates["blocks"]["w"]), ("kernel", updates["kernel"])):
        weight = before["blocks"]["w"] if name == "w" else before["kernel"]
        np.testing.assert_allclose(update, -0.5 * weight, rtol=1e-6)
    for update in (updates["blocks"]["scale"], updates["table"], updates["bias"]):
        assert not np.any(update)


def test_update_is_adamw_after_a_global_norm_clip() -> None:
    """Against the textbook recurrence in float64."""
    spec = OptimizerSpec(learning_rate=0.1, warmup_steps=2, weight_decay=0.2, clip_norm=1.5)
    tx = optimizer.build(spec, 6, {"w": ("embed", "mlp")})
    rng = np.random.default_rng(1)
    w = rng.normal(size=(4, 5))
    state, tree = tx.init({"w": jnp.asarray(w, jnp.float32)}), {"w": jnp.asarray(w, jnp.float32)}
    m = v = np.zeros_like(w)
    for t in range(6):
        grad = rng.normal(size=w.shape) * (3 if t % 2 else 0.1)
        updates, state = tx.update({"w": jnp.asarray(grad, jnp.float32)}, state, tree)
        tree = optax.apply_updates(tree, updates)
        clipped = grad * min(1.0, 1.5 / np.linalg.norm(grad))
        m, v = 0.9 * m + 0.1 * clipped, 0.95 * v + 0.05 * clipped**2
        direction = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-8)
        w = w - _rate(t) * (direction + 0.2 * w)
        np.testing.assert_allclose(tree["w"], w, rtol=2e-5, atol=2e-6)


def _rate(t: int) -> float:
    """Peak 0.1, warm-up over 2 of 6 steps, cosine to a tenth."""
    if t < 2:
        return 0.1 * t / 2
    return 0.01 + 0.09 * 0.5 * (1 + np.cos(np.pi * (t - 2) / 4))


@pytest.mark.parametrize("warmup, steps", [(0, 10), (4, 10), (10, 10), (50, 10)])
def test_learning_rate_peaks_after_warm_up_and_ends_low(warmup: int, steps: int) -> None:
    spec = OptimizerSpec(learning_rate=2.0, warmup_steps=warmup, final_fraction=0.25)
    rates = [float(optimizer.learning_rate(spec, steps)(t)) for t in range(steps + 1)]
    assert max(rates) == pytest.approx(2.0) == rates[min(warmup, steps)]
    assert rates[0] == (2.0 if warmup == 0 else 0.0)
    assert rates[-1] == pytest.approx(0.5 if warmup < steps else 2.0)


def test_axes_of_the_state_mirror_those_of_the_parameters() -> None:
    tx = optimizer.build(OptimizerSpec(), 10, AXES)
    axes = optimizer.state_axes(tx, params(), AXES)
    state = jax.eval_shape(tx.init, params())
    built = mesh.abstract(MeshSpec(fsdp=4, tensor=2), 8)
    mesh.Rules().check(built, axes, state)
    adam = next(s for s in axes[1] if hasattr(s, "mu"))
    assert adam.mu == adam.nu == AXES and adam.count == ()


def test_a_state_that_mirrors_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="mirrors no parameter"):
        optimizer.state_axes(optax.adafactor(0.1, min_dim_size_to_factor=2), params(), AXES)
