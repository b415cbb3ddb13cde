from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poet.distributed import mesh
from poet.spec import MeshSpec, OptimizerSpec
from poet.training import optimizer

AXES = {
    "blocks": {"w": ("layers", "embed", "mlp"), "scale": ("layers", "embed")},
    "table": ("vocab", "table_embed"),
    "bias": ("mlp",),
    "kernel": (None, None, None, "conv_in", "conv_out"),
}
SHAPES = {"blocks": {"w": (3, 8, 16), "scale": (3, 8)}, "table": (32, 8), "bias": (16,), "kernel": (3, 3, 3, 8, 16)}


def params() -> dict:
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return jax.tree.map(draw, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_matrices_decay_and_vectors_and_tables_do_not(name: str) -> None:
    spec = OptimizerSpec(name=name, learning_rate=1.0, warmup_steps=0, weight_decay=0.5)
    tx = optimizer.build(spec, AXES)
    before = params()
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, before), tx.init(before), before)
    pairs = [(updates["blocks"]["w"], before["blocks"]["w"])]
    if name != "muon":  # There AdamW, without decay, has what is no matrix of a block.
        pairs.append((updates["kernel"], before["kernel"]))
    for update, weight in pairs:
        np.testing.assert_allclose(update, -0.5 * weight, rtol=1e-6)
    for update in (updates["blocks"]["scale"], updates["table"], updates["bias"]):
        assert not np.any(update)


def test_update_is_adamw_after_a_global_norm_clip() -> None:
    """Against the textbook recurrence in float64."""
    spec = OptimizerSpec(learning_rate=0.1, warmup_steps=2, weight_decay=0.2, clip_norm=1.5)
    tx, rate = optimizer.build(spec, {"w": ("embed", "mlp")}), optimizer.learning_rate(spec, 6)
    rng = np.random.default_rng(1)
    w = rng.normal(size=(4, 5))
    tree = {"w": jnp.asarray(w, jnp.float32)}
    state = {"params": tree, "opt_state": tx.init(tree)}
    m = v = np.zeros_like(w)
    for t in range(6):
        grad = rng.normal(size=w.shape) * (3 if t % 2 else 0.1)
        grads = {"w": jnp.asarray(grad, jnp.float32)}
        state, metrics = optimizer.apply(tx, spec, grads, state, rate(t))
        assert float(metrics["clipped"]) == (np.linalg.norm(grad) > 1.5)
        clipped = grad * min(1.0, 1.5 / np.linalg.norm(grad))
        m, v = 0.9 * m + 0.1 * clipped, 0.95 * v + 0.05 * clipped**2
        direction = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-8)
        w = w - _rate(t) * (direction + 0.2 * w)
        np.testing.assert_allclose(state["params"]["w"], w, rtol=2e-5, atol=2e-6)


def _rate(t: int) -> float:
    """Peak 0.1, warm-up over 2 of 6 steps, cosine to a tenth."""
    if t < 2:
        return 0.1 * (t + 1) / 2
    return 0.01 + 0.09 * 0.5 * (1 + np.cos(np.pi * (t - 2) / 4))


@pytest.mark.parametrize("warmup, steps", [(0, 10), (4, 10), (10, 10), (50, 10)])
def test_learning_rate_peaks_after_warm_up_and_ends_low(warmup: int, steps: int) -> None:
    spec = OptimizerSpec(learning_rate=2.0, warmup_steps=warmup, final_fraction=0.25)
    rate = optimizer.learning_rate(spec, steps)
    rates = [rate(t) for t in range(steps)]
    peak = max(min(warmup, steps) - 1, 0)
    assert max(rates) == pytest.approx(2.0) == rates[peak]
    assert rates[0] == (2.0 / min(warmup, steps) if warmup else 2.0), "no step is at rate 0"
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:])[::-1]
    assert rate(steps) == pytest.approx(0.5 if warmup < steps else 2.0)


