"""The scripts of tests/gpu run here at toy sizes, with nothing but what jax, flax, optax and orbax bring."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

from poet.spec import MeshSpec, config

SCRIPTS = pathlib.Path(__file__).parent / "gpu"
ENOUGH = ("jax", "flax", "optax", "orbax-checkpoint")
# Refuses every installed package that is not named, then runs a script's main.
RUN = """
import json, sys
refused = set(json.loads(sys.argv[1]))
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[2])
module = __import__(sys.argv[3])
module.main(sys.argv[4:])
"""


def brought(names: tuple[str, ...]) -> set[str]:
    """Distributions that installing these installs, by normalised name."""
    found, left = set(), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # Of another platform.
        found.add(name)
        left += [re.match(r"[\w.\-]+", r)[0] for r in requires if "extra ==" not in r]
    return found


def refused() -> list[str]:
    """Importable names that none of those distributions provides, this project aside."""
    enough = brought(ENOUGH) | {"videopoet-jax"}
    return sorted(
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & enough
    )


def run(script: str, out: pathlib.Path, *arguments: str) -> dict:
    names = refused()
    assert {"tensorflow", "seqio", "gin", "clu", "av"} <= set(names), "nothing would be proven"
    toy = ["--size=tiny", "--batch=2", "--steps=1", f"--out={out}", "--name=found"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(names), str(SCRIPTS), script, *toy, *arguments],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "found.json").read_text())


def module(name: str):
    """A script of the folder as a module of a name of its own."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", SCRIPTS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_runs_made_without_gin_are_those_of_the_gin_files():
    common = module("common")
    for size in common.SHIPPED:
        wanted = config.load([f"gin/experiments/pretrain_{size}.gin"])
        data = wanted.data.replace(batch=4, batch_multiple=1)
        assert common.pretraining(size, 4) == wanted.replace(data=data, mesh=MeshSpec())
    assert common.pretraining("8b_slice", 4, remat="dots").model == wanted.model.replace(
        layers=common.SLICE_LAYERS, remat="dots"
    )


def test_a_bar_is_met_or_missed(tmp_path):
    run_all = module("run_all")
    row = {"group": "text-to-video", "fraction_of_matmul": 0.6}
    for name, mfu in (("train_step.1b", 0.46), ("train_step.8b_slice", 0.49)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"groups": [{**row, "mfu": mfu}]}))
    text = run_all.summary(tmp_path, run_all.RUNS, bars=True)
    assert "MFU of 1b: 0.460, bar 0.45: met" in text
    assert "MFU of an 8b slice: 0.490, bar 0.5: MISSED" in text
    assert "decoding" not in text, "what was not run has no verdict"


def test_train_step_is_timed_and_its_operations_are_sorted(tmp_path):
    found = run("train_step", tmp_path, f"--profile={tmp_path}/traces")
    (group,) = found["groups"]
    assert group["losses"][1] < group["losses"][0], "the steps train"
    expected = group["gflop"] / group["median_s"] / 1000
    assert group["tflops"] == pytest.approx(expected)
    assert group["fraction_of_matmul"] == pytest.approx(expected * 1e12 / found["matmul_flops"])
    kinds = group["seconds_by_kind"]
    assert {"matmul", "attention", "cross-entropy", "optimizer", "other"} <= set(kinds), kinds
    assert min(kinds.values()) > 0


@pytest.mark.slow
def test_decoding_is_timed(tmp_path):
    found = run("decode", tmp_path, "--guidance=2")
    assert found["rows"] == 2 * found["samples"]
    per_token = found["bytes_per_s"] * found["samples"] / found["tokens_per_s"]
    assert per_token == pytest.approx(found["bytes_per_position"])


@pytest.mark.slow
def test_kernels_equal_the_oracle(tmp_path):
    found = run("kernels", tmp_path, "--groups", "text-to-video")
    errors = [row[key] for row in found["comparisons"] for key in ("values", "dq", "dk", "dv")]
    assert found["passes"] and len(errors) == 8
    assert min(errors) > 0, "bfloat16 is never equal to the oracle"


@pytest.mark.slow
def test_tokenizers_are_timed(tmp_path):
    found = run("tokenizer_fps", tmp_path)
    for part, unit in (("video", "frames_per_s"), ("audio", "times_real_time")):
        assert found[part]["encode"][unit] > 0 and found[part]["decode"][unit] > 0
    assert (found["video"]["clip"], found["video"]["codes"]) == ([5, 32, 32, 3], [2, 4, 4])
