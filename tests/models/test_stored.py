"""Weights in fewer bits are near those that they stand for, channel by channel."""

from __future__ import annotations

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "sampling"))

import tiny  # noqa: E402

from poet.models.stored import Stored, restored, stored  # noqa: E402
from poet.spec import UserError  # noqa: E402


@pytest.mark.parametrize("kind, relative", [("bfloat16", 2**-8), ("int8", 0.5 / 127)])
def test_each_weight_is_within_half_a_step_of_its_channel(kind, relative):
    params = tiny.params()
    kept = stored(params, kind)
    assert kept["embedding"] is params["embedding"] and kept["head"] is params["head"]
    for (path, weight), found in zip(
        jax.tree_util.tree_leaves_with_path(params["blocks"]), jax.tree.leaves(restored(kept["blocks"], jnp.float32))
    ):
        summed = (1, 2, 3) if path[-1].key == "out" else (1,)
        most = np.abs(weight).max(axis=summed, keepdims=True) if weight.ndim > 2 else 0
        assert np.all(np.abs(found - weight) <= most * relative * 1.001)
    leaves = jax.tree.leaves(kept["blocks"], is_leaf=lambda v: isinstance(v, Stored))
    values = [leaf for leaf in leaves if isinstance(leaf, Stored)]
    assert len(values) == 7 and {str(v.values.dtype) for v in values} == {kind}


def test_another_kind_is_refused():
    with pytest.raises(UserError, match="int4"):
        stored(tiny.params(), "int4")


def test_a_model_takes_them_in_a_stack_and_layer_by_layer():
    """The states of stored weights are those of the same weights restored."""
    model, layout = tiny.model(), tiny.layout_of("unconditional")
    kept = stored(tiny.params(), "int8")
    plain = {**kept, "blocks": restored(kept["blocks"], jnp.float32)}
    tokens = np.stack([np.concatenate([np.full(s.length, s.ids.low) for s in layout.segments])] * 2).astype(np.int32)
    hidden = jax.jit(lambda params: model.hidden(params, tokens, layout))
    np.testing.assert_allclose(hidden(kept), hidden(plain), rtol=1e-5, atol=1e-5)
    first, ids = layout.prefix_length, layout.loss_spans[0].segment.ids
    step = jax.jit(
        lambda params: model.decode(
            model.by_layer(params),
            model.prefill(params, tokens[:, : first + 1], layout, None, layout.length)[0],
            tokens[:, first + 1],
            first + 1,
            layout,
            ids,
        )[1]
    )
    np.testing.assert_allclose(step(kept), step(plain), rtol=1e-5, atol=1e-5)
