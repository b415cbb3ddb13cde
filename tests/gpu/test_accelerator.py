"""On a machine with a GPU, `pytest -m gpu`: kernels equal the oracle, every script runs at a real size."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
# The tests' own settings, which are for CPUs.
CPU_ALONE = ("JAX_PLATFORMS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
pytestmark = pytest.mark.gpu


def python(*arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in CPU_ALONE}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=1800)


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Skips where jax finds no GPU; asked in a process of its own, as this one is held to CPUs."""
    found = python("-c", "import jax; print(jax.default_backend())").stdout.split()
    if "gpu" not in found[-1:]:
        pytest.skip(f"needs a GPU, jax found {found[-1:]}")


@pytest.mark.parametrize(
    "script, arguments",
    (
        ("kernels", ()),
        ("train_step", ("--size=300m", "--steps=5")),
        ("decode", ("--size=300m", "--steps=1")),
        ("tokenizer_fps", ("--steps=2",)),
    ),
)
def test_script_runs(script: str, arguments: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    done = python(str(HERE / f"{script}.py"), f"--out={tmp_path}", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / f"{script}.json").read_text())
    assert found["device"]["platform"] == "gpu"
    if script == "train_step":
        assert 0 < found["groups"][0]["mfu"] < 1 and found["groups"][0]["fraction_of_matmul"] < 1
