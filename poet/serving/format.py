"""The folder of an export, and its record of a plan: functions that write and read them.

`spec.json` describes the layout position by position, so that an export means what it meant when it was made,
whatever later versions lay out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from poet import streams
from poet.sampling.plans import Plan
from poet.sampling.samplers import SamplingParams, Truncation
from poet.spec import VocabularySpec
from poet.spec.base import from_dict
from poet.spec.vocabulary import Range, Special, Vocabulary
from poet.tasks.layout import Layout, Segment, Span

FORMAT = 7
# What this version reads; earlier formats lack inputs that came later.
READ = (5, 6, 7)
WEIGHTS, SPEC = "weights.safetensors", "spec.json"
# Inputs of `decode` after the rows, fields of `SamplingParams`.
SAMPLING_PARAMS = tuple(field.name for field in dataclasses.fields(SamplingParams))


def program(name: str, stream: str) -> str:
    """The program that tokenizes or detokenizes a stream of a layout: pictures and clips share one."""
    found = streams.in_layout(stream)
    return name if found.shows else f"{name}_{found.medium}"


def describe(plan: Plan) -> dict[str, Any]:
    """The record of a plan: its static sampler settings, and the layout segment by segment."""
    known = dict(zip(plan.layout.loss_spans, plan.known))
    return {
        "guided": plan.guided,
        "dropped": list(plan.dropped),
        **dataclasses.asdict(plan.truncation),
        "layout": {
            "length": plan.layout.length,
            "prefix_length": plan.layout.prefix_length,
            "prefilled": plan.prefilled,
            "output": list(plan.layout.output_streams),
            "condition": list(plan.condition),
            "segments": [_describe(span, known.get(span, 0)) for span in plan.layout.spans],
        },
    }


def _describe(span: Span, known: int) -> dict[str, Any]:
    """`known` counts leading codes that are given; `hidden` is the id of what a condition does not give."""
    return {
        "stream": span.segment.stream,
        "part": span.segment.part,
        "role": span.segment.role,
        "start": span.start,
        "stop": span.stop,
        "low": span.segment.ids.low,
        "high": span.segment.ids.high,
        "grid": list(span.segment.grid),
        "known": known,
        "hidden": int(Special.HIDDEN) if span.segment.may_hide else None,
    }


def plan_of(record: Mapping[str, Any]) -> Plan:
    """The plan that `describe` recorded; places of sound in time are in the programs alone."""
    tables = Vocabulary(from_dict(VocabularySpec, record["experiment"]["vocabulary"])).tables
    described = record["layout"]["segments"]
    layout = Layout(tuple(_segment(segment, tables) for segment in described))
    sampled = {span.start for span in layout.loss_spans}
    return Plan(
        layout=layout,
        known=tuple(segment["known"] for segment in described if segment["start"] in sampled),
        guided=record["guided"],
        dropped=tuple(record.get("dropped", ())),
        truncation=Truncation(**{f.name: record.get(f.name, f.default) for f in dataclasses.fields(Truncation)}),
    )


def _segment(found: Mapping[str, Any], tables: Mapping[str, Range]) -> Segment:
    low, high = found["low"], found["high"]
    table = next(t for t in tables.values() if t.low <= low < t.high)
    return Segment(
        stream=found["stream"],
        part=found["part"],
        length=found["stop"] - found["start"],
        role=found["role"],
        ids=Range(low, high, table.table, table.low),
        grid=tuple(found["grid"]),
    )
