"""Batches of tasks with made conditions hold the condition's codes before the clip's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from token_stores import GRID, make_experiment, write_store

from poet.data.checks import check
from poet.data.loader import batches, eval_batches
from poet.spec import UserError
from poet.tasks.registry import TASKS
from poet.tasks.resolved import Resolved

RATES = {name: 1.0 for name, task in TASKS.items() if task.made}
RATES["image_to_video_bidirectional"] = 1.0
CONDITIONS = sorted({task.made for task in TASKS.values() if task.made})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("made") / "s", conditions=CONDITIONS)


@pytest.fixture(scope="module")
def experiment(store):
    return make_experiment(store.path, mixture_rates=RATES, batch=12)


@pytest.mark.parametrize("name", sorted(RATES))
def test_batches_hold_the_condition_and_the_clip(store, experiment, name):
    layout, records = Resolved(experiment).layouts[name], iter(store.records["validation"])
    for batch in eval_batches(Resolved(experiment), name, "validation", 5, 9):
        for tokens in batch["tokens"]:
            streams, record = layout.parse(tokens), next(records)
            np.testing.assert_array_equal(streams["video"], record["video"])
            if TASKS[name].made:
                np.testing.assert_array_equal(streams["video_in"], record[TASKS[name].made])
            else:
                frame = record["video"][: GRID[1] * GRID[2]]
                np.testing.assert_array_equal(streams["image_in"], frame)
    assert next(records, None) is None


def test_tasks_of_one_layout_share_batches_and_keep_their_conditions(store, experiment):
    """Every row's condition is the one that goes with its clip, and all three kinds occur."""
    (group,) = (g for g, (_, rates) in Resolved(experiment).groups.items() if "inpainting" in rates)
    layout, rates = Resolved(experiment).groups[group]
    clips = {record["video"].tobytes(): record for record in store.records["train"]}
    seen = set()
    for batch in itertools.islice(batches(Resolved(experiment))[group], 4):
        for tokens in batch["tokens"]:
            streams = layout.parse(tokens)
            record = clips[streams["video"].tobytes()]
            kinds = [n for n in CONDITIONS if (record[n] == streams["video_in"]).all()]
            assert len(kinds) == 1
            seen.add(kinds[0])
    assert seen == {TASKS[name].made for name in rates} == {"inpainting", "interpolation", "prediction"}


def test_a_share_of_stylizations_opens_with_the_first_frame(experiment):
    alone = experiment.replace(data=experiment.data.replace(mixture_rates={"stylization": 1.0}, batch=20))
    (iterator,) = batches(Resolved(alone)).values()
    known = np.concatenate([batch["known"] for batch in itertools.islice(iterator, 10)])
    assert set(known.ravel().tolist()) == {0, GRID[1] * GRID[2]}
    assert 0.35 < (known > 0).mean() < 0.65


def test_a_store_without_a_condition_or_with_another_one_is_refused(store, experiment, tmp_path):
    check(Resolved(experiment), fingerprints={"video": "abc"})
    lacking = write_store(tmp_path / "few", conditions=["inpainting"])
    with pytest.raises(UserError, match="lacks the streams .*: tokenize again with"):
        check(Resolved(make_experiment(lacking.path, mixture_rates=RATES)), fingerprints={"video": "abc"})
    other = experiment.replace(conditioning=experiment.conditioning.replace(inpainting=("central",)))
    with pytest.raises(UserError, match="inpainting.fingerprint is"):
        check(Resolved(other), fingerprints={"video": "abc"})
