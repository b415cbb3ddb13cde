"""The dial of sizes: counts are met, dims divide, shipped sizes are the shipped files, others win or lose
by the rules of bindings."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import pytest

from poet import cli
from poet.models import transformer
from poet.planning import sizes
from poet.spec import UserError, config
from poet.spec.vocabulary import Vocabulary


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(exponent=st.floats(5.5, 11.5))
def test_any_size_has_its_parameters_and_divides(exponent: float) -> None:
    spec = sizes.model(10**exponent)
    count = spec.layers * sizes.block(spec)
    assert abs(count / 10**exponent - 1) < (0.07 if exponent > 7 else 0.35)
    assert spec.heads * spec.head_dim == spec.width
    assert spec.heads % spec.kv_heads == 0
    if exponent >= 8:
        assert all(dim % 8 == 0 for dim in (spec.kv_heads, spec.mlp_width, spec.width // 64))


def test_models_grow_wide_and_stay_deep() -> None:
    shapes = [sizes.model(10 ** (k / 4)) for k in range(24, 47)]
    widths = [shape.width for shape in shapes]
    assert widths == sorted(widths) and widths[-1] > 20 * widths[0]
    assert all(8 <= shape.layers <= 80 for shape in shapes)


def test_weights_of_a_block_are_counted_as_the_model_has_them() -> None:
    spec = sizes.model(2e6)
    blocks = transformer.build(spec, Vocabulary(), 64).abstract()["blocks"]
    weights = sum(leaf.size for leaf in jax.tree.leaves(blocks) if leaf.ndim > 2)
    assert weights == spec.layers * sizes.block(spec)


@pytest.mark.parametrize("size", ("300m", "1b", "8b"))
def test_a_shipped_size_is_its_experiment(size: str) -> None:
    by_dial = config.load(*config.sized([], size, []))
    by_file = config.load([f"gin/experiments/pretrain_{size}.gin"])
    assert by_dial == by_file


def test_what_is_given_wins_over_the_dial_and_the_dial_over_files() -> None:
    files, bindings = config.sized(["gin/experiments/quickstart.gin"], "60m", ["MODEL.layers=3"])
    experiment = config.load(files, bindings)
    assert experiment.model == sizes.model(60e6).replace(layers=3, dtype="float32", visual_head="factorised")
    assert experiment.data == config.load(["gin/experiments/quickstart.gin"]).data


@pytest.mark.parametrize("size", ("huge", "", "-3b", "9x9", "10k", "5000b", "1e9"))
def test_what_is_no_size_is_refused(size: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="expected the parameters"):
        sizes.parse(size)
    if size:
        assert cli.main(["describe", f"--size={size}"]) == cli.EXIT_USER
        assert "such as 60m" in capsys.readouterr().err
