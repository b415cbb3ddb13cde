"""A model that learns a world of moving squares for a minute obeys every condition of its tasks.

The proof of layouts, positions, tables and masks together: whatever a clip is given must cost nats when it
is another clip's, beyond what chance allows.  Three tasks are in the suite, all of them in its slow part.
"""

from __future__ import annotations

import pathlib

import jax
import optimised
import pytest
import squares

from poet.data.loader import batches
from poet.distributed.mesh import Rules, build
from poet.distributed.processes import Share
from poet.evaluation.checkpoint_tables import measure_condition_gain
from poet.evaluation.likelihood import place
from poet.evaluation.resources import Resources
from poet.runs.run import Run
from poet.spec import Experiment, TrainSpec
from poet.store.reader import load_manifest
from poet.tasks.resolved import Resolved
from poet.training.step import language_model

OBEYED = {
    ("text_to_video", "text", "video"),
    ("image_to_video", "text", "video"),
    ("image_to_video", "first frame", "video"),
    ("frame_prediction", "first frame", "video"),
    ("inpainting", "clip with a hole", "video"),
    ("stylization", "text", "video"),
    ("stylization", "flow and depth", "video"),
    ("stylization", "text alone", "video"),
    ("stylization", "flow and depth alone", "video"),
    ("stylization", "first frame", "video"),
    ("video_to_audio", "video", "audio"),
    ("audio_to_video", "sound", "video"),
    ("audio_video_continuation", "first frame", "video"),
    ("audio_video_continuation", "opening sound", "audio"),
    ("captioning", "video", "pieces"),
}
# Compilation takes half of the time: tasks whose conditions are of all kinds, and their steps.
FEW = ("stylization", "audio_video_continuation", "captioning"), 170
# Seen, but worth nothing yet after a minute: the given sound tells the direction and the speed of the square,
# 2.1 nats a clip, and the sound to be drawn has the drawn picture to listen to.
SEEN = {("audio_video_continuation", "opening sound", "video"), ("audio_video_continuation", "first frame", "audio")}


def train(experiment: Experiment, mesh: jax.sharding.Mesh) -> dict:
    """Parameters after `TRAIN.steps` steps, the groups in turn."""
    trainable = language_model(Resolved(experiment), mesh)
    steps = {name: optimised.jit(group.step, donate_argnums=0) for name, group in trainable.groups.items()}
    feeds, order = batches(Resolved(experiment)), sorted(Resolved(experiment).groups)
    with jax.set_mesh(mesh):
        shardings = Rules().shardings(mesh, trainable.axes)
        state = jax.jit(trainable.init, out_shardings=shardings)(jax.random.key(0))
        for number in range(experiment.train.steps):
            name = order[number % len(order)]
            rate = trainable.rate(number)
            batch = place(next(feeds[name]), mesh, Share())
            state, _ = steps[name](state, batch, jax.random.key(number), rate)
    return state["params"]


@pytest.fixture(
    scope="module", params=[FEW, pytest.param((squares.TASKS, 240), marks=pytest.mark.slow)], ids=["few", "all"]
)
def tasks_and_steps(request: pytest.FixtureRequest) -> tuple[tuple[str, ...], int]:
    return request.param


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, tasks_and_steps: tuple[tuple[str, ...], int]) -> list[dict]:
    """Condition gain of the trained model."""
    store = squares.write_store(tmp_path_factory.mktemp("squares") / "store")
    tasks, steps = tasks_and_steps
    experiment = squares.experiment(store.path, tasks, train=TrainSpec(steps=steps))
    mesh = build(experiment.mesh, jax.devices()[:1])
    params = train(experiment, mesh)
    resources = Resources(Run(pathlib.Path()), Resolved(experiment), pathlib.Path())
    known = {"manifest": load_manifest(store.path), "mesh": mesh, "load_params": lambda: params}
    vars(resources).update(known)
    return measure_condition_gain(resources).rows


def expected(keys: set[tuple[str, str, str]], tasks: tuple[str, ...]) -> set[tuple[str, str, str]]:
    """Those of these tasks."""
    return {key for key in keys if key[0] in tasks}


def test_the_right_condition_beats_a_wrong_one(rows: list[dict], tasks_and_steps) -> None:
    found = {(r["task"], r["condition"], r["stream"]): r for r in rows}
    names = ("nats_per_clip", "nats_per_clip_low", "nats_per_clip_high")
    ignored = {
        key: [found[key][name] for name in names]
        for key in expected(OBEYED, tasks_and_steps[0])
        if found[key][names[1]] <= 0
    }
    assert not ignored, ignored


def test_every_condition_is_measured_and_seen(rows: list[dict], tasks_and_steps) -> None:
    found = {(r["task"], r["condition"], r["stream"]): r for r in rows}
    assert set(found) == expected(OBEYED | SEEN, tasks_and_steps[0])
    unseen = [key for key, r in found.items() if r["nats_per_clip_low"] == r["nats_per_clip_high"] == 0]
    assert not unseen, unseen


def test_what_can_be_copied_is_copied(rows: list[dict]) -> None:
    """The ground under the square's way stands in the first frame, most of a clip around its hole."""
    for r in rows:
        if r["condition"] in ("first frame", "clip with a hole") and r["stream"] == "video":
            assert r["copyable"] > 0.5 and r["copyable_accuracy"] > 0.75, r
