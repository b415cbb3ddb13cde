"""Released weights: what is written comes back, and what is not whole is refused."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poet.checkpoints import checkpoint, weights
from poet.runs.run import Run
from poet.spec import Experiment, ModelSpec, UserError

PARAMS = {"b": {"w": np.arange(12, dtype=np.float32).reshape(3, 4) / 7}, "a": np.float32([1.5, -2.25])}
SHAPES = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), PARAMS)
EXPERIMENT = Experiment(model=ModelSpec(layers=3))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0.0), ("bfloat16", 2**-8)])
def test_round_trip_through_the_checkpoint_reader(tmp_path: Path, dtype: str, tolerance: float) -> None:
    folder = weights.save(tmp_path / "w", EXPERIMENT, PARAMS, dtype, 7)
    (folder / "README.md").write_text("a card may lie beside the weights")
    with pytest.raises(UserError, match="--overwrite"):
        weights.save(folder, EXPERIMENT, PARAMS, dtype, 6)
    weights.save(folder, EXPERIMENT, PARAMS, dtype, 7, overwrite=True)
    assert (folder / "README.md").is_file(), "releasing again keeps the card"
    assert Run.open(folder).checkpoint.spec == EXPERIMENT
    assert Run.open(folder).checkpoint.step == 7
    loaded = checkpoint.load_params(Run.open(folder), SHAPES)
    for name, array in weights.flatten(PARAMS).items():
        np.testing.assert_allclose(weights.flatten(loaded)[name], array, rtol=tolerance, atol=0)
        assert weights.flatten(loaded)[name].dtype == jnp.float32


@pytest.mark.parametrize("file", ["model.safetensors", "spec.json", "MANIFEST"])
def test_a_flipped_bit_is_named(tmp_path: Path, file: str) -> None:
    folder = weights.save(tmp_path / "w", EXPERIMENT, PARAMS, "float32", 7)
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(UserError, match=file):
        checkpoint.load_params(Run.open(folder), SHAPES)


def test_another_model_is_refused_by_the_first_differing_array(tmp_path: Path) -> None:
    folder = weights.save(tmp_path / "w", EXPERIMENT, PARAMS, "float32", 7)
    other = {**SHAPES, "a": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(UserError, match=r"a is \(2,\) there and \(3,\)"):
        checkpoint.load_params(Run.open(folder), other)


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        weights.save(tmp_path / "w", EXPERIMENT, PARAMS, "float32", 7)
    assert (tmp_path / "w" / "thesis.txt").read_text() == "mine"
