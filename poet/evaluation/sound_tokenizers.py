"""`poet tokenizer-eval` for sound: scores of an audio tokenizer by level, beside Opus.

The tokenizer's rate is that of its codes written with a fixed number of bits each, as a language
model reads them; Opus's is that of its packets alone.

Shape suffixes: N sounds, S samples; L levels of codes, F frames of codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.evaluation import tokenizers
from poet.evaluation.codecs import speed as speeds
from poet.evaluation.codecs.opus import code_opus
from poet.evaluation.metric import Metric
from poet.evaluation.metrics import codes, select
from poet.evaluation.metrics.sounds import RATE_HZ, to_float
from poet.evaluation.record import Table
from poet.evaluation.report.spectrograms import write_spectrograms
from poet.evaluation.tokenizers import CLIPS_SHOWN, Rendering, Row
from poet.media.sound import resample
from poet.spec import AudioTokenizerSpec, UserError
from poet.tokenizers.audio.base import AudioTokenizer

LEVELS = (1, 2, 4, 8, 12)
OPUS_BIT_RATES = (6_000, 12_000)
# The levels that a language model reads (spec §3.4), and all; and the codec at the rate of all.
LEVELS_VISUALISED, OPUS_VISUALISED = (4, 12), 6_000


def evaluate(
    tokenizer: AudioTokenizer,
    sets: Mapping[str, np.ndarray],
    out: Path,
    *,
    levels: Sequence[int] = LEVELS,
    bit_rates: Sequence[int] = OPUS_BIT_RATES,
    metrics: Sequence[str] = (),
    speed: bool = True,
    skipped: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Scores a tokenizer on sets of sounds, each int16 (N, S) at its sample rate, and Opus beside.

    Writes OUT/tokenizer_scores.json, and for each set a picture OUT/SET.png and sounds OUT/SET/*.wav,
    and returns what the JSON holds (`record.content`): tables `sounds`, whose rows begin with `set`, and
    `codes_by_level`, of all sets together; `sets`, what else is known of each, and `speed`.  `tokenizers.summary`
    makes text of it.

    Args:
      levels: numbers of levels to decode from; those that the tokenizer has not are left out.
      bit_rates: of Opus, in bits per second; () leaves it out.
      metrics: of the table `sounds`; () takes all that are installed.
      speed: measures encoding and decoding on one core, in a process of its own.
      skipped: sets that could not be opened -> why; they are passed on to the result.

    Raises:
      UserError: no set, no level, an unknown metric, or sounds of another dtype or shape.
    """
    spec, skipped = tokenizer.spec, skipped or {}
    chosen, missing = select("sounds", metrics)
    counts = [count for count in levels if 1 <= count <= spec.levels]
    tokenizers.check(sets, "sounds", "int16", "sounds, samples", skipped)
    if not counts:
        raise UserError(f"no level to score: this tokenizer has 1..{spec.levels}")
    samples = min(sounds.shape[1] for sounds in sets.values())
    timed = speeds.measure(tokenizer, samples, counts, bit_rates) if speed else None
    ids = {name: tokenizer.encode(sounds) for name, sounds in sets.items()}
    scored, details = {}, {}
    for name, sounds in tokenizers.each(sets, "sounds"):
        made = [*_by_level(tokenizer, ids[name], counts, sounds.shape[1])]
        made += [_opus(sounds, spec, bit_rate) for bit_rate in bit_rates]
        rows, details[name] = _score_set(sounds, made, spec, chosen, timed)
        scored[name] = {"sounds": rows}
        details[name]["codes"] = _code_rows(ids[name], spec)
        _show(out, name, sounds, made, spec.sample_rate_hz)
    notes = [*NOTES, *(each.note for each in chosen), *_remarks(details, timed)]
    measured = tokenizers.tables(scored, {"sounds": chosen}, {"sounds": notes})
    pooled = [found.transpose(1, 0, 2).reshape(found.shape[1], -1) for found in ids.values()]
    measured["codes_by_level"] = Table(
        rows=_code_rows(np.concatenate(pooled, axis=1)[None], spec),
        metrics=select("codes_by_level")[0],
        notes=[codes.USAGE_NOTE],
    )
    subject = {"fingerprint": tokenizer.fingerprint, "sample_rate_hz": spec.sample_rate_hz}
    return tokenizers.write(out, subject, measured, {**skipped, **missing}, speed=timed, sets=details)


NOTES = (
    "kbit/s of the tokenizer: levels x log2(codes) x frames per second. Of Opus: bytes of its "
    "packets, no container; it was asked for as much as gives at least the rate in its name, over "
    "all sounds of a set. Mono, variable bit rate, greatest effort, its delay taken out.",
    "Metrics are taken at 16 kHz; ± is the standard error over sounds, n their number. Originals that "
    "a metric is not defined on, such as silence, count for no codec; a rendering that it fails on, as "
    "where a codec falls silent, counts with its worst value. PESQ-wb, STOI and ViSQOL-speech are "
    "made for speech: on other sets they say little.",
)


