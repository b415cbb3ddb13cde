from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from poet.planning.topologies import peak_flops
from poet.runs.lines import read
from poet.runs.run import Run
from poet.training import reporting
from poet.training.reporting import Reporter
from poet.training.trainable import Group, Report


class Clock:
    """Time that passes only when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def group(name: str, clips: int) -> Group:
    return Group(name=name, step=lambda *a: a, batch={}, clips=clips, tokens=10 * clips, flops=1e12 * clips)


def make(workdir: Path, now: Clock, names: str = "ab", **options: object) -> Reporter:
    defaults = {"steps": 8, "log_every": 4, "device_kind": "cpu", "devices": 2}
    groups = {name: group(name, i + 1) for i, name in enumerate(names)}
    return Reporter(Run(workdir), groups=groups, now=now, **defaults | options)


def lines(workdir: Path) -> list[dict]:
    return list(read(workdir / "metrics.jsonl"))


@pytest.mark.usefixtures("no_tensorboard")
def test_a_line_holds_means_and_rates_of_its_window(tmp_path: Path) -> None:
    clock = Clock()
    reporter = make(tmp_path, clock)
    for step, name in enumerate("aaab", start=1):
        clock.now += 2.0
        reporter.step(step, name, {"loss": (float(step), 1), "norm": (1.0, 1)}, waited_s=0.5)
    clock.now += 100
    reporter.pause(100, "save")
    for step, name in enumerate("bbbb", start=5):
        clock.now += 1.0
        reporter.step(step, name, {"loss": (0.0, 1)})
    first, second = lines(tmp_path)
    assert (first["step"], first["kind"]) == (4, "train")
    assert (first["a/loss"], first["b/loss"], first["loss"]) == (2.0, 4.0, 2.5)
    assert first["steps_per_s"] == 4 / 8
    assert first["clips_per_s"] == (3 * 1 + 2) / 8
    assert first["tokens_per_s"] == 50 / 8
    assert first["flops_per_s"] == 5e12 / 8
    assert first["data_wait"] == 2 / 8 and first["goodput"] == 6 / 8
    assert first["eta_s"] == 8.0
    assert second["steps_per_s"] == 1.0 and "a/loss" not in second and second["eta_s"] == 0
    assert second["seconds"] == 112 and second["goodput"] == (6 + 4) / 112


@pytest.mark.usefixtures("no_tensorboard")
def test_goodput_counts_what_every_restart_lost(tmp_path: Path) -> None:
    """Twice 10 s of preparation; 4 s of steps before the restart and 4 after."""
    clock = Clock()
    state: dict = {}
    for start in (0, 4):
        reporter = make(tmp_path, clock, "a", start=start, clock=state, setup_s=10.0)
        for step in range(start + 1, start + 5):
            clock.now += 1.0
            reporter.step(step, "a", {"loss": (0.0, 1)})
        state = reporter.clock()
    assert [line["goodput"] for line in lines(tmp_path)] == [4 / 14, 8 / 28]


@pytest.mark.usefixtures("no_tensorboard")
def test_utilisation_is_given_only_where_the_peak_is_known(tmp_path: Path) -> None:
    for kind, mfu in (("cpu", None), ("NVIDIA H100 80GB HBM3", 1e12 / (2 * 989e12))):
        clock, workdir = Clock(), tmp_path / kind
        workdir.mkdir()
        reporter = make(workdir, clock, "a", device_kind=kind, log_every=1)
        clock.now += 1
        reporter.step(1, "a", {"loss": (1.0, 1)})
        assert lines(workdir)[0].get("mfu") == (mfu and pytest.approx(mfu))


@pytest.mark.parametrize(
    "kind, peak", [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v4", 275e12), ("TPU v6 lite", 918e12)]
)
def test_peaks_do_not_confuse_generations(kind: str, peak: float) -> None:
    assert peak_flops(kind) == peak


@pytest.mark.usefixtures("no_tensorboard")
def test_resuming_inside_a_window_gives_the_same_line(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    losses = [0.1, 0.7, 1e-9, 3.3]
    whole = make(one, Clock())
    for step, loss in enumerate(losses, start=1):
        whole.step(step, "a", {"loss": (loss, 1)})
    torn = make(two, Clock())
    for step in (1, 2):
        torn.step(step, "a", {"loss": (losses[step - 1], 1)})
    saved = json.loads(json.dumps(torn.clock()))
    torn.step(3, "a", {"loss": (99.0, 1)})
    torn.report(3, "eval", Report(scalars={"x": 1.0}))
    torn.close()
    resumed = make(two, Clock(), start=2, clock=saved)
    for step in (3, 4):
        resumed.step(step, "a", {"loss": (losses[step - 1], 1)})
    (a,), (b,) = lines(one), lines(two)
    assert a["loss"] == b["loss"] and a["a/loss"] == b["a/loss"]


@pytest.mark.usefixtures("no_tensorboard")
def test_lines_after_the_restored_step_and_torn_ones_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    entries = [{"step": s, "kind": "train", "loss": s / 3} for s in (1, 2, 3, 4)]
    path.write_text("".join(json.dumps(e) + "\n" for e in entries) + '{"step": 5, "ki')
    make(tmp_path, Clock(), start=3).close()
    assert lines(tmp_path) == entries[:3]
    assert path.read_text().endswith("}\n")


DAMAGED = ['{"kind": "train"}', "[]", "3", "null", '{"step": "4"}', '{"step": true}', "\x00\x00", "[" * 100_000]


@pytest.mark.usefixtures("no_tensorboard")
def test_damaged_lines_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    entries = [{"step": s, "kind": "train", "loss": s / 3} for s in (1, 2)]
    whole = [json.dumps(e) for e in entries]
    path.write_bytes("\n".join([whole[0], *DAMAGED, whole[1], ""]).encode() + b"\xff\xfe\n")
    make(tmp_path, Clock(), start=2).close()
    assert lines(tmp_path) == entries
    assert f"{len(DAMAGED) + 1} damaged lines are skipped (line 2, 3" in caplog.text


@pytest.mark.usefixtures("no_tensorboard")
def test_a_log_that_cannot_be_opened_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    reporter = make(tmp_path, Clock(), log_every=1)
    reporter.step(1, "a", {"loss": (1.0, 1)})
    reporter.close()
    assert "no metrics are written" in caplog.text


@pytest.mark.usefixtures("no_tensorboard")
def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reporter = make(tmp_path, Clock(), log_every=1)
    reporter._file.close()
    reporter._file = open("/dev/full", "w", buffering=1)
    reporter.step(1, "a", {"loss": (1.0, 1)})
    assert "No space left on device" in caplog.text


@pytest.mark.usefixtures("no_tensorboard")
def test_other_processes_write_nothing(tmp_path: Path) -> None:
    reporter = make(tmp_path, Clock(), log_every=1, writes=False)
    reporter.step(1, "a", {"loss": (1.0, 1)})
    reporter.report(1, "x", Report(images={"i": np.zeros((2, 2, 3), np.uint8)}))
    reporter.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_and_png_files_read_back(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    reporter = make(tmp_path, Clock(), log_every=1)
    reporter.step(1, "a", {"loss": (2.5, 1)})
    reporter.report(1, "sample", Report(images={"strip": image}, texts={"prompt": "a door"}))
    reporter.close()
    png = np.asarray(Image.open(tmp_path / "samples/00000001_sample_strip.png"))
    np.testing.assert_array_equal(png, image)
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    loss = tensor_util.make_ndarray(events.Tensors("a/loss")[0].tensor_proto)
    assert loss == 2.5
    width, height, encoded = events.Tensors("sample/strip")[0].tensor_proto.string_val
    assert (int(width), int(height)) == (12, 8) and encoded.startswith(b"\x89PNG")
    assert b"a door" in events.Tensors("sample/prompt")[0].tensor_proto.string_val


def test_parameter_overview_names_shapes_and_total() -> None:
    tree = {"block": {"w": jax.ShapeDtypeStruct((3, 4), np.float32)}, "b": np.zeros(5, np.float32)}
    text = reporting.parameter_overview(tree)
    assert "block/w" in text and "(3, 4)" in text and "17" in text


@pytest.mark.parametrize("value, text", [(0.5, "0.5 "), (1234.5, "1.23 k"), (5e9, "5 G"), (2.5e13, "25 T")])
def test_si(value: float, text: str) -> None:
    assert reporting._si(value) == text


@pytest.mark.usefixtures("no_tensorboard")
def test_means_weigh_by_tokens_and_what_is_absent_is_left_out(tmp_path: Path) -> None:
    """Steps of 10, 30 and no tokens: the loss is that of a token, not of a step."""
    reporter = make(tmp_path, Clock(), steps=8)
    for step, (name, loss) in enumerate(
        [("a", (20.0, 10)), ("a", (30.0, 30)), ("a", (0.0, 0)), ("b", (0.0, 0))], start=1
    ):
        reporter.step(step, name, {"loss": loss, "grad_norm": (1.0 * bool(loss[1]), bool(loss[1]))})
    for step in range(5, 9):
        reporter.step(step, "b", {"loss": (0.0, 0)})
    first, second = lines(tmp_path)
    assert first["loss"] == first["a/loss"] == 50 / 40 and first["a/grad_norm"] == 1.0
    assert "b/loss" not in first and "b/grad_norm" not in first
    assert first["steps_without_tokens"] == 2 and second["steps_without_tokens"] == 4
    assert "loss" not in second, "nothing scored is no loss of 0"
