"""The record of an export stands for its plans, whatever the task; the table of pieces stands for SentencePiece."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "sampling"))

import tiny  # noqa: E402

from poet.runs import assets  # noqa: E402
from poet.sampling.requests import make_plan  # noqa: E402
from poet.serving import written  # noqa: E402
from poet.serving.format import describe, describe_layout, layout_of, plan_of  # noqa: E402
from poet.spec import SampleSpec  # noqa: E402
from poet.tasks.registry import TASKS  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402

RUN = Resolved(tiny.WITH_SOUND.replace(text=tiny.WITH_SOUND.text.replace(pieces="somewhere")))
MODEL = sentencepiece.SentencePieceProcessor(
    model_file=str(assets.root() / "data" / "pretrained" / "pieces_512" / "spiece.model")
)
TABLE = written.PieceTable.of(json.loads(json.dumps(written.describe(MODEL))))


@pytest.mark.parametrize("task", TASKS)
def test_a_plan_is_read_as_it_was_written(task):
    sample = SampleSpec(top_k=5, top_p=0.9, guidance=2.0)
    plan = make_plan(RUN, TASKS[task], sample, RUN.conditioning_range(TASKS[task])[1])
    for one in (plan, dataclasses.replace(plan, guided=False, dropped=(), scaled=True)):
        described, segments = json.loads(json.dumps([describe(one), describe_layout(one.layout)]))
        layout = layout_of(segments, RUN.vocabulary)
        assert layout == one.layout and plan_of(described, layout) == one


# Bytes, alone and in characters, the unknown piece, control pieces and blanks are rare among random ids.
RARE = st.sampled_from(
    [0, 1, 2, MODEL.piece_to_id("▁"), *map(MODEL.piece_to_id, ("<0xE2>", "<0x96>", "<0x81>", "<0x41>"))]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(RARE | st.integers(0, MODEL.get_piece_size() - 1), max_size=12))
def test_the_table_reads_ids_as_sentencepiece_does(ids):
    assert TABLE.decode(ids) == MODEL.decode(ids)
