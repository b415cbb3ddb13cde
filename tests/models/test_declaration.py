"""Declared weights: their initial values, one by one, and the same network stacked."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from poet.models import declaration
from poet.models.declaration import Normal, Weight

KEY = jax.random.key(5)
DECLARED = {
    "b": {"y": Weight((3, 2), ("embed", None), Normal(0.5)), "x": Weight((3,), (None,), declaration.ones)},
    "a": Weight((3, 2), ("embed", None), Normal(0.5)),
    "c": Weight((4,), (None,), Normal(2.0), "bfloat16"),
}


@pytest.mark.parametrize(
    "streams, places",
    [(declaration.by_name, {"a": 0, "y": 2, "c": 3}), (declaration.as_declared, {"y": 0, "a": 1, "c": 2})],
)
def test_every_weight_has_a_stream_of_its_own(streams, places):
    """Sampled together or not, and whatever else is declared in front of it, but for its place."""
    values = declaration.init(DECLARED, KEY, streams)
    for name, place in places.items():
        weight = (DECLARED["b"] | DECLARED)[name]
        want = weight.initializer(jax.random.fold_in(KEY, place), weight.shape, weight.dtype)
        np.testing.assert_array_equal((values["b"] | values)[name], want)
    np.testing.assert_array_equal(values["b"]["x"], np.ones(3))


def test_values_are_as_declared():
    values = jax.eval_shape(lambda: declaration.init(DECLARED, KEY))
    assert values == declaration.shapes(DECLARED) and values["c"].dtype == "bfloat16"
    assert declaration.count(DECLARED) == 3 * 2 + 3 + 3 * 2 + 4


def test_stacked_weights_have_a_leading_dim_of_their_axis():
    stacked = declaration.stacked(DECLARED, 7, "layers")
    assert declaration.shapes(stacked)["b"]["y"].shape == (7, 3, 2)
    assert declaration.axes(stacked)["b"]["x"] == ("layers", None)
