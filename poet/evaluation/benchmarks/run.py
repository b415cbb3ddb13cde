"""Scores of the samples of a preset, by the machinery of `poet score`, and what they depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet.evaluation import intervals
from poet.evaluation.benchmarks.clips import Cut
from poet.evaluation.benchmarks.data import Data
from poet.evaluation.benchmarks.presets import CLASS_SCORE, COSINE, FIRST, Form, Preset
from poet.evaluation.benchmarks.sampling import is_sound
from poet.evaluation.features import Features
from poet.evaluation.report import tables
from poet.evaluation.score import run as score
from poet.evaluation.score.vectors import Cache, Once
from poet.spec import ClipSpec, UserError

FORMAT = 1
FEATURES = "features"
# The cosine with a vector of no length is 0.
TINY = 1e-12


def check_networks(preset: Preset, networks: Sequence[Features]) -> list[Features]:
    """The network of each measure, in their order; UserError where one is missing or reads something else."""
    asked = [f"{measure.published}: {measure.network}" for measure in preset.measures]
    if len(networks) != len(preset.measures):
        needs = "; ".join(asked) or "none"
        raise UserError(
            f"{preset.name} needs {len(preset.measures)} networks, got {len(networks)}: {needs}. Give each as "
            "--features=FILE.json, in this order (poet/evaluation/features/own.py says what the file holds)"
        )
    for measure, network in zip(preset.measures, networks):
        if network.medium != measure.medium:
            raise UserError(
                f"{measure.published} needs a network of {measure.medium}, {network.name} reads {network.medium}"
            )
    identity = lambda vectors: vectors
    pairs = zip(preset.measures, networks)
    return [dataclasses.replace(n, classify=identity) if m.kind == CLASS_SCORE else n for m, n in pairs]


def deviations(preset: Preset, clip: ClipSpec | None, samples: int, reals: int) -> list[str]:
    """In what a run differs from the protocol; any of it makes its numbers not comparable with published ones."""
    found = []
    if clip is not None and not is_sound(preset):
        is_film = preset.tool and preset.conditioning_frames
        frames = preset.sampled.frames if is_film else clip.frames
        own = Form(frames=frames, height=clip.height, width=clip.width, rate_hz=clip.rate_hz)
        if own != preset.sampled:
            found.append(f"the checkpoint samples {own}, the protocol {preset.sampled}")
    if preset.count and samples != preset.count:
        found.append(f"{samples:,} samples, the protocol has {preset.count:,}")
    if preset.real and reals != preset.reals:
        found.append(f"{reals:,} real clips, the protocol has {preset.reals:,}")
    return found


def measure(
    preset: Preset, data: Data, samples: Mapping[str, Path], networks: Sequence[Features], out: Path
) -> dict[str, Any]:
    """The scores of a preset and both sides, as JSON has them.

    Args:
      samples: name -> file, in the order of `sampling.turns`.
    """
    cache = Once(vectors=Cache(folder=out / FEATURES))
    files = {str(path): path for path in data.real}
    real = Cut(
        path="real", files=files, form=preset.scored, cut=preset.cut, seconds=_seconds(preset), is_known=cache.knows
    )
    parts = np.array_split(np.arange(len(samples)), preset.sets)
    results = [_set(preset, data, samples, part.tolist(), networks, cache, real) for part in parts if len(part)]
    named = [f"{n.prefix}_{one.kind}" for one, n in zip(preset.measures, networks)]
    scores = [
        {"measure": name, "published as": one.published} | _mean([found["scores"][place] for found in results])
        for place, (name, one) in enumerate(zip(named, preset.measures))
    ]
    return {"scores": scores, "sets": results}


def _set(
    preset: Preset,
    data: Data,
    samples: Mapping[str, Path],
    places: Sequence[int],
    networks: Sequence[Features],
    cache: Once,
    real: Cut,
) -> dict[str, Any]:
    """The scores of the samples at these places; the real clips are decoded for the first set alone."""
    order = list(samples)
    names = [order[place] for place in places]
    files = {name: samples[name] for name in names}
    made = Cut(path="samples", files=files, form=preset.scored, cut=FIRST, seconds=_seconds(preset))
    compared = [n for m, n in zip(preset.measures, networks) if m.kind != COSINE]
    result: dict[str, Any] = {"metrics": {}, "skipped": {}}
    if compared:
        wanted = [f"{n.prefix}_{m.kind}" for m, n in zip(preset.measures, networks)]
        result = score.evaluate(made, real, score.Setup(networks=compared, chosen=wanted), cache, ())
    texts = _texts(data, len(samples))[places] if data.text_vectors is not None else None
    scores = [
        _cosine(network, made, texts, cache) if one.kind == COSINE else _found(result, f"{network.prefix}_{one.kind}")
        for one, network in zip(preset.measures, networks)
    ]
    sides = {"samples": made.manifest} | ({"real": real.manifest} if preset.real else {})
    used = [network.manifest for network in networks]
    return {"scores": scores, "sides": sides, "networks": used, "versions": result.get("versions", {})}


def _seconds(preset: Preset) -> float:
    """Of sound that is scored."""
    return preset.sampled.frames / preset.sampled.rate_hz if is_sound(preset) else 0.0


def _texts(data: Data, count: int) -> np.ndarray:
    """float32 [count, D]: the vector of the text of each sample."""
    return data.text_vectors[np.arange(count) % len(data.text_vectors)]


def _found(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    for table in result["metrics"].values():
        for row in table["rows"]:
            if row["metric"] == name:
                return {"value": row["value"], "low": row["from"], "high": row["to"], "n": row["clips"]}
    return {"value": None, "why": result["skipped"].get(name, "not measured")}


def _cosine(network: Features, made: Cut, texts_NxD: np.ndarray, cache: Once) -> dict[str, Any]:
    """The mean over clips of the mean cosine of their frames and their text, with an interval over clips."""
    if texts_NxD.shape[1] != network.width:
        raise UserError(
            f"text_vectors.npy has {texts_NxD.shape[1]} dimensions, {network.name} gives {network.width}: both towers "
            "must be of one model, with its projections"
        )
    units = texts_NxD / np.maximum(np.linalg.norm(texts_NxD, axis=1, keepdims=True), TINY)
    values = []
    for item in made:
        rows = cache(network, item)
        lengths = np.maximum(np.linalg.norm(rows, axis=1), TINY)
        values.append(float(np.mean(rows @ units[item.place] / lengths)))
    if not values:
        return {"value": None, "why": "no sample can be read"}
    bounds = intervals.ratio_interval(np.array(values), np.ones(len(values))) or (None, None)
    return {"value": float(np.mean(values)), "low": bounds[0], "high": bounds[1], "n": len(values)}


def _mean(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several sets the mean of their values, and its normal interval; of one set what was found."""
    lacking = [each for each in found if each["value"] is None]
    if lacking or len(found) == 1:
        return dict((lacking or found)[0])
    values = np.array([each["value"] for each in found])
    reach = intervals.NORMAL * float(values.std(ddof=1)) / np.sqrt(len(values))
    mean, n = float(values.mean()), sum(each["n"] for each in found)
    return {"value": mean, "low": mean - reach, "high": mean + reach, "n": n}