def leaves(tree: object) -> dict[str, object]:
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_axes_of_the_state_follow_those_of_the_parameters(name: str) -> None:
    tx = optimizer.build(OptimizerSpec(name=name), AXES)
    axes = optimizer.state_axes(tx, params(), AXES)
    state = jax.eval_shape(tx.init, params())
    built = mesh.abstract(MeshSpec(fsdp=4, tensor=2), 8)
    mesh.Rules().check(built, axes, state)
    if name == "adamw":
        adam = next(s for s in axes[1] if hasattr(s, "mu"))
        assert adam.mu == adam.nu == AXES and adam.count == ()


def test_a_factored_moment_has_the_axes_that_are_left() -> None:
    tx = optax.adafactor(0.1, min_dim_size_to_factor=8)
    axes = optimizer.state_axes(tx, params(), AXES)
    factored = next(s for s in axes if hasattr(s, "v_row"))
    assert factored.v_row["blocks"]["w"] == ("layers", "embed")
    assert factored.v_col["blocks"]["w"] == ("layers", "mlp")
    assert factored.v["blocks"]["w"] == (None,) and factored.v["bias"] == ("mlp",)


def test_a_state_that_follows_nothing_is_refused() -> None:
    tx = optax.GradientTransformation(lambda p: {"other": jnp.zeros((99, 7))}, None)
    with pytest.raises(ValueError, match=r"\(99, 7\) follows no parameter"):
        optimizer.state_axes(tx, params(), AXES)


def test_choices_need_less_memory_where_they_say_so() -> None:
    def size(**settings: str) -> int:
        shapes = {"w": jax.ShapeDtypeStruct((256, 512), jnp.float32)}
        tx = optimizer.build(OptimizerSpec(**settings), {"w": ("embed", "mlp")})
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(tx.init, shapes)))

    whole = 256 * 512 * 4
    assert 2 * whole <= size() < 2.01 * whole
    assert 1.5 * whole <= size(state_dtype="bfloat16") < 1.51 * whole
    assert whole <= size(name="adafactor") < 1.01 * whole


def test_muon_gives_all_directions_of_a_matrix_one_size() -> None:
    """A gradient whose singular values span two orders; those of the update lie within 2.5 of each
    other, as five Newton-Schulz steps promise.  AdamW has the table: its first step is of one size."""
    spec = OptimizerSpec(name="muon", learning_rate=1.0, warmup_steps=0, weight_decay=0.0)
    tx = optimizer.build(spec, AXES)
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(np.asarray, params())
    u, _, v = np.linalg.svd(rng.normal(size=(3, 8, 16)), full_matrices=False)
    gradients["blocks"]["w"] = np.float32(u * np.geomspace(1, 1e-2, 8) @ v)
    updates, _ = tx.update(gradients, tx.init(params()), params())
    sizes = np.linalg.svd(np.asarray(updates["blocks"]["w"]), compute_uv=False)
    assert (sizes.max(-1) < 2.5 * sizes.min(-1)).all()
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(updates["blocks"]["w"]))), 0.2, rtol=0.3)
    table = np.abs(updates["table"])
    np.testing.assert_allclose(table, table.mean(), rtol=1e-3)


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_updates_are_the_same_on_a_mesh_and_lie_where_the_parameters_lie(name: str) -> None:
    spec = OptimizerSpec(name=name, warmup_steps=0)
    tx = optimizer.build(spec, AXES)

    def two_steps(tree: dict) -> dict:
        state = tx.init(tree)
        for scale in (1.0, -0.3):
            updates, state = tx.update(jax.tree.map(lambda p: scale * p, tree), state, tree)
            tree = optax.apply_updates(tree, updates)
        return tree

    alone = jax.jit(two_steps)(params())
    built = mesh.build(MeshSpec(data=1, fsdp=4, tensor=2))
    places = mesh.Rules().shardings(built, AXES)
    with jax.set_mesh(built):
        spread = jax.jit(two_steps)(jax.device_put(params(), places))
    for key, want in leaves(alone).items():
        np.testing.assert_allclose(leaves(spread)[key], want, rtol=1e-4, atol=1e-6, err_msg=key)
        got = leaves(spread)[key]
        assert got.sharding.is_equivalent_to(leaves(places)[key], got.ndim)


