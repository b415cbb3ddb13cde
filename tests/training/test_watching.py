"""What a running training may be asked for: profiles, norms, and services that track it."""

from __future__ import annotations

import functools
import json
import signal
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from poet.runs.lines import read
from poet.runs.run import Run
from poet.spec import OptimizerSpec, TrainSpec, UserError, to_dict
from poet.training import optimizer, trackers
from poet.training.reporting import Reporter
from poet.training.trainable import Report

pytestmark = pytest.mark.usefixtures("no_tensorboard")


def test_a_signal_profiles_a_few_steps_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hooks = [linear.signal_at(2, signal.SIGUSR1)]
    with caplog.at_level("INFO"):
        linear.run(tmp_path / "one", 9, every=9, hooks=hooks)
    (trace,) = (tmp_path / "one/profiles").rglob("*.xplane.pb")
    assert trace.relative_to(tmp_path / "one/profiles").parts[0] == "00000002" and trace.stat().st_size > 1000
    assert "the profile is written" in caplog.text
    linear.run(tmp_path / "two", 9, every=9)
    one, two = (linear.leaves(linear.restored(tmp_path / name).state) for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", ["adamw", pytest.param("adafactor", marks=pytest.mark.slow)])
def test_norms_are_those_of_each_table(name: str) -> None:
    rng = np.random.default_rng(0)
    axes = {"a": {"w": ("embed", "mlp")}, "b": ("mlp",)}
    params = {"a": {"w": rng.normal(size=(6, 4)).astype(np.float32)}, "b": np.zeros(4, np.float32)}
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    spec = OptimizerSpec(name=name, log_norms=True)
    tx = optimizer.build(spec, axes)
    state = {"params": jax.tree.map(jnp.asarray, params), "opt_state": tx.init(params)}
    new, metrics = jax.jit(lambda s, g: optimizer.apply(tx, spec, g, s, 0.1))(state, grads)
    tables = {"a.w": (params["a"]["w"], grads["a"]["w"], new["params"]["a"]["w"])}
    tables["b"] = (params["b"], grads["b"], new["params"]["b"])
    for table, (old, grad, moved) in tables.items():
        assert metrics[f"norms/{table}/gradient"] == pytest.approx(np.linalg.norm(grad), rel=1e-5)
        if old.any():
            change = np.linalg.norm(np.float64(moved) - old) / np.linalg.norm(old)
            assert metrics[f"norms/{table}/update"] == pytest.approx(change, rel=1e-3)
    assert metrics["grad_norm"] == pytest.approx(np.sqrt(sum(np.square(g).sum() for _, g, _ in tables.values())))
    plain = optimizer.apply(tx, spec.replace(log_norms=False), grads, state, 0.1)[1]
    assert not [key for key in plain if key.startswith("norms/")]


class Service:
    """Stands in for the modules `wandb` and `mlflow`: keeps what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def wandb(self) -> types.ModuleType:
        module = types.ModuleType("wandb")
        run = types.SimpleNamespace(
            id="w1",
            log=lambda values: self.told.append(("log", values)),
            define_metric=lambda *a, **k: self.told.append(("define", a, k)),
            finish=lambda: self.told.append(("finish",)),
        )
        module.init = lambda **options: self.told.append(("init", options)) or run
        module.Image = lambda array: ("image", array.shape)
        return module

    def mlflow(self) -> types.ModuleType:
        module = types.ModuleType("mlflow")
        info = types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))
        module.start_run = lambda run_id: self.told.append(("start", run_id)) or info
        for name in ("log_metrics", "log_dict", "log_text", "log_image", "end_run"):
            setattr(module, name, lambda *a, _name=name, **k: self.told.append((_name, *a, k)))
        return module


@pytest.fixture(params=["wandb", "mlflow"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Service]:
    service = Service()
    module = getattr(service, request.param)()
    module.__spec__ = ModuleSpec(request.param, None)
    monkeypatch.setitem(sys.modules, request.param, module)
    return request.param, service


def tracked(workdir: Path, name: str) -> None:
    group = linear.trainable().groups
    settings = linear.experiment(4).replace(train=TrainSpec(steps=4, trackers=(name,)))
    opened = functools.partial(trackers.start, (name,), workdir, to_dict(settings))
    reporter = Reporter(
        Run(workdir), steps=4, groups=group, log_every=2, device_kind="cpu", devices=1, open_trackers=opened
    )
    for step in (1, 2):
        reporter.step(step, "short", {"loss": (float(step), 1.0)})
    image = np.zeros((2, 3, 3), np.uint8)
    reporter.report(2, "samples", Report(images={"a+b": image}, texts={"t": "words"}))
    reporter.close()


def test_a_tracker_gets_what_the_log_has(tmp_path: Path, service: tuple[str, Service]) -> None:
    name, told = service[0], service[1].told
    tracked(tmp_path, name)
    (line,) = (line for line in read(tmp_path / "metrics.jsonl") if line["kind"] == "train")
    if name == "wandb":
        values = [entry[1] for entry in told if entry[0] == "log"]
        scalars = next(v for v in values if "loss" in v)
        assert scalars["step"] == 2 and {"samples/a+b": [("image", (2, 3, 3))], "step": 2} in values
        assert {"step": 2, "samples/t": "words"} in values and told[-1] == ("finish",)
        assert told[0][1]["config"]["train"]["steps"] == 4 and told[0][1]["id"] is None
    else:
        scalars, options = next(e[1:] for e in told if e[0] == "log_metrics" and "loss" in e[1])
        assert options == {"step": 2} and told[-1][0] == "end_run"
        images = [entry[2] for entry in told if entry[0] == "log_image"]
        assert images == ["images/00000002_samples_a_b_0.png"]
        assert [entry[1:3] for entry in told if entry[0] == "log_text"] == [("words", "texts/00000002_samples_t.txt")]
    assert scalars["loss"] == line["loss"] == 1.5


def test_a_resumed_run_goes_on_where_it_was_tracked(tmp_path: Path, service: tuple[str, Service]) -> None:
    name, told = service[0], service[1].told
    tracked(tmp_path, name)
    told.clear()
    tracked(tmp_path, name)
    assert json.loads((tmp_path / trackers.FILE).read_text()) == {name: name[0] + "1"}
    assert told[0][1]["id"] == "w1" if name == "wandb" else told[0] == ("start", "m1")
    assert not [entry for entry in told if entry[0] == "log_dict"]


def test_a_service_that_fails_does_not_end_a_training(
    tmp_path: Path, service: tuple[str, Service], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(sys.modules[service[0]], "init" if service[0] == "wandb" else "log_metrics", fail, raising=True)
    tracked(tmp_path, service[0])
    assert "no answer" in caplog.text
    assert [line["loss"] for line in read(tmp_path / "metrics.jsonl") if line["kind"] == "train"] == [1.5]


def test_names_have_only_what_mlflow_allows() -> None:
    assert trackers._plain("text+video-to-video/loss/video") == "text_video-to-video/loss/video"


@pytest.mark.parametrize("name, words", [("wandb", "not installed"), ("comet", "unknown tracker")])
def test_a_tracker_that_is_not_there_is_refused(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=words):
        trackers.check((name,))
