"""Exports before format 8: of one task, for one batch, without a text encoder.  Their record in the present form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from poet import streams
from poet.sampling.samplers import Truncation


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of such an export as `poet.serving.format` describes one."""
    segments = record["layout"]["segments"]
    plan = {
        "latents": _latents(segments),
        "layout": 0,
        "known": [segment["known"] for segment in segments if _sampled(segment)],
        **_codecs(record["layout"], segments),
        "variants": [_variant(record)],
    }
    return {
        "format": record["format"],
        "batch": record["batch"],
        "layouts": [[_segment(segment) for segment in segments]],
        "tasks": {record["task"]: [plan]},
        "programs": {name: _program(name, found) for name, found in record["programs"].items()},
        "weights": {name: found["weights"] for name, found in record["programs"].items()},
        "networks": record.get("networks", {}),
        "experiment": record["experiment"],
    }


def _sampled(segment: Mapping[str, Any]) -> bool:
    return segment["role"] == "output" and segment["high"] - segment["low"] > 1


def _segment(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("stream", "part", "role", "low", "high", "grid")
    return {name: found[name] for name in kept} | {"length": found["stop"] - found["start"], "time": None}


def _latents(segments: Sequence[Mapping[str, Any]]) -> int:
    """Latent frames that open the output."""
    shown = (s for s in segments if _sampled(s) and (stream := streams.in_layout(s["stream"])) and stream.shows)
    return next((segment["known"] // (segment["grid"][1] * segment["grid"][2]) for segment in shown), 0)


def _codecs(layout: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    opened = dict.fromkeys(s["stream"] for s in segments if _sampled(s) and s["known"])
    return {
        "encode": {name: _called("tokenize", name) for name in (*layout["condition"], *opened)},
        "decode": {name: _called("detokenize", name) for name in layout["output"]},
    }


def _called(what: str, stream: str) -> str:
    found = streams.in_layout(stream)
    return what if found.shows else f"{what}_{found.medium}"


def _variant(record: Mapping[str, Any]) -> dict[str, Any]:
    fields = dataclasses.fields(Truncation)
    return {
        "guided": record["guided"],
        "dropped": record.get("dropped", ()),
        "truncation": {field.name: record.get(field.name, field.default) for field in fields},
        "lags": (0, 0),
        "prefill": "prefill",
        "decode": ["decode"],
    }


def _program(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "weights": name,
        "inputs": found["inputs"],
        "outputs": [{"name": output, "rows": 0} for output in found["outputs"]],
        "file": f"{name}.stablehlo",
    }