@pytest.mark.parametrize("name, most", [("adamw", 1.3), ("adafactor", 2.5), ("muon", 1.3)])
def test_a_row_fed_rarely_moves_as_far_for_each_gradient_as_one_fed_always(name: str, most: float) -> None:
    """One gradient a row, again and again: without lazy rows the ratio is 3 at every tenth step and 6
    to 8 at every fiftieth."""
    spec = OptimizerSpec(name=name, weight_decay=0.0, clip_norm=1e9)
    axes = {"table": ("vocab", "table_embed"), "w": ("embed", "mlp")}
    tx = optimizer.build(spec, axes)
    rng = np.random.default_rng(0)
    period = np.repeat([1, 10, 50], 64)
    fed = np.arange(400)[:, None] % period == np.arange(192) % period
    rows = rng.normal(size=(192, 128)).astype(np.float32)
    params = {"table": jnp.zeros((192, 128)), "w": jnp.zeros((128, 128))}

    def step(carry: tuple, fed_V: jax.Array) -> tuple:
        state, place = carry
        grads = {"table": jnp.where(fed_V[:, None], rows, 0.0), "w": jnp.ones((128, 128))}
        updates, after = tx.update(grads, state, params)
        still = jnp.where(fed_V[:, None], 0.0, updates["table"])
        return (after, place + updates["table"]), jnp.abs(still).max()

    start = (tx.init(params), jnp.zeros((192, 128)))
    (_, place), still = jax.jit(lambda: jax.lax.scan(step, start, jnp.asarray(fed)))()
    assert not np.any(still), "a row without a gradient stays where it is"
    moved = np.abs(place).mean(1) / fed.sum(0)
    always, tenth, fiftieth = (moved[period == p].mean() for p in (1, 10, 50))
    assert 0.6 < tenth / always < most and 0.6 < fiftieth / always < most


def test_bfloat16_parameters_move_as_float32_ones_do() -> None:
    """Steps of 1e-4 beside a scale of 1, whose neighbours in bfloat16 lie 2^-8 and 2^-7 away."""
    spec = OptimizerSpec(weight_decay=0.0)
    tx = optimizer.build(spec, {"scale": ("embed",)})

    def trained(dtype: str) -> np.ndarray:
        params = {"scale": jnp.ones(4096, dtype)}
        state = {"params": params, "opt_state": tx.init(params)}
        assert {x.dtype for x in jax.tree.leaves(state["opt_state"]) if x.ndim} == {jnp.dtype("float32")}

        def step(state: dict, key: jax.Array) -> tuple[dict, None]:
            grads = {"scale": jnp.full(4096, 1e-3, dtype)}
            return optimizer.apply(tx, spec, grads, state, 1e-4, key=key)[0], None

        keys = jax.random.split(jax.random.key(0), 30)
        return np.float64(jax.jit(lambda: jax.lax.scan(step, state, keys))()[0]["params"]["scale"])

    want = trained("float32") - 1
    np.testing.assert_allclose(want, -30 * 1e-4, rtol=1e-3)
    np.testing.assert_allclose(np.mean(trained("bfloat16") - 1), want.mean(), rtol=0.1)


def test_rounding_at_random_takes_a_neighbour_and_is_right_on_average() -> None:
    x = jnp.concatenate([jnp.full(20_000, v, jnp.float32) for v in (1.001, -3.003, 1e-30)])
    rounded = np.float64(optimizer._rounded_at_random(x, jax.random.key(0))).reshape(3, -1)
    for value, drawn in zip((1.001, -3.003, 1e-30), rounded):
        assert len(set(drawn)) == 2 and min(drawn) < value < max(drawn)
        np.testing.assert_allclose(drawn.mean(), value, rtol=1e-4)
    kept = optimizer._rounded_at_random(jnp.array([jnp.inf, -jnp.inf, jnp.nan, 1.0]), jax.random.key(0))
    np.testing.assert_array_equal(np.float32(kept), [np.inf, -np.inf, np.nan, 1.0])
