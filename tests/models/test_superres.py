"""The super-resolution transformer: what each position may depend on, placement, and its sizes."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from poet.distributed import mesh as mesh_lib
from poet.models import superres
from poet.spec import MeshSpec, ModelSpec, SuperResolutionSpec, UserError, VocabularySpec
from poet.spec.vocabulary import Vocabulary
from poet.streams.base import HIDDEN
from poet.training.flops import traced_flops

GRID, LOW = (2, 8, 8), (2, 4, 4)
BITS, TEXT = 6, (3, 12)
SPEC = ModelSpec(
    layers=6,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=24,
    dtype="float32",
    remat="none",
    visual_head="factorised",
)
# One window for all layers, so that nothing ever leaves it.
CLOSED = SuperResolutionSpec(vertical=(1, 4, 4), horizontal=(1, 4, 4), temporal=(1, 4, 4))
OPEN = SuperResolutionSpec(vertical=(1, 0, 2), horizontal=(1, 2, 0), temporal=(0, 6, 6))


@functools.cache
def model(windows=CLOSED, **changes):
    return superres.build(SPEC.replace(**changes), windows, Vocabulary(VocabularySpec(visual_bits=BITS)), TEXT[1])


@functools.cache
def params(**changes):
    """NumPy parameters in which everything matters."""
    rng = np.random.default_rng(0)
    made = lambda path, leaf: (
        np.ones(leaf.shape) if "norm" in jax.tree_util.keystr(path) else 0.3 * rng.normal(size=leaf.shape)
    ).astype(np.float32)
    return jax.tree_util.tree_map_with_path(made, model(**changes).abstract())


def inputs(batch=2):
    rng = np.random.default_rng(1)
    codes, low = (rng.integers(0, 2**BITS, (batch, np.prod(g))).astype(np.int32) for g in (GRID, LOW))
    codes[:, ::3] = HIDDEN
    text = rng.normal(size=(batch, *TEXT)).astype(np.float32), np.arange(TEXT[0])[None] < np.full((batch, 1), 2)
    return codes, low, text


@functools.cache
def run(windows=CLOSED):
    return jax.jit(lambda codes, low, text: model(windows).states(params(), codes, low, GRID, text))


def changed(windows, **what):
    """Positions [2, 8, 8] whose states move when a code of row 0 is another one; the other row never does."""
    codes, low, text = inputs()
    before = np.asarray(run(windows)(codes, low, text))
    for name, at in what.items():
        array = {"codes": codes, "low": low}[name]
        array[0, at] = (array[0, at] + 1) % 2**BITS
    after = np.asarray(run(windows)(codes, low, text))
    np.testing.assert_array_equal(after[1], before[1])
    return (np.abs(after[0] - before[0]).max(-1) > 1e-6).reshape(GRID)


@pytest.mark.parametrize("what", [{"codes": 64 + 8 * 5 + 2}, {"low": 16 + 4 * 2 + 1}], ids=["high", "low"])
def test_a_code_reaches_the_windows_that_hold_its_place(what):
    """Row 5, column 2 of the second frame, and the low-resolution cell of row 2, column 1."""
    expected = np.zeros(GRID, bool)
    expected[1, 4:, :4] = True
    np.testing.assert_array_equal(changed(CLOSED, **what), expected)


@pytest.mark.parametrize("what", [{"codes": 1}, {"low": 0}], ids=["high", "low"])
def test_windows_of_three_axes_together_reach_everything(what):
    assert changed(OPEN, **what).all()


def test_text_reaches_everything_and_none_is_text_of_no_length():
    codes, low, (states, mask) = inputs()
    with_text, empty = run()(codes, low, (states, mask)), run()(codes, low, (states, np.zeros_like(mask)))
    assert (np.abs(with_text - empty).max(-1) > 1e-6).all()
    np.testing.assert_allclose(empty, run()(codes, low, None), atol=1e-6)
    states[:, 2] = 7  # Beyond the text's length.
    np.testing.assert_array_equal(run()(codes, low, (states, mask)), with_text)


def test_masked_cells_hold_the_condition_if_they_are_to():
    """An upscaled low-resolution embedding lies under the masked codes, and nowhere else."""
    embed = lambda cells: model(CLOSED.replace(masked_cells=cells))._embedded(params(), *inputs()[:2], GRID, None)
    (plain, low, *_), (shown, *_) = embed("mask"), embed("condition")
    moved = (shown - plain).reshape(2, *GRID, -1)
    low, masked = low.reshape(2, *LOW, -1), (inputs()[0] == HIDDEN).reshape(2, *GRID)
    for row, t, h, w in np.ndindex(2, *GRID):
        expected = low[row, t, h // 2, w // 2] * masked[row, t, h, w]
        np.testing.assert_allclose(moved[row, t, h, w], expected, atol=1e-5)


def test_a_mesh_changes_nothing():
    mesh = mesh_lib.build(MeshSpec(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    codes, low, text = inputs(4)
    expected = run(OPEN)(codes, low, text)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params(), mesh_lib.Rules().shardings(mesh, model().axes()))
        batch = jax.device_put((codes, low, text), mesh_lib.batch_sharding(mesh))
        found = jax.jit(lambda p, b: model(OPEN).states(p, *b[:2], GRID, b[2]))(placed, batch)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("head", ["factorised", "full"])
def test_flops_are_those_of_the_traced_network(head):
    net = model(OPEN.replace(temporal=(2, 4, 4)), visual_head=head, layers=3)  # Loops are traced once.

    def logits(p, codes, low, text):
        x = net.states(p, codes, low, GRID, text)
        return [x @ net.head(p, part).T for part in net.factors(net.vocabulary.visual).ranges]

    codes, low, text = inputs(1)
    traced = traced_flops(logits, net.abstract(), codes, low, text)
    assert net.forward_flops(GRID, TEXT[0]) == traced


def test_parameters_have_the_rows_of_codes_alone():
    tables = model().abstract()["embedding"]["tables"]
    assert {name: t.shape for name, t in tables.items()} == {"visual_leading": (8, 16), "visual_rest": (8, 16)}
    assert jax.tree.leaves(model().abstract()["blocks"])[0].shape[0] == 2


def test_layers_make_whole_blocks():
    with pytest.raises(UserError, match="multiple of 3"):
        superres.build(SPEC.replace(layers=4), CLOSED, Vocabulary(), 8)
