"""Checkpoints side by side: paired differences against other computations, resumption, refusals, the page."""

from __future__ import annotations

import argparse
import csv
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from poet.checkpoints import checkpoint
from poet.cli.commands import eval as command
from poet.evaluation import comparison, parts, runner
from poet.evaluation.checkpoint_tables import TABLES
from poet.evaluation.metric import Values
from poet.runs.run import Run
from poet.spec import CheckpointSpec, UserError
from poet.tasks.resolved import Resolved

TABLE = "likelihood"


def flags(out, *paths, **more) -> argparse.Namespace:
    """As the command line parses them."""
    parser = argparse.ArgumentParser()
    command._arguments(parser)
    words = [*map(str, paths), f"--out={out}", f"--metric={TABLE}", *(f"--{k}={v}" for k, v in more.items())]
    arguments = parser.parse_args(words)
    arguments.bindings = ["DATA.mixture_rates={'text_to_video': 1.0}"]
    return arguments


@pytest.fixture(scope="module")
def other(run, tmp_path_factory) -> Run:
    """A checkpoint whose predictions are a little less sharp."""
    params = jax.tree.map(jnp.asarray, run.params)
    params["embedding"]["tables"] = jax.tree.map(lambda x: 0.8 * x, params["embedding"]["tables"])
    disk = Run(tmp_path_factory.mktemp("other") / "softer")
    state = {"step": jnp.int32(9), "params": params}
    networks = run.disk.checkpoint.networks
    checkpoint.save(
        disk,
        step=9,
        state=state,
        iterators={},
        experiment=run.experiment,
        clock={},
        policy=CheckpointSpec(keep=1),
        networks=networks,
    )
    return disk


@pytest.fixture(scope="module")
def compared(run, other, tmp_path_factory):
    """The output folder of both."""
    out = tmp_path_factory.mktemp("compared") / "scores"
    command._run(flags(out, run.disk.folder, other.folder))
    return out


def values(sums, counts, groups=None, places=None) -> Values:
    batch = {} if groups is None else {"groups": groups}
    return Values.of(batch | ({} if places is None else {"places": places}), sums, counts)


def test_a_paired_difference_is_that_of_a_paired_t_test(rng=np.random.default_rng(4)):
    hard = rng.normal(0, 5, 400)
    one, two = hard + rng.normal(0, 0.3, 400), hard + 0.1 + rng.normal(0, 0.3, 400)
    ones = np.ones(400)
    difference, low, high, pairs = comparison.paired(values(one, ones), values(two, ones))
    found = scipy.stats.ttest_rel(two, one).confidence_interval(0.95)
    assert pairs == 400 and difference == pytest.approx((two - one).mean())
    assert (low, high) == pytest.approx((found.low, found.high), abs=0.01)
    # The spread of the examples themselves is many times as wide: it cancels.
    assert high - low < 0.1 * (scipy.stats.sem(hard) * 4)


def test_only_examples_that_both_have_are_compared_and_groups_are_resampled_together():
    one = values([1.0, 2, 3, 4], [1, 1, 1, 0], groups=["a", "a", "b", "b"])
    two = values([5.0, 9, 7], [1, 1, 1], groups=["x", "y", "y"], places=[2, 1, 3])
    difference, low, high, pairs = comparison.paired(one, two)
    assert (difference, pairs) == ((9 + 5) / 2 - (2 + 3) / 2, 2)
    assert (low, high) == (2, 7), "one pair of each group: the extremes are the groups themselves"
    assert comparison.paired(one, values([1.0], [1], places=[8])) == (None, None, None, 0)


def test_a_finished_number_is_the_difference_of_finished_ones():
    one, two = values([1.0, 4, 9], [1, 1, 1]), values([4.0, 9, 16], [1, 1, 1])
    difference, low, high, _ = comparison.paired(one, two, lambda x: x**0.5)
    assert difference == pytest.approx((29 / 3) ** 0.5 - (14 / 3) ** 0.5)
    assert low <= difference <= high


