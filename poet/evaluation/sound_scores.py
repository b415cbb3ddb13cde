"""`poet tokenizer-eval` for sound: scores of an audio tokenizer by level, beside Opus.

The tokenizer's rate is that of its codes written with a fixed number of bits each, as a language
model reads them; Opus's is that of its packets alone.

Shape suffixes: N sounds, S samples; L levels of codes, F frames of codes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pathlib
from typing import Any, Mapping, Sequence

import numpy as np

from poet import media
from poet.evaluation import sound_metrics, sound_speed
from poet.evaluation.codes import USAGE_NOTE, usage_statistics
from poet.evaluation.image_metrics import mean_and_error
from poet.evaluation.opus import code_opus
from poet.evaluation.sound_metrics import RATE_HZ, SoundMetric, to_float
from poet.evaluation.spectrograms import write_spectrograms
from poet.evaluation.tables import format_table
from poet.media.sound import resample
from poet.spec import AudioTokenizerSpec, UserError
from poet.tokenizers.audio.base import AudioTokenizer

_LOG = logging.getLogger(__name__)

RESULT_FILE = "tokenizer_scores.json"
LEVELS = (1, 2, 4, 8, 12)
OPUS_BIT_RATES = (6_000, 12_000)
SOUNDS_SHOWN = 3
# The levels that a language model reads (spec §3.4), and all; and the codec at the rate of all.
LEVELS_PICTURED, OPUS_PICTURED = (4, 12), 6_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
    """What a codec made of a set.

    Attributes:
      label: its row in the tables.  slug: its part of file names.
      sounds_NxS: int16.
      kbit_s: thousands of bits per second of sound.
      pictured: stands among the spectrograms.
      detail: what the JSON says of it besides the row.
    """

    label: str
    slug: str
    sounds_NxS: np.ndarray
    kbit_s: float
    pictured: bool = False
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)


def evaluate(
    tokenizer: AudioTokenizer,
    sets: Mapping[str, np.ndarray],
    out: pathlib.Path,
    *,
    levels: Sequence[int] = LEVELS,
    bit_rates: Sequence[int] = OPUS_BIT_RATES,
    metrics: Sequence[str] = (),
    speed: bool = True,
    skipped: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Scores a tokenizer on sets of sounds, each int16 (N, S) at its sample rate, and Opus beside.

    Writes OUT/tokenizer_scores.json, and for each set a picture OUT/SET.png and sounds OUT/SET/*.wav,
    and returns what the JSON holds; `summary` prints it.

    Args:
      levels: numbers of levels to decode from; those that the tokenizer has not are left out.
      bit_rates: of Opus, in bits per second; () leaves it out.
      metrics: of `sound_metrics.METRICS`; () takes all that are installed.
      speed: measures encoding and decoding on one core, in a process of its own.
      skipped: sets that could not be opened -> why; they are passed on to the result.

    Raises:
      UserError: no set, no level, an unknown metric, or sounds of another dtype or shape.
    """
    chosen, missing = sound_metrics.installed(metrics)
    counts = [count for count in levels if 1 <= count <= tokenizer.spec.levels]
    _check(sets, counts, tokenizer.spec, skipped or {})
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "fingerprint": tokenizer.fingerprint,
        "sample_rate_hz": tokenizer.spec.sample_rate_hz,
        "notes": [*NOTES, *(metric.note for metric in chosen.values())],
        "missing": missing,
        "skipped": dict(skipped or {}),
        "speed": None,
        "sets": {},
    }
    if speed:
        samples = min(sounds.shape[1] for sounds in sets.values())
        result["speed"] = sound_speed.measure(tokenizer, samples, counts, bit_rates)
    ids = {name: tokenizer.encode(sounds) for name, sounds in sets.items()}
    for name, sounds in sets.items():
        _LOG.info("scoring %d sounds of set %s", len(sounds), name)
        made = _by_level(tokenizer, ids[name], counts, sounds.shape[1])
        made += [_opus(sounds, tokenizer.spec, bit_rate) for bit_rate in bit_rates]
        result["sets"][name] = _score_set(sounds, made, tokenizer.spec, chosen, result["speed"])
        result["sets"][name]["codes"] = _code_rows(ids[name], tokenizer.spec)
        _show(out, name, sounds, made, tokenizer.spec.sample_rate_hz)
    pooled = [found.transpose(1, 0, 2).reshape(found.shape[1], -1) for found in ids.values()]
    result["codes"] = _code_rows(np.concatenate(pooled, axis=1)[None], tokenizer.spec)
    media.write_text(out / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    return result


NOTES = (
    "kbit/s of the tokenizer: levels x log2(codes) x frames per second. Of Opus: bytes of its "
    "packets, no container; it was asked for as much as gives at least the rate in its name, over "
    "all sounds of a set. Mono, variable bit rate, greatest effort, its delay taken out.",
    "Metrics are taken at 16 kHz; ± is the standard error over sounds, n their number. Originals that "
    "a metric is not defined on, such as silence, count for no codec; a rendering that it fails on, as "
    "where a codec falls silent, counts with its worst value. PESQ-wb, STOI and ViSQOL-speech are "
    "made for speech: on other sets they say little.",
    USAGE_NOTE,
)


def summary(result: Mapping[str, Any]) -> str:
    """The result as text: two tables, how to read them, and what was left out."""
    rows = [
        {"set": name, **row} for name, found in result["sets"].items() for row in found["rows"]
    ]
    parts = [format_table(rows), format_table(result["codes"], "codes of all sets"), *_remarks(result)]
    return "\n\n".join(parts)


def _remarks(result: Mapping[str, Any]) -> list[str]:
    notes, timed = list(result["notes"]), result["speed"]
    if timed:
        most = max(timed["tokenizer"], key=int)
        where = "one core" if timed["core"] is not None else "one thread, not pinned to a core"
        notes.append(
            f"encode x, decode x: seconds of sound per second on {where}, one sound of "
            f"{timed['seconds']:.3f} s at a time, median of {timed['runs']} runs after a first one; "
            f"by CPU time, with {most} levels: {_cpu_factors(timed['tokenizer'][most])}."
        )
    counted = [
        f"set {name!r}, {metric}: not defined for {most} of {found['sounds']} originals"
        for name, found in result["sets"].items()
        for metric, most in found["undefined"].items()
        if most
    ]
    counted += [
        f"set {name!r}, {metric}: {codec} failed on {most} sounds, which count as the worst value"
        for name, found in result["sets"].items()
        for codec, failed in found["failed"].items()
        for metric, most in failed.items()
    ]
    skipped = [f"set {name!r}: {reason}" for name, reason in result["skipped"].items()]
    groups = (notes, counted, skipped, list(result["missing"].values()))
    return ["\n".join(group) for group in groups if group]


def _cpu_factors(factors: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{step} {found['cpu_median']:.1f}" for step, found in factors.items())


def _check(
    sets: Mapping[str, np.ndarray],
    levels: Sequence[int],
    spec: AudioTokenizerSpec,
    skipped: Mapping[str, str],
) -> None:
    if not sets:
        raise UserError(f"no set of sounds to score on: {'; '.join(skipped.values())}")
    if not levels:
        raise UserError(f"no level to score: this tokenizer has 1..{spec.levels}")
    for name, sounds in sets.items():
        if sounds.dtype != np.int16 or sounds.ndim != 2 or not sounds.size:
            raise UserError(
                f"set {name!r} has dtype {sounds.dtype} and shape {sounds.shape}: expected int16 "
                "(sounds, samples)"
            )


# ------------------------------------------------------------------------------------- renderings


def _by_level(
    tokenizer: AudioTokenizer, ids_NxLxF: np.ndarray, levels: Sequence[int], samples: int
) -> list[Rendering]:
    spec, pictured = tokenizer.spec, _pictured(levels)
    bits_per_level = math.log2(spec.codes) * spec.sample_rate_hz / spec.hop
    return [
        Rendering(
            label=f"tokenizer, {count} level{'s' * (count > 1)}",
            slug=f"tokenizer_{count}",
            sounds_NxS=tokenizer.decode(ids_NxLxF[:, :count], samples),
            kbit_s=count * bits_per_level / 1000,
            pictured=count in pictured,
            detail={"levels": count},
        )
        for count in levels
    ]


def _pictured(levels: Sequence[int]) -> set[int]:
    """LEVELS_PICTURED as far as they are scored, else the most levels there are."""
    return {count for count in LEVELS_PICTURED if count in levels} or {max(levels)}


def _opus(sounds_NxS: np.ndarray, spec: AudioTokenizerSpec, bit_rate: int) -> Rendering:
    coded = code_opus(sounds_NxS, spec.sample_rate_hz, bit_rate)
    return Rendering(
        label=f"Opus, {bit_rate / 1000:g} kbit/s",
        slug=f"opus_{bit_rate}",
        sounds_NxS=coded.sounds_NxS,
        kbit_s=coded.bits_per_second / 1000,
        pictured=bit_rate == OPUS_PICTURED,
        detail={"bit_rate": bit_rate, "asked_for": coded.asked_for, "lags": list(coded.lags)},
    )


# ------------------------------------------------------------------------------------------ scores


def _score_set(
    sounds_NxS: np.ndarray,
    made: Sequence[Rendering],
    spec: AudioTokenizerSpec,
    metrics: Mapping[str, SoundMetric],
    timed: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Rows, how many originals each metric is not defined for, and on how many each codec failed.

    Every row of a metric counts the same sounds.
    """
    truth = _at_metric_rate(sounds_NxS, spec.sample_rate_hz)
    defined = {key: [metric.is_defined(sound) for sound in truth] for key, metric in metrics.items()}
    rows, failed = [], {}
    for rendering in made:
        row: dict[str, Any] = {"codec": rendering.label, "kbit/s": rendering.kbit_s}
        others = _at_metric_rate(rendering.sounds_NxS, spec.sample_rate_hz)
        for key, metric in metrics.items():
            pairs = [pair for *pair, counts in zip(truth, others, defined[key], strict=True) if counts]
            scores = [metric.of_rendering(*pair) for pair in pairs]
            row[key], row[f"{key}_error"] = mean_and_error([s for s, _ in scores]) if scores else (None, None)
            row[f"{key}_n"] = len(scores)
            if worst := sum(fails for _, fails in scores):
                failed.setdefault(rendering.label, {})[key] = worst
        rows.append(row | _speed_columns(rendering, timed))
    return {
        "sounds": len(sounds_NxS),
        "seconds": sounds_NxS.shape[1] / spec.sample_rate_hz,
        "rows": rows,
        "undefined": {key: len(truth) - sum(known) for key, known in defined.items()},
        "failed": failed,
        "codecs": {rendering.label: rendering.detail for rendering in made},
    }


def _at_metric_rate(sounds_NxS: np.ndarray, rate_hz: int) -> list[np.ndarray]:
    """float64 in [-1, 1] at the rate of all metrics."""
    return [to_float(resample(sound, rate_hz, RATE_HZ)) for sound in sounds_NxS]


def _speed_columns(rendering: Rendering, timed: Mapping[str, Any] | None) -> dict[str, float]:
    if timed is None:
        return {}
    detail = rendering.detail
    who, key = ("tokenizer", "levels") if "levels" in detail else ("opus", "bit_rate")
    factors = timed[who][str(detail[key])]
    return {f"{step} x": factors[step]["median"] for step in ("encode", "decode")}


def _code_rows(ids_NxLxF: np.ndarray, spec: AudioTokenizerSpec) -> list[dict[str, Any]]:
    """A row for each level; levels count from 1."""
    return [
        {"level": level, **usage_statistics(ids_NxLxF[:, level - 1], spec.codes)}
        for level in range(1, ids_NxLxF.shape[1] + 1)
    ]


# ------------------------------------------------------------------------------- pictures and sounds


def _show(
    out: pathlib.Path,
    name: str,
    sounds_NxS: np.ndarray,
    made: Sequence[Rendering],
    rate_hz: int,
) -> None:
    """Spectrograms of the first sounds, originals above the renderings, and all of them as wav."""
    originals = Rendering(
        label="original", slug="original", sounds_NxS=sounds_NxS, kbit_s=0.0, pictured=True
    )
    shown = range(min(SOUNDS_SHOWN, len(sounds_NxS)))
    every = [originals, *made]
    for index in shown:
        for rendering in every:
            path = out / name / f"{index}_{rendering.slug}.wav"
            media.write_wav(path, rendering.sounds_NxS[index], rate_hz)
    columns = [
        {r.label: to_float(r.sounds_NxS[index]) for r in every if r.pictured} for index in shown
    ]
    write_spectrograms(out / f"{name}.png", columns, rate_hz, title=name)
