"""The train step: it learns, it counts its FLOPs, and bad meshes are refused."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from poet.distributed import mesh as mesh_lib
from poet.models import transformer
from poet.spec import (
    ClipSpec,
    DataSpec,
    Experiment,
    MeshSpec,
    ModelSpec,
    OptimizerSpec,
    TextSpec,
    TrainSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.tasks.resolved import Resolved
from poet.training import compiled, flops, losses, step
from poet.training.trainable import each

RUN = Experiment(
    clip=ClipSpec(frames=5, height=32, width=32),
    vocabulary=VocabularySpec(visual_bits=6, audio_codes=16, text_pieces=64),
    video_tokenizer=VideoTokenizerSpec(bits=6),
    text=TextSpec(length=8, width=16),
    model=ModelSpec(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=64, dtype="float32", remat="none"),
    data=DataSpec(batch=4, mixture_rates={"text_to_video": 1.0, "text_to_image": 1.0}),
    optimizer=OptimizerSpec(warmup_steps=0, learning_rate=1e-2),
    train=TrainSpec(steps=30),
)
ONE = mesh_lib.abstract(MeshSpec(), 1)


def make_batch(shapes, layout):
    rng = np.random.default_rng(0)
    size = shapes["tokens"].shape[0]
    batch = {name: np.zeros(s.shape, s.dtype) for name, s in shapes.items()}
    batch["tokens"] = np.concatenate(
        [rng.integers(s.ids.low, s.ids.high, (size, s.length)) for s in layout.segments], axis=1
    ).astype(np.int32)
    if "text_states" in batch:
        batch["text_states"] = rng.normal(size=shapes["text_states"].shape).astype(np.float32)
        batch["text_length"] = np.full(size, 5, np.int32)
    return batch


def test_a_fixed_batch_is_learnt():
    trainable = step.language_model(Resolved(RUN), ONE)
    group = trainable.groups["text-to-video"]
    layout = Resolved(RUN).layouts["text_to_video"]
    batch = make_batch(group.batch, layout)
    state = jax.jit(trainable.init)(jax.random.key(0))
    run = jax.jit(group.step, donate_argnums=0)
    history = []
    for _ in range(30):
        state, metrics = run(state, batch, jax.random.key(0), 1e-2)
        history.append(float(metrics["loss"].value()))
    # Above the uniform: a row that embeds a code scores it too, until the blocks say otherwise.
    assert np.log(64) < history[0] < 2 * np.log(64)
    assert history[-1] < 0.5 * np.log(64), history
    assert int(state["step"]) == 30
    assert {"loss/video", "accuracy/video", "grad_norm", "learning_rate"} <= metrics.keys()
    evaluate = functools.partial(step.evaluate_step, step.build_model(Resolved(RUN)), layout=layout)
    [scores] = jax.jit(evaluate)(state["params"], batch)
    assert float(scores.loss.sum() / scores.count.sum()) < history[-1]
    assert float(scores.count.sum()) == layout.loss_length * 4


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_microbatches_give_the_gradient_of_the_whole_batch(devices):
    """Clips with unequally many given codes: a part has 4 tokens to predict, the other all of them."""
    mesh = mesh_lib.build(MeshSpec(fsdp=devices), jax.devices()[:devices])
    results, layout = [], Resolved(RUN).layouts["text_to_video"]
    with jax.set_mesh(mesh):
        trainable = step.language_model(Resolved(RUN), mesh)
        shardings = mesh_lib.Rules().shardings(mesh, trainable.axes)
        state = jax.device_put(jax.jit(trainable.init)(jax.random.key(0)), shardings)
        for parts in (1, 2):
            run = RUN.replace(train=RUN.train.replace(microbatches=parts))
            group = step.language_model(Resolved(run), mesh).groups["text-to-video"]
            batch = make_batch(group.batch, layout)
            batch["known"][::2] = layout.loss_spans[0].segment.length - 2
            batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
            results.append(jax.device_get(jax.jit(group.step)(state, batch, jax.random.key(0), 1e-2)))
    (whole, metrics), (parts, part_metrics) = results
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(each(part_metrics[name]).value(), each(metrics[name]).value(), rtol=2e-6)
    for a, b in zip(jax.tree.leaves(whole["opt_state"]), jax.tree.leaves(parts["opt_state"])):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)


def test_a_batch_without_a_token_to_predict_moves_nothing():
    """Momentum of the step before would move the weights, and decay would shrink them."""
    trainable = step.language_model(Resolved(RUN), ONE)
    group, layout = trainable.groups["text-to-image"], Resolved(RUN).layouts["text_to_image"]
    batch = make_batch(group.batch, layout)
    run = jax.jit(group.step)
    state = jax.jit(trainable.init)(jax.random.key(0))
    before, _ = run(state, batch, jax.random.key(0), 1e-2)
    batch["known"][:] = layout.loss_spans[0].segment.length
    after, metrics = run(before, batch, jax.random.key(0), 1e-2)
    for name in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
    assert int(after["step"]) == 2
    for name in ("loss", "loss/image", "accuracy/image", "grad_norm", "clipped"):
        assert float(metrics[name].weight) == 0, "absent, not 0"


def test_other_lengths_rates_and_seeds_are_the_same_program():
    """What a run may set otherwise without other arrays or products is an input of the step."""
    mesh = mesh_lib.build(MeshSpec(), jax.devices()[:1])

    def text(**settings):
        train = {k: settings.pop(k) for k in ("steps", "seed", "log_every") if k in settings}
        run = RUN.replace(train=RUN.train.replace(**train), optimizer=RUN.optimizer.replace(**settings))
        trainable = step.language_model(Resolved(run), mesh)
        state = compiled.abstract(trainable, mesh)
        return compiled.lower(trainable.groups["text-to-image"], state, mesh).as_text()

    with jax.set_mesh(mesh):
        first = text()
        lengths, rates = {"steps": 777, "log_every": 3}, {"warmup_steps": 9, "learning_rate": 3e-5}
        assert text(seed=5, final_fraction=0.5, **lengths, **rates) == first
        assert text(b2=0.5) != first


def test_microbatches_must_divide_the_batch():
    with pytest.raises(UserError, match="TRAIN.microbatches = 3"):
        step.language_model(Resolved(RUN.replace(train=RUN.train.replace(microbatches=3))), ONE)


def test_groups_follow_the_mixture():
    trainable = step.language_model(Resolved(RUN), ONE)
    assert set(trainable.groups) == {"text-to-video", "text-to-image"}
    for name, (layout, _) in Resolved(RUN).groups.items():
        group = trainable.groups[name]
        assert group.batch["tokens"].shape == (group.clips, layout.length)
        assert group.tokens == group.clips * layout.length
    structure = jax.tree.structure(jax.eval_shape(trainable.init, jax.random.key(0)))
    assert structure == jax.tree.structure(trainable.axes, is_leaf=mesh_lib.is_axes)


@pytest.mark.parametrize(
    "mesh, word",
    [
        (MeshSpec(fsdp=1, tensor=4), "kv_heads"),
        (MeshSpec(fsdp=8), "batch of 4"),
        (MeshSpec(fsdp=1, sequence=4), "kv_heads = 2 .*use MESH.sequence = 1 or 2"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(mesh, word):
    with pytest.raises(UserError, match=word):
        step.language_model(Resolved(RUN), mesh_lib.abstract(mesh, 8 if mesh.fsdp == 8 else 4))


def test_flops_equal_those_of_the_compiled_products():
    """XLA counts every product of the unrolled forward pass; attention blocks of one query make its
    causal triangle exact.  Elementwise work is removed by counting dot_general alone."""
    model = step.build_model(Resolved(RUN))
    layout = Resolved(RUN).layouts["text_to_video"]
    batch = make_batch(step.batch_shapes(layout, 1, RUN.text.width), layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer.attention, "QUERY_BLOCK", 1)
        jaxpr = jax.make_jaxpr(lambda p: losses.stream_sums(model, p, batch, layout))(model.abstract())
    assert flops.forward_flops(model, layout) == dot_flops(jaxpr.jaxpr)
    assert flops.train_flops(model, layout) == 3 * flops.forward_flops(model, layout)


def dot_flops(jaxpr) -> int:
    """2 m k n of every dot_general, scans multiplied by their length."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            depth = int(np.prod([shape[d] for d in contract], dtype=np.int64))
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape, dtype=np.int64)) * depth
        times = eqn.params.get("length", 1)
        for inner in jaxprs_in_params(eqn.params):
            total += times * dot_flops(inner)
    return total


