"""Guidance as an input of the model: its loss, and that one pass samples what two passes would."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from poet.distributed import mesh as mesh_lib
from poet.models import guidance, transformer
from poet.sampling.decode import Decoder, ModelPrograms
from poet.sampling.engine import Engine, Inputs
from poet.sampling.plans import Text
from poet.sampling.requests import check_negative, make_plan
from poet.spec import (
    ClipSpec,
    DataSpec,
    Experiment,
    MeshSpec,
    ModelSpec,
    OptimizerSpec,
    SampleSpec,
    TextSpec,
    TrainSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
    compat,
)
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved
from poet.training import losses, step

TASK, CODES, BATCH, STEPS, RATE = "text_to_image", 16, 64, 300, 8e-3
RUN = Experiment(
    clip=ClipSpec(frames=5, height=16, width=16),
    vocabulary=VocabularySpec(visual_bits=4, audio_codes=16, text_pieces=64),
    video_tokenizer=VideoTokenizerSpec(bits=4),
    text=TextSpec(length=2, width=4),
    model=ModelSpec(
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=64,
        dtype="float32",
        remat="none",
        guidance_input=True,
    ),
    data=DataSpec(batch=BATCH, mixture_rates={TASK: 1.0}, text_dropout=0.2),
    optimizer=OptimizerSpec(warmup_steps=0, learning_rate=RATE, weight_decay=0.0),
    train=TrainSpec(steps=STEPS),
)
RESOLVED = Resolved(RUN)
LAYOUT = RESOLVED.layouts[TASK]
MODEL = transformer.build_model(RESOLVED)
(SPAN,) = LAYOUT.loss_spans
SCALE = 3.0
NO_CODECS = types.SimpleNamespace(detokenize=None)


def texts(kinds: np.ndarray) -> np.ndarray:
    """States [B, L, E] of two texts."""
    return np.where(kinds[:, None, None] == 0, np.eye(2, 4), -np.eye(2, 4)).astype(np.float32)


def make_batch(seed: int) -> dict[str, np.ndarray]:
    """Under text 0 three of four codes are of the lower half, under text 1 of the upper one; a fifth has no text."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, BATCH)
    shape = BATCH, SPAN.segment.length
    upper = rng.random(shape) < np.where(kinds == 0, 0.25, 0.75)[:, None]
    tokens = np.concatenate([np.full((BATCH, s.length), s.ids.low) for s in LAYOUT.segments], axis=1).astype(np.int32)
    tokens[:, SPAN.start : SPAN.stop] += rng.integers(0, CODES // 2, shape, np.int32) + CODES // 2 * upper
    lengths = np.where(rng.random(BATCH) < RUN.data.text_dropout, 0, 2).astype(np.int32)
    known = np.zeros((BATCH, 1), np.int32)
    return {"tokens": tokens, "known": known, "text_states": texts(kinds), "text_length": lengths}


@functools.cache
def trained() -> dict:
    """Parameters after training, from the first step on with the scale as an input."""
    trainable = step.language_model(RESOLVED, mesh_lib.abstract(MeshSpec(), 1))
    (group,) = trainable.groups.values()
    state, run = jax.jit(trainable.init)(jax.random.key(0)), jax.jit(group.step, donate_argnums=0)
    for number in range(STEPS):
        rate = RATE * (1 - number / STEPS)
        state, metrics = run(state, make_batch(number), jax.random.key(number), rate)
    assert np.isfinite(float(metrics["loss"].value()))
    return jax.device_get(state["params"])


@functools.cache
def random() -> dict:
    """Random parameters; the input's are not 0."""
    params = jax.device_get(jax.jit(MODEL.init)(jax.random.key(1)))
    kernel = np.random.default_rng(5).normal(size=(guidance.FEATURES, RUN.model.width)).astype(np.float32)
    return {**params, "embedding": {**params["embedding"], "guidance": kernel}}


@jax.jit
def logits(params, batch, beta_B) -> jax.Array:
    """[B, N, codes] of a batch under beta."""
    text = (*losses.text_of(batch, LAYOUT), beta_B)
    x = MODEL.hidden(params, batch["tokens"], LAYOUT, text)
    return MODEL.logits(params, x[:, SPAN.start - LAYOUT.prefix_length :][:, : SPAN.segment.length], SPAN.segment.ids)


def untitled(batch: dict) -> dict:
    return {**batch, "text_length": np.zeros_like(batch["text_length"])}


def test_at_a_scale_of_one_the_input_says_nothing() -> None:
    one = np.ones(3, np.float32)
    assert not np.any(guidance.features(one)) and np.all(np.any(guidance.features(one / 2), axis=1))
    beta = guidance.sampled(jax.random.key(0), np.array([0, 2] * 500))
    assert np.all(beta[::2] == 1) and 0 < beta[1::2].min() and beta[1::2].max() <= 1
    assert abs(float(beta[1::2].mean()) - 0.5) < 0.05


def test_the_loss_is_that_of_mixed_logits() -> None:
    batch, params = make_batch(0), random()
    beta = np.random.default_rng(1).uniform(0.1, 1, BATCH).astype(np.float32)
    sums = jax.jit(lambda p, b: losses.stream_sums(MODEL, p, b, LAYOUT))(params, {**batch, "beta": beta})["image"]
    with_text = np.float64(logits(params, batch, beta))
    without = np.float64(logits(params, untitled(batch), np.ones(BATCH, np.float32)))
    mixed = beta[:, None, None] * with_text + (1 - beta[:, None, None]) * without
    labels = batch["tokens"][:, SPAN.start : SPAN.stop] - SPAN.segment.ids.low
    chosen = np.take_along_axis(scipy.special.log_softmax(mixed, -1), labels[..., None], -1)
    np.testing.assert_allclose(sums.loss, -chosen.sum(), rtol=1e-5)


def test_no_gradient_flows_through_what_is_said_without_text() -> None:
    """Beta of 0 leaves the states without text alone: nothing but the output rows, which score them, learns."""
    batch = {**make_batch(0), "beta": np.zeros(BATCH, np.float32)}
    grads = jax.jit(jax.grad(lambda p: losses.total(losses.stream_sums(MODEL, p, batch, LAYOUT)).objective))(random())
    assert not any(np.any(g) for g in jax.tree.leaves(grads["blocks"])) and not np.any(grads["head"]["norm"]["scale"])
    assert np.any(grads["embedding"]["tables"]["visual"])


def kl(first: np.ndarray, second: np.ndarray) -> float:
    return float(
        scipy.special.rel_entr(scipy.special.softmax(first, -1), scipy.special.softmax(second, -1)).sum(-1).mean()
    )


def test_one_pass_of_a_trained_model_is_its_guidance_by_two_passes() -> None:
    batch, params = {**make_batch(99), "text_length": np.full(BATCH, 2, np.int32)}, trained()
    one = np.ones(BATCH, np.float32)
    plain, without = (np.float64(logits(params, b, one)) for b in (batch, untitled(batch)))
    guided, read = without + SCALE * (plain - without), np.float64(logits(params, batch, one / SCALE))
    assert kl(guided, plain) > 0.1
    assert kl(guided, read) < 0.2 * kl(guided, plain)


@pytest.mark.slow
def test_it_is_sampled_in_one_pass() -> None:
    kinds, count = np.arange(200) % 2, 200
    sample = SampleSpec(guidance=SCALE, one_pass=True, seed=3)
    found = {}
    for name, settings in {"one": sample, "two": sample.replace(one_pass=False), "none": SampleSpec(seed=3)}.items():
        plan = make_plan(RESOLVED, get_task(TASK), settings, 0)
        assert (plan.fan, plan.scaled) == {"one": (1, True), "two": (2, False), "none": (1, False)}[name]
        engine = Engine(ModelPrograms(Decoder(MODEL, plan), trained(), RUN.text.width), NO_CODECS, TASK)
        text = Text(texts(kinds), np.full(count, 2, np.int32))
        tokens = engine.sample(Inputs(text=text), count, settings, batch=count)
        upper = tokens[:, SPAN.start : SPAN.stop] - SPAN.segment.ids.low >= CODES // 2
        found[name] = float(np.mean(upper == kinds[:, None]))
    # Three of four codes are of the half of the text; guidance of a perfect model makes that 27 of 28.
    assert abs(found["none"] - 3 / 4) < 0.05 and found["two"] > 0.87, found
    assert abs(found["one"] - found["two"]) < 0.3 * (found["two"] - found["none"]), found


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"guidance": 0.5}, "guidance.*one scale of 1 or more"),
        ({"guidance": (2.0, 1.0)}, "guidance.*one scale of 1 or more"),
        ({"guidance": 2.0, "guided_by": ("video",)}, "guided_by.*the text alone"),
        ({"guidance": 2.0, "guidance_cap": 1.0}, "guidance_cap.*two passes"),
    ],
)
def test_guidance_that_one_pass_cannot_do_is_refused(changes, said) -> None:
    with pytest.raises(UserError, match=said):
        SampleSpec(one_pass=True, **changes)


def test_models_without_the_input_and_negative_prompts_are_refused() -> None:
    sample, task = SampleSpec(one_pass=True, guidance=2.0), get_task(TASK)
    without = RUN.replace(model=RUN.model.replace(guidance_input=False))
    with pytest.raises(UserError, match="trained with MODEL.guidance_input = False"):
        make_plan(Resolved(without), task, sample, 0)
    with pytest.raises(UserError, match="drop the negative prompt"):
        check_negative(task, sample, "blur")
    with pytest.raises(UserError, match="set DATA.text_dropout"):
        RUN.replace(data=RUN.data.replace(text_dropout=0.0))
    assert not make_plan(RESOLVED, task, SampleSpec(one_pass=True), 0).scaled  # A scale of 1 is no guidance.
    assert compat.added(without, RUN) == ["embedding.guidance"]


def test_a_model_begins_as_one_without_the_input() -> None:
    params, batch = jax.jit(MODEL.init)(jax.random.key(2)), make_batch(0)
    beta = jnp.linspace(0.1, 1, BATCH)
    np.testing.assert_array_equal(logits(params, batch, beta), logits(params, batch, jnp.ones(BATCH)))
