"""Updates that are skipped, and rewinds: what a run with bad batches ends as."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from poet import spec as specs
from poet.runs.lines import read
from poet.runs.run import Run
from poet.training import compiled, loop, nonfinite
from poet.training.schedule import GroupSchedule

pytestmark = pytest.mark.usefixtures("no_tensorboard")


class Poisoned(linear.Batches):
    """Batches of which those at some positions hold a NaN."""

    def __init__(self, group: str, at: set[int]):
        super().__init__(group)
        self.at = at

    def __next__(self) -> dict[str, np.ndarray]:
        self.poison = self.position if self.position in self.at else None
        return super().__next__()


def positions(step: int) -> tuple[str, int]:
    """Group of a step, and how many of its batches were taken before."""
    schedule = GroupSchedule(linear.SHARES, seed=1)
    groups = [schedule(number) for number in range(step + 1)]
    return groups[-1], groups[:-1].count(groups[-1])


def poisoned(*steps: int) -> dict[str, Poisoned]:
    """The data of a run whose batches of these steps hold a NaN."""
    found = [positions(step) for step in steps]
    return {name: Poisoned(name, {place for group, place in found if group == name}) for name in linear.BATCH}


def run(workdir: Path, steps: int, data: dict, **faults: int) -> loop.Outcome:
    experiment = linear.experiment(steps).replace(faults=specs.FaultsSpec(**faults))
    return loop.train(
        linear.trainable(),
        data,
        GroupSchedule(linear.SHARES, seed=1),
        run=Run(workdir),
        mesh=linear.build_mesh(),
        experiment=experiment,
    )


def lines(workdir: Path) -> list[dict]:
    return list(read(workdir / "metrics.jsonl"))


def same(one: Path, two: Path) -> bool:
    a, b = (linear.leaves(linear.restored(path).state) for path in (one, two))
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_a_guarded_step_is_the_step_or_leaves_all_but_the_number() -> None:
    mesh, model = linear.build_mesh(), linear.trainable()
    with jax.set_mesh(mesh):
        abstract = compiled.abstract(model, mesh)
        guarded = {name: nonfinite.guarded(group) for name, group in model.groups.items()}
        plain = compiled.compile_steps({"short": model.groups["short"]}, abstract, mesh)["short"]
        program = compiled.compile_steps({"short": guarded["short"]}, abstract, mesh)["short"]
        shardings = compiled.shardings_of(abstract)
        start = jax.jit(lambda: compiled.init(model, jax.random.key(0)), out_shardings=shardings)
        moment = compiled.Moment.at(0, 3, 0.01, mesh)
        good, bad = next(linear.Batches("short")), next(linear.Batches("short", poison=0))
        want, _ = plain(start(), jax.device_put(good), moment)
        got, metrics = program(start(), jax.device_put(good), moment)
        assert float(metrics[nonfinite.SKIPPED]) == 0
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got)))
        kept, metrics = program(start(), jax.device_put(bad), moment)
    assert float(metrics[nonfinite.SKIPPED]) == 1 and int(kept["step"]) == 1
    old = start()
    for name in ("params", "opt_state"):
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(old[name]), jax.tree.leaves(kept[name])))


def test_what_decides_is_every_loss_and_every_gradient_s_norm() -> None:
    group = linear.trainable().groups["short"]
    metrics = {"loss": 1.0, "loss/a": 1.0, "critic/grad_norm": 1.0, "other": 1.0}
    for name in metrics:
        step = lambda state, *_: ({"step": state["step"] + 1}, {k: jnp.float32(v) for k, v in metrics.items()} | bad)
        bad = {name: jnp.float32(np.inf)}
        _, found = nonfinite.guarded(dataclasses.replace(group, step=step)).step({"step": 0}, {}, None, None)
        assert float(found[nonfinite.SKIPPED]) == (name != "other")


def test_bad_batches_are_skipped_and_counted_and_the_rest_is_learned(tmp_path: Path) -> None:
    assert run(tmp_path, 12, poisoned(5, 6), skips=2) is loop.Outcome.FINISHED
    counted = {line["step"]: line.get("skipped_updates", 0) for line in lines(tmp_path) if line["kind"] == "train"}
    assert {step for step, count in counted.items() if count} == {6, 7}
    assert all("loss" in line for line in lines(tmp_path) if line["step"] not in (6, 7))
    assert np.isfinite(linear.leaves(linear.restored(tmp_path).state)["['params']['w']"]).all()


def test_skips_in_a_row_are_counted_over_a_restart(tmp_path: Path) -> None:
    """Steps 8 to 10 are bad, and the checkpoint of step 8 is resumed."""
    with pytest.raises(loop.TrainingDiverged, match="step 10, group .* after 2 skipped updates"):
        run(tmp_path, 12, poisoned(7, 8, 9), skips=2)
    assert Run(tmp_path).steps() == [4, 8]
    with pytest.raises(loop.TrainingDiverged, match="step 10"):
        run(tmp_path, 12, poisoned(7, 8, 9), skips=2)


def test_a_rewind_trains_on_what_follows_the_bad_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the run in whose data they never were, up to the numbers of the steps that they had."""
    data = poisoned(6)
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path, 12, data, rewinds=1, rewind_steps=2) is loop.Outcome.FINISHED
    assert "loss is nan at step 7" in caplog.text and "rewind 1 of at most 1" in caplog.text
    assert "going on from step 4, without the batches of steps 5 to 9" in caplog.text
    counts = [positions(step) for step in range(12)]
    for name, batches in data.items():
        left_out = sum(group == name for group, _ in counts[4:9])
        assert batches.position == sum(group == name for group, _ in counts) + left_out
    steps = [line["step"] for line in lines(tmp_path) if line["kind"] == "train"]
    assert steps == list(range(1, 13))


def test_a_run_that_is_killed_after_a_rewind_rewinds_again_to_the_same_end(tmp_path: Path) -> None:
    run(tmp_path / "whole", 12, poisoned(6), rewinds=1)
    with pytest.raises(loop.TrainingDiverged):  # The run ends in place of the rewind.
        run(tmp_path / "torn", 12, poisoned(6))
    run(tmp_path / "torn", 12, poisoned(6), rewinds=1)
    assert same(tmp_path / "whole", tmp_path / "torn")


def test_a_rewind_before_the_first_checkpoint_begins_anew_without_the_bad_batches(tmp_path: Path) -> None:
    data = poisoned(1)
    run(tmp_path, 4, data, rewinds=1)
    assert sum(batches.position for batches in data.values()) == 4 + 2


def test_rewinds_have_an_end_which_a_restart_does_not_move(tmp_path: Path) -> None:
    """Each bad step lies behind a checkpoint of after the rewind before it."""
    bad = (5, 12, 19)
    for _ in range(2):
        with pytest.raises(loop.TrainingDiverged, match="loss"):
            run(tmp_path, 24, poisoned(*bad), rewinds=1)
    assert Run(tmp_path).newest() is not None
