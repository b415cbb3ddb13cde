"""Masked modelling: what is hidden from the network, what its loss is of, and that it learns."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.distributed import mesh as mesh_lib
from poet.models import superres
from poet.spec import (
    ClipSpec,
    DataSpec,
    Experiment,
    MeshSpec,
    ModelSpec,
    OptimizerSpec,
    SuperResolutionSpec,
    TextSpec,
    TrainSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.streams.base import HIDDEN
from poet.tasks.resolved import Resolved
from poet.training import masked, networks

BITS = 4
RUN = Experiment(
    clip=ClipSpec(frames=5, height=64, width=32),
    vocabulary=VocabularySpec(visual_bits=BITS, audio_codes=16, text_pieces=16),
    video_tokenizer=VideoTokenizerSpec(bits=BITS),
    text=TextSpec(length=4, width=8),
    model=ModelSpec(
        layers=3,
        width=32,
        heads=4,
        kv_heads=4,
        head_dim=8,
        mlp_width=64,
        dtype="float32",
        remat="none",
        visual_head="factorised",
    ),
    super_resolution=SuperResolutionSpec(vertical=(1, 0, 2), horizontal=(1, 4, 0), temporal=(2, 4, 4)),
    data=DataSpec(batch=4, mixture_rates={"super_resolution": 1.0}),
    optimizer=OptimizerSpec(learning_rate=0.02, warmup_steps=0),
    train=TrainSpec(steps=50),
)
LAYOUT = Resolved(RUN).layouts["super_resolution"]
GRID, LOW = masked.grid_of(LAYOUT), (2, 4, 2)


def clips(batch=4, seed=0):
    """A batch whose high resolution repeats the low one: each code four times."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 2**BITS, (batch, *LOW)).astype(np.int32)
    high = low.repeat(2, axis=2).repeat(2, axis=3)
    streams = {"low_resolution_in": low, "video": high, "source": np.zeros((batch, 1), np.int32)}
    return {
        "tokens": LAYOUT.assemble({name: codes.reshape(batch, -1) for name, codes in streams.items()}),
        "known": np.zeros((batch, 1), np.int32),
        "text_states": rng.normal(size=(batch, 4, 8)).astype(np.float16),
        "text_length": np.full(batch, 2, np.int32),
    }


@functools.cache
def hide(**changes):
    spec = RUN.super_resolution.replace(**changes)
    return jax.jit(lambda key, batch: masked.corrupted(key, batch, LAYOUT, spec, 2**BITS))