def test_step_runs_in_bfloat16_with_float32_masters():
    run = RUN.replace(model=RUN.model.replace(dtype="bfloat16"))
    trainable = step.language_model(Resolved(run), ONE)
    group = trainable.groups["text-to-image"]
    shapes = jax.eval_shape(trainable.init, jax.random.key(0))
    after, metrics = jax.eval_shape(group.step, shapes, group.batch, jax.random.key(0), 1e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(after["params"])} == {jnp.dtype("float32")}
    assert all(m.dtype == jnp.float32 and m.shape == () for m in jax.tree.leaves(metrics))
    model = step.build_model(Resolved(run))
    layout = Resolved(run).layouts["text_to_image"]
    batch = group.batch
    hidden = jax.eval_shape(
        lambda p, b: model.hidden(p, b["tokens"], layout, losses.text_of(b, layout)), shapes["params"], batch
    )
    assert hidden.dtype == jnp.bfloat16


def test_a_step_counts_by_its_tokens_where_it_is_told_to():
    """Gradients of the mean over tokens, or of the sum over what a step usually predicts."""
    layout = Resolved(RUN).layouts["text_to_video"]
    usual, found = Resolved(RUN).usual_tokens, {}
    for kind in ("steps", "tokens"):
        run = RUN.replace(train=RUN.train.replace(step_weight=kind))
        trainable = step.language_model(Resolved(run), ONE)
        group = trainable.groups["text-to-video"]
        batch = make_batch(group.batch, layout)
        state = jax.jit(trainable.init)(jax.random.key(0))
        _, metrics = jax.jit(group.step)(state, batch, jax.random.key(0), 1e-3)
        found[kind] = float(metrics["grad_norm"].value())
    tokens = batch["tokens"].shape[0] * layout.loss_length
    assert usual != tokens, "nothing would be seen"
    assert found["tokens"] == pytest.approx(found["steps"] * tokens / usual, rel=1e-4)