def record(preset: Preset, measured: Mapping[str, Any], differing: Sequence[str], **more: Any) -> dict[str, Any]:
    """What `benchmark.json` holds."""
    return {
        "format": FORMAT,
        "preset": dataclasses.asdict(preset),
        "scores": measured["scores"],
        "deviations": list(differing),
        "sets": measured["sets"],
        **more,
    }


def text(found: Mapping[str, Any]) -> str:
    """The record as tables: scores, published ones, what differs."""
    preset = found["preset"]
    blocks = [f"{preset['title']}\n{preset['facts']}"]
    if found["scores"]:
        blocks.append(tables.format_table([_row(one) for one in found["scores"]], "SCORES"))
        used = {n["name"]: n["fingerprint"] for n in found["sets"][0]["networks"]}
        hashes = ", ".join(f"{name} {value}" for name, value in used.items())
        blocks.append(f"networks: {hashes}; whether these are the published ones, nobody but you can tell")
    if preset["published"]:
        blocks.append(tables.format_table(preset["published"], "PUBLISHED"))
    differing = "".join(f"\n  {line}" for line in found["deviations"])
    blocks += [f"not comparable with published numbers:{differing}"] if differing else []
    blocks += [f"to be scored by {preset['tool']}"] if preset["tool"] else []
    return "\n\n".join(blocks)


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("value", "why") if one["value"] is None else ("value", "low", "high", "n")
    return {name: one[name] for name in ("measure", "published as", *shown)}