def test_grids_are_those_of_the_two_resolutions():
    assert GRID == (2, 8, 4)
    assert LAYOUT.streams["low_resolution_in"] == np.prod(LOW)
    places = LAYOUT.positions()
    spans = {
        s.segment.stream: places[s.start : s.stop].reshape(*s.segment.grid, 3)
        for s in LAYOUT.spans[:-1]
        if s.segment.stream in ("low_resolution_in", "video")
    }
    fine = spans["video"].reshape(2, 4, 2, 2, 2, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(spans["low_resolution_in"], fine)


def test_what_is_hidden_follows_its_distributions():
    """A cosine of a uniform number is masked, 2 / pi in the mean; noise is up to half, in the mean a quarter."""
    batch = clips(512)
    made = hide()(jax.random.key(1), batch)
    codes, low = (np.asarray(x) for x in masked.codes_of(batch["tokens"], LAYOUT))
    np.testing.assert_array_equal(made["codes"], codes)
    read, shown = np.asarray(made["read"]), np.asarray(made["low"])
    assert ((read == HIDDEN) | (read == codes)).all() and (read == HIDDEN).any(axis=1).all()
    ratios = (read == HIDDEN).mean(axis=1)
    assert abs(ratios.mean() - 2 / np.pi) < 0.04
    assert abs(np.quantile(ratios, 0.25) - np.cos(np.pi / 2 * 0.75)) < 0.06
    dropped = (shown == HIDDEN).all(axis=1)
    assert ((shown == HIDDEN).any(axis=1) == dropped).all() and abs(dropped.mean() - 0.1) < 0.05
    noise = (shown != low)[~dropped].mean(axis=1) * 16 / 15
    assert abs(noise.mean() - 0.25) < 0.03 and noise.max() < 1
    exact = hide(noise=0.0, dropout=0.0)(jax.random.key(1), batch)
    np.testing.assert_array_equal(exact["low"], low)


def test_the_masked_fraction_is_the_one_that_is_asked_for():
    ratios = np.array([0.0, 0.1, 0.5, 1.0], np.float32)
    read = masked.masked_by(jax.random.key(0), clips(), LAYOUT, ratios)["read"]
    np.testing.assert_array_equal(np.sum(np.asarray(read) == HIDDEN, axis=1), [1, 7, 32, 64])


@pytest.mark.parametrize("smoothing", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_the_loss_is_of_masked_codes_and_smooths_labels(smoothing):
    """By the definition, over the joint distribution of a code's two factors."""
    model, batch = superres.build_model(Resolved(RUN)), hide()(jax.random.key(2), clips())
    params = jax.jit(model.init)(jax.random.key(0))

    def objective(params):
        return masked.scored(model, params, batch, LAYOUT, 0.0, smoothing)[0].objective

    def oracle(params):
        text = batch["text_states"], jnp.arange(4)[None] < batch["text_length"][:, None]
        x = model.states(params, batch["read"], batch["low"], GRID, text)
        labels, total = (batch["codes"] // 4, batch["codes"] % 4), 0.0
        for part, label in zip(model.factors(model.vocabulary.visual).ranges, labels):
            logp = jax.nn.log_softmax(model.logits(params, x, part))
            target = (1 - smoothing) * jax.nn.one_hot(label, 4) + smoothing / 4
            total -= jnp.sum(jnp.sum(target * logp, -1) * (batch["read"] == HIDDEN))
            x = model.given(params, x, label)
        return total

    ours, theirs = (jax.jit(jax.value_and_grad(f))(params) for f in (objective, oracle))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3), ours, theirs)


@pytest.fixture(scope="module")
def trained():
    """Fifty steps on clips of which the low resolution says everything, on two devices."""
    mesh = mesh_lib.build(MeshSpec(fsdp=2), jax.devices()[:2])
    made = masked.super_resolution(Resolved(RUN), mesh)
    (group,) = made.groups.values()
    with jax.set_mesh(mesh):
        state = jax.jit(made.init, out_shardings=mesh_lib.Rules().shardings(mesh, made.axes))(jax.random.key(0))
        step, found = jax.jit(group.step), []
        for number in range(RUN.train.steps):
            batch = jax.device_put(clips(seed=number), mesh_lib.batch_sharding(mesh))
            state, metrics = step(state, batch, jax.random.key(number), jnp.float32(made.rate(number)))
            found.append(float(metrics["accuracy/video"].value()))
    return found, group


def test_it_learns_what_the_low_resolution_says(trained):
    accuracy, group = trained
    assert np.mean(accuracy[:5]) < 0.3 and np.mean(accuracy[-10:]) > 0.6
    assert group.clips == 4 and group.flops > 0


@pytest.mark.slow
def test_microbatches_change_nothing():
    """Sums over the masked codes of all parts, divided once."""
    mesh = mesh_lib.build(MeshSpec(), jax.devices()[:1])
    runs = (RUN.replace(train=RUN.train.replace(microbatches=n)) for n in (1, 2))
    whole, parts = (masked.super_resolution(Resolved(run), mesh) for run in runs)
    state, found = jax.jit(whole.init)(jax.random.key(0)), []
    for made in (whole, parts):
        (group,) = made.groups.values()
        metrics = jax.jit(group.step)(state, clips(), jax.random.key(3), jnp.float32(0.01))[1]
        found.append([float(metrics["loss"].value()), float(metrics["grad_norm"]), float(metrics["masked"])])
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"clip": ClipSpec(frames=5, height=56, width=32)}, "no coarser one.*CLIP.height"),
        ({"super_resolution": RUN.super_resolution.replace(vertical=(1, 0, 3))}, "multiples of 2"),
        ({"model": RUN.model.replace(layers=4)}, "MODEL.layers = 4.*multiple of 3"),
        ({"data": RUN.data.replace(mixture_rates={"super_resolution": 1.0, "text_to_video": 1.0})}, "a run of its own"),
        ({"mesh": MeshSpec(sequence=2)}, "MESH.sequence = 1"),
    ],
    ids=["odd", "window", "layers", "mixture", "mesh"],
)
def test_what_cannot_be_trained_is_refused(changes, words):
    run = RUN.replace(**changes)
    with pytest.raises(UserError, match=words):
        networks.of(Resolved(run)).trainable(Resolved(run), mesh_lib.abstract(run.mesh, Resolved(run).devices))
