"""Sampling of masked codes: what is kept, guidance, and what a sample depends on."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from poet.distributed import mesh as mesh_lib
from poet.models import superres
from poet.models.layers import COMPUTE_RULES
from poet.sampling import masked, passes
from poet.sampling.passes import BOTH, BRANCHES, LOW, NOTHING
from poet.spec import MeshSpec, ModelSpec, SuperResolutionSpec, VocabularySpec
from poet.spec.vocabulary import Vocabulary
from poet.streams.base import HIDDEN

GRID, HIGH_CODES, LOW_CODES, BITS = (1, 4, 4), 16, 4, 4
SPEC = SuperResolutionSpec(vertical=(1, 0, 2), horizontal=(1, 2, 0), temporal=(1, 4, 4), steps=5)


@functools.cache
def model(head="factorised"):
    spec = ModelSpec(
        layers=3,
        width=16,
        heads=2,
        kv_heads=2,
        head_dim=8,
        mlp_width=16,
        dtype="float32",
        remat="none",
        visual_head=head,
    )
    return superres.build(spec, SPEC, Vocabulary(VocabularySpec(visual_bits=BITS)), 6)


@functools.cache
def params(head="factorised"):
    rng = np.random.default_rng(0)
    made = lambda path, leaf: (
        np.ones(leaf.shape) if "norm" in jax.tree_util.keystr(path) else 0.5 * rng.normal(size=leaf.shape)
    ).astype(np.float32)
    return jax.tree_util.tree_map_with_path(made, model(head).abstract())


def sample(rows, *, head="factorised", text=False, seed=3, part=0, codes=None, place=None, **changes):
    """On the mesh that is set, if parameters have a `place` on it."""
    rows = [*rows]
    spec, rng = SPEC.replace(**changes), np.random.default_rng(1)
    low = rng.integers(0, 2**BITS, (8, LOW_CODES)).astype(np.int32)[rows]
    states = rng.normal(size=(8, 3, 6)).astype(np.float32)[rows], np.ones((len(rows), 3), bool)
    codes = np.full((len(rows), HIGH_CODES), HIDDEN, np.int32) if codes is None else codes
    plan, traced = passes.passes(spec, GRID, text), passes.sampling_params(spec, text, seed, part)
    weights, inputs = params(head), (codes, low, states if text else None, np.int32(rows))
    if place is not None:
        weights = jax.device_put(weights, place)
        inputs = jax.device_put(inputs, mesh_lib.batch_sharding(jax.sharding.get_mesh()))
    return np.asarray(masked.sample(model(head), plan, weights, *inputs, traced))


@pytest.mark.parametrize("steps", [1, 3, 8, 24, 100])
@pytest.mark.parametrize("unknown", [1, 10, 8960])
def test_the_schedule_is_a_cosine_that_ends_and_always_moves(steps, unknown):
    left = [unknown]
    for number in range(steps):
        left.append(int(masked.still_masked(unknown, left[-1], (number + 1) / steps)))
    assert left[-1] == 0 and all(a > b or b == 0 for a, b in zip(left, left[1:]))
    if unknown > 100 * steps:
        expected = unknown * np.cos(np.pi / 2 * np.arange(steps + 1) / steps)
        np.testing.assert_allclose(left, expected, atol=1)


def test_a_mesh_gives_the_same_codes():
    """Tables and their values over two devices, clips over four; with every branch of guidance."""
    settings = dict(text=True, guidance=1.5, text_guidance=4.0)
    mesh = mesh_lib.build(MeshSpec(tensor=2), jax.devices())
    placed = COMPUTE_RULES.shardings(mesh, model().axes())
    with jax.set_mesh(mesh):
        found = sample(range(8), place=placed, **settings)
    np.testing.assert_array_equal(found, sample(range(8), **settings))


def test_guidance_is_the_dual_one_and_nothing_where_both_scales_are_one():
    """L(none) + g (L(low) - L(none)) + t (L(both) - L(low)), spec §1.14."""
    none, low, both = np.random.default_rng(0).normal(size=(3, 5))
    for g, t in ((1.5, 4.0), (0.0, 2.0), (2.0, 0.0)):
        weights = passes.weights(SPEC.replace(guidance=g, text_guidance=t), True)
        found = sum(w * {NOTHING: none, LOW: low, BOTH: both}[branch] for branch, w in zip(BRANCHES, weights))
        np.testing.assert_allclose(found, none + g * (low - none) + t * (both - low))
    plain = SPEC.replace(guidance=1.0, text_guidance=1.0)
    assert passes.passes(plain, GRID, True).branches == (BOTH,)
    assert passes.passes(plain, GRID, False).branches == (LOW,)


@pytest.mark.parametrize("head", ["factorised", "full"])
def test_every_code_is_sampled_and_known_ones_stay(head):
    known = np.full((2, HIGH_CODES), HIDDEN, np.int32)
    known[0, [2, 7]] = 5, 11
    found = sample([0, 1], head=head, codes=known)
    assert found.min() >= 0 and found.max() < 2**BITS
    np.testing.assert_array_equal(found[0, [2, 7]], [5, 11])
    assert (sample([0, 1], head=head) != found).any()


def test_a_sample_depends_on_its_seed_row_and_part_alone():
    """Bit for bit, whatever else is in its batch."""
    batch = sample([0, 1, 2], text=True)
    np.testing.assert_array_equal(sample([2, 0, 1], text=True), batch[[2, 0, 1]])
    np.testing.assert_array_equal(sample([1], text=True), batch[1:2])
    for other in ({"seed": 4}, {"part": 1}):
        assert (sample([0, 1, 2], text=True, **other) != batch).any(axis=1).all()


def test_one_greedy_pass_takes_the_most_probable_factors():
    """The first factor's best, then the second's given that."""
    net, found = model(), sample([0], temperature=0.0, choice_temperature=0.0, steps=1)
    low = np.random.default_rng(1).integers(0, 2**BITS, (8, LOW_CODES)).astype(np.int32)[:1]
    first, second = net.factors(net.vocabulary.visual).ranges

    @jax.jit
    def greedy(weights):
        x = net.states(weights, np.full((1, HIGH_CODES), HIDDEN, np.int32), low, GRID)
        leading = net.logits(weights, x, first).argmax(-1)
        return leading * 4 + net.logits(weights, net.given(weights, x, leading), second).argmax(-1)

    np.testing.assert_array_equal(found, greedy(params()))


def test_branches_that_weigh_nothing_change_no_sample():
    """So a program that has more of them serves the request too."""
    known, low = np.full((1, HIGH_CODES), HIDDEN, np.int32), np.arange(LOW_CODES, dtype=np.int32)[None]
    found, spec = [], SPEC.replace(guidance=1.0)
    for plan in (passes.Passes(GRID, (LOW,)), passes.Passes(GRID, (NOTHING, LOW))):
        network = masked.Network(model(), params())
        found.append(network(plan, known, low, None, np.int32([0]), passes.sampling_params(spec, False, 1)))
    np.testing.assert_array_equal(*found)