def _remarks(sets: Mapping[str, Any], timed: Mapping[str, Any] | None) -> list[str]:
    """How speed was measured, and what the metrics could not score."""
    notes = []
    if timed:
        most = max(timed["tokenizer"], key=int)
        where = "one core" if timed["core"] is not None else "one thread, not pinned to a core"
        by_cpu = (f"{step} {found['cpu_median']:.1f}" for step, found in timed["tokenizer"][most].items())
        notes.append(
            f"encode x, decode x: seconds of sound per second on {where}, one sound of "
            f"{timed['seconds']:.3f} s at a time, median of {timed['runs']} runs after a first one; "
            f"by CPU time, with {most} levels: {', '.join(by_cpu)}."
        )
    notes += [
        f"set {name!r}, {key}: not defined for {most} of {found['sounds']} originals"
        for name, found in sets.items()
        for key, most in found["undefined"].items()
        if most
    ]
    return notes + [
        f"set {name!r}, {key}: {codec} failed on {most} sounds, which count as the worst value"
        for name, found in sets.items()
        for codec, failed in found["failed"].items()
        for key, most in failed.items()
    ]


# ------------------------------------------------------------------------------------- renderings


def _by_level(
    tokenizer: AudioTokenizer, ids_NxLxF: np.ndarray, levels: Sequence[int], samples: int
) -> Iterator[Rendering]:
    """The visualised levels are LEVELS_VISUALISED if they are scored, else the largest number."""
    spec, visualised = tokenizer.spec, set(LEVELS_VISUALISED) & set(levels) or {max(levels)}
    bits_per_level = math.log2(spec.codes) * spec.sample_rate_hz / spec.hop
    for count in levels:
        label = f"tokenizer, {count} level{'s' * (count > 1)}"
        yield Rendering(
            name=f"tokenizer_{count}",
            media_N=tokenizer.decode(ids_NxLxF[:, :count], samples),
            row={"codec": label, "kbit/s": count * bits_per_level / 1000},
            visualised=count in visualised,
            detail={"levels": count},
        )


def _opus(sounds_NxS: np.ndarray, spec: AudioTokenizerSpec, bit_rate: int) -> Rendering:
    coded = code_opus(sounds_NxS, spec.sample_rate_hz, bit_rate)
    return Rendering(
        name=f"opus_{bit_rate}",
        media_N=coded.sounds_NxS,
        row={"codec": f"Opus, {bit_rate / 1000:g} kbit/s", "kbit/s": coded.bits_per_second / 1000},
        visualised=bit_rate == OPUS_VISUALISED,
        detail={"bit_rate": bit_rate, "asked_for": coded.asked_for, "lags": list(coded.lags)},
    )


# ------------------------------------------------------------------------------------------ scores


def _score_set(
    sounds_NxS: np.ndarray,
    made: Sequence[Rendering],
    spec: AudioTokenizerSpec,
    metrics: Sequence[Metric],
    timed: Mapping[str, Any] | None,
) -> tuple[list[Row], dict[str, Any]]:
    """Rows; and what else is known: how many originals each metric is not defined for, and on how many each
    codec failed.  Every row of a metric counts the same sounds.
    """
    common = {"truth": _at_metric_rate(sounds_NxS, spec.sample_rate_hz), "defined": {}}
    rows, failed, undefined = [], {}, {}
    for rendering in made:
        others = _at_metric_rate(rendering.media_N, spec.sample_rate_hz)
        row, found = rendering.measured({**common, "other": others}, metrics)
        rows.append(row | _speed_columns(rendering.detail, timed))
        undefined = {key: len(others) - each.summary.n for key, each in found.items()}
        if worst := {k: n for k, each in found.items() if (n := int(each.state.failed_N.sum()))}:
            failed[rendering.label] = worst
    return rows, {
        "sounds": len(sounds_NxS),
        "seconds": sounds_NxS.shape[1] / spec.sample_rate_hz,
        "undefined": undefined,
        "failed": failed,
        "codecs": {rendering.label: rendering.detail for rendering in made},
    }


def _at_metric_rate(sounds_NxS: np.ndarray, rate_hz: int) -> list[np.ndarray]:
    """float64 in [-1, 1] at the rate of all metrics."""
    return [to_float(resample(sound, rate_hz, RATE_HZ)) for sound in sounds_NxS]


def _speed_columns(detail: Mapping[str, Any], timed: Mapping[str, Any] | None) -> dict[str, float]:
    if timed is None:
        return {}
    who, key = ("tokenizer", "levels") if "levels" in detail else ("opus", "bit_rate")
    factors = timed[who][str(detail[key])]
    return {f"{step} x": factors[step]["median"] for step in ("encode", "decode")}


def _code_rows(ids_NxLxF: np.ndarray, spec: AudioTokenizerSpec) -> list[dict[str, Any]]:
    """A row for each level; levels count from 1."""
    return [
        {"level": level, **codes.statistics(ids_NxLxF[:, level - 1], spec.codes, "codes_by_level")}
        for level in range(1, ids_NxLxF.shape[1] + 1)
    ]


# ------------------------------------------------------------------------------- pictures and sounds


def _show(out: Path, name: str, sounds_NxS: np.ndarray, made: Sequence[Rendering], rate_hz: int) -> None:
    """Spectrograms of the first sounds, originals above the renderings, and all of them as wav."""
    every = [Rendering(name="original", media_N=sounds_NxS, row={"codec": "original"}), *made]
    shown = range(min(CLIPS_SHOWN, len(sounds_NxS)))
    for index in shown:
        for r in every:
            media.write_wav(out / name / f"{index}_{r.name}.wav", r.media_N[index], rate_hz)
    columns = [{r.label: to_float(r.media_N[index]) for r in every if r.visualised} for index in shown]
    write_spectrograms(out / f"{name}.png", columns, rate_hz, title=name)