@pytest.mark.parametrize(
    "low, high, better, said",
    [
        (0.1, 0.2, "more", comparison.BETTER),
        (0.1, 0.2, "less", comparison.WORSE),
        (-0.2, -0.1, "less", comparison.BETTER),
        (-0.1, 0.2, "more", comparison.SAME),
        (None, None, "more", comparison.SAME),
        (0.1, 0.2, "neither", ""),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, better, said):
    assert comparison.verdict(low, high, better) == said


def test_two_checkpoints_have_their_folders_one_comparison_and_one_page(run, other, compared):
    labels = ["lm-7", "softer-9"]
    reports = {label: json.loads((compared / label / "eval.json").read_text()) for label in labels}
    found = json.loads((compared / "comparison.json").read_text())
    assert found["checkpoints"] == labels
    losses = {label: report["metrics"][TABLE]["rows"][0]["loss_nats"] for label, report in reports.items()}
    rows = {(row["checkpoint"], row["metric"]): row for row in found["numbers"]}
    row = rows["softer-9", "loss_nats"]
    assert row["difference"] == pytest.approx(losses["softer-9"] - losses["lm-7"]) and row["pairs"] == 16
    assert row["baseline"] == "lm-7" and "difference" not in rows["lm-7", "loss_nats"]
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert rows["softer-9", "unigram_nats"]["difference"] == 0 and rows["softer-9", "unigram_nats"]["verdict"] == ""
    table = list(csv.DictReader((compared / "eval.csv").open()))
    assert {line["checkpoint"] for line in table} == set(labels) and len(table) == len(found["numbers"])
    [line] = [x for x in table if (x["checkpoint"], x["metric"]) == ("softer-9", "loss_nats")]
    assert float(line["difference"]) == row["difference"] and line["fingerprint"] == other.checkpoint.fingerprint
    assert "jax" in json.loads(line["versions"]) and "store" in json.loads(line["data"])
    page = (compared / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page), "it asks for nothing"
    assert page.count('class="bar') == 2 and "whisker" in page and all(label in page for label in labels)


def test_tensorboard_has_the_numbers_of_each_run_at_the_steps_of_its_checkpoints(compared):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    found = json.loads((compared / "comparison.json").read_text())["numbers"]
    for label in ("lm-7", "softer-9"):
        name, step = label.split("-")
        events = event_accumulator.EventAccumulator(str(compared / runner.BOARD / name)).Reload()
        rows = [row for row in found if row["checkpoint"] == label and row["value"] is not None]
        assert len(events.Tags()["tensors"]) == len(rows)
        for row in rows:
            tag = f"{row['table']}/{row['row'].replace(' · ', ' ')}/{row['metric']}"
            [event] = events.Tensors(tag)
            value = float(tensor_util.make_ndarray(event.tensor_proto))
            assert event.step == int(step) and value == pytest.approx(row["value"])


def test_checkpoints_of_one_run_are_points_of_its_curves_and_runs_of_one_name_stay_apart(tmp_path):
    def plan(folder, step):
        checkpoint = SimpleNamespace(step=step, released=False, path=folder / "checkpoints" / str(step))
        return SimpleNamespace(subject=SimpleNamespace(run=SimpleNamespace(folder=folder, checkpoint=checkpoint)))

    plans = [plan(tmp_path / "a" / "lm", 1), plan(tmp_path / "a" / "lm", 2), plan(tmp_path / "b" / "lm", 2)]
    labels = ["lm-1", "lm-2", "lm-2-2"]
    rows = [
        {"table": "t", "row": "x · y", "metric": "m", "checkpoint": label, "value": value}
        for label, value in zip(labels, (0.5, 0.25, None))
    ]
    assert runner.boards(plans, labels, rows) == {"lm": {1: {"t/x y/m": 0.5}, 2: {"t/x y/m": 0.25}}, "lm-2-2": {2: {}}}


def test_finished_tables_are_read_and_not_measured_again(run, other, compared, tmp_path, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setitem(TABLES, TABLE, runner.Source(needs=("store",), measure=never, shared=True))
    before = (compared / "comparison.json").read_text()
    command._run(flags(tmp_path / "again", other.folder, run.disk.folder, parts=compared / "parts"))
    turned = json.loads((tmp_path / "again" / "comparison.json").read_text())["numbers"]
    losses = {
        row["difference"]
        for row in [*turned, *json.loads(before)["numbers"]]
        if row["metric"] == "loss_nats" and "difference" in row
    }
    assert len(losses) == 2 and sum(losses) == pytest.approx(0), "the other way round, the difference changes its sign"
    with pytest.raises(AssertionError, match="measured again"):
        changed = flags(tmp_path / "changed", run.disk.folder, parts=compared / "parts")
        changed.bindings = [*changed.bindings, "EVAL.batches=1"]
        command._run(changed)


def test_a_killed_evaluation_goes_on_and_a_folder_of_another_checkpoint_is_refused(
    run, other, tmp_path, monkeypatch, capsys
):
    out, measured = tmp_path / "out", []
    real = TABLES[TABLE].measure

    def fails_at_the_second(resources):
        measured.append(resources)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(resources)

    monkeypatch.setitem(TABLES, TABLE, runner.Source(needs=("store",), measure=fails_at_the_second, shared=True))
    with pytest.raises(KeyboardInterrupt):
        command._run(flags(out, run.disk.folder, other.folder))
    assert [path.name for path in out.iterdir()] == ["parts"], "what is finished is kept, and nothing else"
    with pytest.raises(UserError, match="tables of another checkpoint .*00000007.*--overwrite"):
        command._run(flags(out, other.folder))
    command._run(flags(out, run.disk.folder, other.folder))
    assert len(measured) == 3, "only the second checkpoint was measured again"
    assert len(list((out / "parts").iterdir())) == 2
    with pytest.raises(UserError, match="holds an earlier evaluation"):
        command._run(flags(out, run.disk.folder))


def test_a_damaged_part_is_measured_again(run, tmp_path):
    store = parts.Parts(tmp_path)
    number = parts.Number(
        row={"task": "a"},
        metric="loss_nats",
        better="less",
        summary=values([1.0, 2], [1, 1]).summary(),
        values=values([1.0, 2], [1, 1], groups=["x", "y"]),
    )
    part = parts.Part(table={"rows": []}, media=[], numbers=[number], examples="e", seconds=1.0)
    store.write("key", part, {"path": "p", "fingerprint": "f"}, tmp_path)
    back = store.read("key", tmp_path / "media")
    assert back.numbers[0].summary == number.summary and back.examples == "e"
    np.testing.assert_array_equal(back.numbers[0].values.groups_N, ["x", "y"])
    for name in (parts.PART, parts.VALUES):
        whole = (tmp_path / "key" / name).read_bytes()
        (tmp_path / "key" / name).write_bytes(whole.replace(b"1.0", b"7.0") if name == parts.PART else whole[:-1])
        assert store.read("key", tmp_path / "media") is None
        (tmp_path / "key" / name).write_bytes(whole)
    assert store.read("key", tmp_path / "media") and store.read("absent", tmp_path) is None
    store.keep_only([])
    assert not (tmp_path / "key").exists()


def test_a_checkpoint_is_named_once_and_one_is_needed(run):
    opened = (run.disk, Resolved(run.experiment))
    with pytest.raises(UserError, match="name each checkpoint once"):
        runner.subjects([opened, opened])
    with pytest.raises(UserError, match="no checkpoint was named"):
        command._run(flags("out"))
    with pytest.raises(UserError, match="--scores is of one checkpoint"):
        command._run(flags("out", "a", "b", scores="x"))
