"""The record of an export stands for its plan, whatever the task."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "sampling"))

import tiny  # noqa: E402

from poet import spec as specs  # noqa: E402
from poet.sampling.plans import given_tokens  # noqa: E402
from poet.sampling.requests import make_plan  # noqa: E402
from poet.serving.format import describe, plan_of  # noqa: E402
from poet.spec import SampleSpec  # noqa: E402
from poet.tasks.layout import HIDDEN, Layout  # noqa: E402
from poet.tasks.registry import TASKS  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402

EXPERIMENT = tiny.WITH_SOUND.replace(text=tiny.WITH_SOUND.text.replace(pieces="somewhere"))
RUN = Resolved(EXPERIMENT)


@pytest.mark.parametrize("task", TASKS)
def test_a_plan_is_read_as_it_was_written(task):
    sample = SampleSpec(top_k=5, top_p=0.9, guidance=2.0)
    plan = make_plan(RUN, TASKS[task], sample, RUN.conditioning_range(TASKS[task])[1])
    record = json.loads(json.dumps(describe(plan) | {"experiment": specs.to_dict(EXPERIMENT)}))
    found = plan_of(record)
    timeless = [dataclasses.replace(segment, time=None) for segment in plan.layout.segments]
    assert found == dataclasses.replace(plan, layout=Layout(tuple(timeless)))
    streams = {name: np.full((2, plan.layout.streams[name]), HIDDEN) for name in plan.layout.condition_streams}
    streams["source"] = np.array([[0], [3]])
    known = np.random.default_rng(0).integers(0, 16, (2, sum(plan.known)))
    np.testing.assert_array_equal(given_tokens(found, streams, known), given_tokens(plan, streams, known))
    assert (found.prefilled, found.forced, found.condition) == (plan.prefilled, plan.forced, plan.condition)
