"""A deeper model begins as the one that it grew from, and every weight of it can learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.checkpoints import checkpoint, weights
from poet.models import deepening, superres, transformer
from poet.models.declaration import is_weight
from poet.runs.run import Run
from poet.spec import Experiment, ModelSpec, SuperResolutionSpec, UserError, VocabularySpec, compat
from poet.spec.vocabulary import Special, Vocabulary
from poet.tasks.layout import Format, build_layout

VOCABULARY = Vocabulary(VocabularySpec(visual_bits=5, audio_codes=16, text_pieces=8))
SPEC = ModelSpec(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=48, dtype="float32", remat="none")
LAYOUT = build_layout(
    task_token=Special.TASK_VIDEO,
    text=False,
    condition=("video",),
    output=("video",),
    fmt=Format(video=(2, 2, 3), text_length=4, audio_frames=3),
    vocabulary=VOCABULARY,
)


def model(layers: int) -> transformer.Model:
    return transformer.build(SPEC.replace(layers=layers), VOCABULARY, 12)


def abstract(layers: int) -> transformer.Params:
    """Shapes with the sharding of one device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(place, model(layers).abstract())


def tokens() -> np.ndarray:
    rng = np.random.default_rng(0)
    parts = [rng.integers(s.ids.low, s.ids.high, (2, s.length)) for s in LAYOUT.segments]
    return np.concatenate(parts, axis=1).astype(np.int32)


def test_a_deeper_model_computes_what_it_grew_from_and_its_new_blocks_learn() -> None:
    params = jax.jit(model(2).init)(jax.random.key(0))
    deeper = deepening.deepened(params, abstract(5))
    assert jax.tree.map(jnp.shape, deeper) == jax.tree.map(lambda leaf: leaf.shape, model(5).abstract())
    hidden = [model(n).hidden(p, tokens(), LAYOUT) for n, p in ((2, params), (5, deeper))]
    np.testing.assert_allclose(*hidden, atol=1e-6)
    # A new block writes nothing, and yet what it writes with has a gradient.
    loss = lambda p: jnp.square(model(5).hidden(p, tokens(), LAYOUT) - 1).sum()
    moves = jax.grad(loss)(deeper)["blocks"]
    for part, name in (("attention", "out"), ("mlp", "down")):
        size = np.abs(deeper["blocks"][part][name]).reshape(5, -1).max(1)
        assert (size > 0).tolist() == [True, False, False, True, False]
        assert (np.abs(moves[part][name]).reshape(5, -1).max(1) > 0).all()


def test_what_writes_into_the_residual_stream_is_named_so_in_every_network() -> None:
    small = superres.build(SPEC.replace(layers=3, visual_head="factorised"), SuperResolutionSpec(), VOCABULARY, 12)
    for network in (model(2), small):
        named = jax.tree_util.tree_leaves_with_path(network.declared["blocks"], is_leaf=is_weight)
        matrices = [(path[-1].key, weight) for path, weight in named if len(weight.shape) > 1]
        assert {name for name, weight in matrices if weight.axes[-1] == "embed"} == set(deepening.WRITES)
        assert {name for name, weight in matrices if weight.axes[0] == "embed"}.isdisjoint(deepening.WRITES)


def test_released_weights_are_read_by_a_deeper_model(tmp_path) -> None:
    params = jax.device_get(jax.jit(model(2).init)(jax.random.key(1)))
    base = Experiment()
    theirs = base.replace(model=SPEC)
    run = Run.open(weights.save(tmp_path / "lm", theirs, params, "float32", 3, {}))
    found = checkpoint.load_params(run, deepening.shallow(abstract(6), 2, 6))
    deeper = deepening.deepened(found, abstract(6))
    for source, block in zip(deepening.sources(2, 6), range(6)):
        np.testing.assert_array_equal(
            deeper["blocks"]["attention"]["query"][block], params["blocks"]["attention"]["query"][source]
        )


def test_a_training_may_start_deeper_and_nothing_else_may() -> None:
    base = Experiment()
    deeper = base.replace(model=base.model.replace(layers=base.model.layers + 1))
    assert not compat.differences(base, deeper, "initialise")
    compat.check(base, deeper, "initialise", what="lm", remedy="")
    with pytest.raises(UserError, match="MODEL.layers = 5"):
        compat.check(deeper, base, "initialise", what="lm", remedy="")
    for purpose in ("resume", "sample", "evaluate", "export"):
        assert compat.differences(base, deeper, purpose)
